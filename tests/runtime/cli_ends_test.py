"""Tests of how a command ends, in processes as a user starts them."""

import signal
import subprocess
import sys

import pytest

# A command without work: it ends in the way that --how names.
_PROGRAM = """
import errno, os, sys, time
from absl import flags
from videomla_jax.runtime import cli

flags.DEFINE_string("how", "", "The end.")

def main():
  how = flags.FLAGS.how
  if how == "full":
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/\\x1b[31mx.mp4")
  if how == "fault":
    raise TypeError("odd " * 1000)
  if how == "exit":
    raise SystemExit(143)
  if how == "deep":
    main()
  try:
    print("ready", flush=True)
    while True:  # A signal just before signal.pause() would be missed.
      time.sleep(0.01)
  finally:
    print("cleaning", flush=True)
    time.sleep(0.2)
    print("clean", flush=True)

cli.run_flags(main)
"""


def _command(*args: str) -> list[str]:
  return [sys.executable, "-c", _PROGRAM, *args]


@pytest.mark.parametrize(
  ("args", "code", "words"),
  [
    (["--how=full"], 2, r"error: 'out/\x1b[31mx.mp4': No space left"),
    (["--how=fault"], 70, "error: a fault of this program: TypeError: odd odd"),
    (["--how=exit"], 143, ""),
    (["--how=fault", "--verbosity=1"], 70, "Traceback (most recent call last)"),
  ],
)
def test_whatever_happens_is_one_sentence_and_a_code(
  args: list[str], code: int, words: str
) -> None:
  ended = subprocess.run(
    _command(*args), capture_output=True, text=True, timeout=120
  )
  assert ended.returncode == code, ended.stderr
  assert words in ended.stderr and "\x1b" not in ended.stderr
  if "--verbosity=1" not in args:
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("\n") == bool(words)
    assert len(ended.stderr) < 620


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cleans_up_whatever_follows_it(number: int) -> None:
  with subprocess.Popen(
    _command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "cleaning\n"
    for other in (signal.SIGINT, signal.SIGTERM):
      process.send_signal(other)
    assert process.stdout.readline() == "clean\n"
    said = process.stderr.read()
  assert process.returncode == 128 + number
  name = signal.Signals(number).name
  assert said.startswith(f"stopped by {name};") and said.count("\n") == 1
