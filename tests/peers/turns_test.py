"""Programs that are timed in turns do not disturb each other."""

import pathlib
import re
import sys

import pytest

from tests.peers import turns

# Works all the time, also while it waits for its turn.
_RESTLESS = """
import sys, threading
def spin():
  while True: pass
threading.Thread(target=spin, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
  print(0.5, flush=True)
"""


def _state(pid: int) -> str:
  status = pathlib.Path(f"/proc/{pid}/status").read_text("utf-8")
  found = re.search(r"^State:\s+(\S)", status, re.MULTILINE)
  assert found
  return found[1]


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="no /proc")
def test_a_program_is_stopped_until_its_turn_comes():
  worker = turns.Worker(sys.executable, "-c", _RESTLESS)
  assert worker.about == "ready"
  for _ in range(3):
    assert _state(worker.pid) == "T"
    assert worker() == 0.5
  worker.close()


def test_a_program_that_ends_early_says_so(capfd):
  with pytest.raises(RuntimeError, match="ended early"):
    turns.Worker(sys.executable, "-c", "raise SystemExit('no room')")
  assert "no room" in capfd.readouterr().err


def test_speeds_are_ratios_of_medians_to_the_first_program(capsys):
  seconds = {"peer": [2.0, 9.0, 3.0], "ours": [1.0, 2.0, 1.5]}
  about = {"peer": "a", "ours": "b"}
  peer, ours = turns.report("rollout", "a case", seconds, about)
  assert (peer["value"], peer["least"], peer["most"]) == (3.0, 2.0, 9.0)
  assert (peer["speed"], ours["speed"]) == (1.0, 2.0)
  assert "2.00 times the peer's speed" in capsys.readouterr().out
