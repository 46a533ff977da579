"""Tests of what reaches a terminal: printable, bounded, and no broken pipe."""

import io
import os
import subprocess
import sys

import pytest

from videomla_jax.runtime import terminal


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("a fox 狐 🦊 é\n", "a fox 狐 🦊 é\n"),
    ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
    ("a\x00b\x9bc", "a\\x00b\\x9bc"),
    ("\u202egnp.exe", "\\u202egnp.exe"),
    ("\udcff", "\\udcff"),
  ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
  assert terminal.printable(text) == shown
  stream = io.StringIO()
  print(text, end="", file=terminal.Output(stream))
  assert stream.getvalue() == shown


def test_long_sentences_keep_their_beginning_and_the_way_out() -> None:
  text = terminal.sentence("the reason " + "x" * 10_000 + " use\n another.")
  assert text.startswith("the reason x") and text.endswith("x use another.")
  assert len(text) <= 600


def test_a_bar_goes_past_the_escapes() -> None:
  stream = io.StringIO()
  assert terminal.raw(terminal.Output(stream)) is stream
  assert terminal.raw(stream) is stream


_PRINTS = """
import sys
from videomla_jax.runtime import terminal
terminal.guard()
for i in range(100_000):
  print("a line")
print("\\u72d0 done", file=sys.stderr)
"""


@pytest.mark.parametrize(
  ("target", "code", "said"),
  [
    ("pipe", 0, "done"),
    ("/dev/full", 1, "No space left"),
    ("closed", 0, "don"),
  ],
)
def test_lost_output_ends_nothing_but_a_full_disk_does(
  target: str, code: int, said: str
) -> None:
  reader, writer = os.pipe()
  os.close(reader)
  out = writer if target == "pipe" else os.open("/dev/full", os.O_WRONLY)
  command = [sys.executable, "-c", _PRINTS]
  if target == "closed":
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
  ended = subprocess.run(
    command,
    stdout=out,
    stderr=subprocess.PIPE,
    env=os.environ | {"PYTHONIOENCODING": "ascii"},
    timeout=60,
  )
  os.close(out)
  assert (ended.returncode, said.encode() in ended.stderr) == (code, True)
