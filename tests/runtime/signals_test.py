"""Tests of signals as exceptions, in this process."""

import os
import signal

import pytest

from videomla_jax.runtime import progress_bar
from videomla_jax.runtime import signals


def _send(number: int) -> None:
  os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_raises_and_the_others_change_nothing(
  number: int,
) -> None:
  cleaned = []
  with pytest.raises(signals.Interrupted) as end, signals.raised():
    try:
      _send(number)
    finally:
      # Nothing may cut the clean-up short.
      _send(signal.SIGTERM)
      _send(signal.SIGINT)
      cleaned.append(True)
  assert end.value.code == 128 + number and cleaned == [True]


def test_a_step_comes_to_its_end_first() -> None:
  done = []
  with signals.raised(), pytest.raises(signals.Interrupted):
    with signals.held():
      _send(signal.SIGINT)
      done.append("step")
    done.append("never")
  assert done == ["step"]


@pytest.mark.filterwarnings("ignore:Exception ignored in")
def test_a_swallowed_signal_is_raised_by_the_next_count(capsys) -> None:
  class Freed:
    def __del__(self):
      _send(signal.SIGINT)

  with signals.raised(), pytest.raises(signals.Interrupted):
    bar = progress_bar.Progress(2, "work")
    thing = Freed()
    del thing  # Python drops what is raised here.
    bar.update(1)


def test_handlers_are_put_back_and_what_is_ignored_stays_ignored() -> None:
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  inside = signal.getsignal(signal.SIGINT)
  try:
    with signals.raised():
      _send(signal.SIGHUP)
      assert signal.getsignal(signal.SIGINT) is not inside
    assert signal.getsignal(signal.SIGINT) is inside
  finally:
    signal.signal(signal.SIGHUP, before)
