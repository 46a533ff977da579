"""Tests of the lock on a run's folder."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from videomla_jax.training import interrupts

_HOLDER = """
import pathlib, sys, time
from videomla_jax.training import interrupts
with interrupts.exclusive(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path) -> None:
  with interrupts.exclusive(tmp_path):
    with pytest.raises(ValueError, match="in use by another run"):
      with interrupts.exclusive(tmp_path):
        pass
  with interrupts.exclusive(tmp_path):
    pass


def test_a_killed_run_leaves_no_lock(tmp_path) -> None:
  root = pathlib.Path(__file__).parents[2]
  holder = subprocess.Popen(
    [sys.executable, "-c", _HOLDER, str(tmp_path)],
    cwd=root,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert holder.stdout.readline() == "held\n"
  with pytest.raises(ValueError, match="in use by another run"):
    with interrupts.exclusive(tmp_path):
      pass
  os.kill(holder.pid, signal.SIGKILL)
  holder.communicate()
  with interrupts.exclusive(tmp_path):
    pass
