"""Tests of requests to stop; those of real signals are in train and launch."""

from collections.abc import Callable
from collections.abc import Iterator
from concurrent import futures
import os
import signal
import threading

import jax
import pytest

from videomla_jax.training import interrupts

_PATIENCE = 60.0  # seconds, before a process that waits alone is a failure


class _Group:
  """Processes that step at their own pace and wait for each other's answers.

  Time is simulated: a step takes its process's pace, an agreement ends for all
  when the last one comes.
  """

  def __init__(self, *paces: float, within: float) -> None:
    self.paces, self.within = paces, within
    self.now = [0.0] * len(paces)
    self.agreements: list[list[float]] = [[] for _ in paces]
    self._answers = [(False, 0.0)] * len(paces)
    self._barrier = threading.Barrier(len(paces))

  def _agree(self, index: int, received: bool, pace: float):
    self._answers[index] = (received, pace)
    self._barrier.wait(_PATIENCE)
    answers, now = list(self._answers), max(self.now)
    self._barrier.wait(_PATIENCE)
    self.now[index] = now
    self.agreements[index].append(now)
    return any(r for r, _ in answers), max(p for _, p in answers)

  def _run(self, index: int, steps: int, ask: Callable) -> int:
    stop = interrupts.StopRequest(
      within=self.within,
      agree=lambda received, pace: self._agree(index, received, pace),
      clock=lambda: self.now[index],
    )
    for step in range(1, steps + 1):
      self.now[index] += self.paces[index]
      ask(stop, index, step)
      if stop.pending(step):
        return step
    return steps

  def run(self, steps: int, ask: Callable = lambda *_: None) -> list[int]:
    """The step that each process ended at."""
    with futures.ThreadPoolExecutor(len(self.paces)) as pool:
      work = [
        pool.submit(self._run, i, steps, ask) for i in range(len(self.paces))
      ]
      return [w.result() for w in work]


@pytest.fixture(autouse=True)
def several_processes(monkeypatch) -> None:
  monkeypatch.setattr(jax, "process_count", lambda: 2)


@pytest.mark.parametrize(
  "paces", [(0.01, 0.01), (0.5, 0.7), (4.0, 1.0), (30.0, 29.0)]
)
def test_processes_agree_every_few_seconds_whatever_a_step_takes(paces) -> None:
  group = _Group(*paces, within=5.0)
  assert group.run(500) == [500, 500]
  slow, times = max(paces), group.agreements[0]
  assert times == group.agreements[1]
  gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
  assert all(gap <= max(5.0, slow) + 1e-6 for gap in gaps)
  # And no more often than that takes, since each one waits for the device.
  assert len(times) <= 3 + 500 / max(1, int(5.0 / slow))


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_stops_all_at_the_same_step(asked) -> None:
  group, when = _Group(0.5, 0.6, within=5.0), []

  def ask(stop, index, step):
    if index == asked and step == 30:
      when.append(group.now[index])
      stop.receive()

  ends = group.run(100, ask)
  assert ends[0] == ends[1] < 100
  assert max(group.now) - when[0] <= 5.0 + 0.6 * 2


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def handlers() -> Iterator[None]:
  before = {number: signal.getsignal(number) for number in _SIGNALS}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize("number", _SIGNALS)
def test_a_single_process_looks_at_every_step(
  monkeypatch, handlers, number
) -> None:
  monkeypatch.setattr(jax, "process_count", lambda: 1)
  stop = interrupts.StopRequest()
  before = signal.getsignal(number)
  with stop.listening():
    assert not stop.pending(7)
    os.kill(os.getpid(), number)
    assert stop.pending(8)
  assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", _SIGNALS)
def test_further_signals_change_nothing(
  monkeypatch, handlers, number, capfd
) -> None:
  monkeypatch.setattr(jax, "process_count", lambda: 1)
  stop = interrupts.StopRequest()
  with stop.listening():
    os.kill(os.getpid(), number)
    for further in _SIGNALS:
      os.kill(os.getpid(), further)
    assert stop.pending(8) and stop.reason == number.name
    end = stop.obey()
  assert end.code == 128 + number
  # Until the process has ended, too.
  for further in _SIGNALS:
    os.kill(os.getpid(), further)
  text = capfd.readouterr().err
  assert f"{number.name}: saving" in text and text.count("already") == 3


def test_what_was_ignored_stays_ignored(monkeypatch, handlers) -> None:
  monkeypatch.setattr(jax, "process_count", lambda: 1)
  signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
  stop = interrupts.StopRequest()
  with stop.listening():
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop.pending(8)
