"""Tests of the progress bar, in a terminal and elsewhere."""

import io

from videomla_jax.runtime import progress_bar


class Terminal(io.StringIO):
  """Text that claims to be a terminal."""

  def isatty(self) -> bool:
    """Returns True."""
    return True


def test_plain_lines_come_now_and_then() -> None:
  file, now = io.StringIO(), [0.0]
  with progress_bar.Progress(
    100, "train", plain_seconds=30, file=file, clock=lambda: now[0]
  ) as progress:
    for _ in range(100):
      now[0] += 1.0
      progress.update(loss=0.125)
  lines = file.getvalue().splitlines()
  assert len(lines) == 4
  expected = "train: 30/100 steps (30 %), loss 0.125, 1 s/step, ETA 0:01:10"
  assert lines[0] == expected


def test_time_left_ignores_units_of_an_earlier_run() -> None:
  now = [0.0]
  progress = progress_bar.Progress(
    240, "sample", unit="frame", initial=200, file=io.StringIO(),
    clock=lambda: now[0],
  )  # fmt: skip
  now[0] = 2.0
  progress.update(20)
  assert progress.line() == (
    "sample: 220/240 frames (92 %), 10 frames/s, ETA 0:00:02"
  )


def test_terminal_gets_a_bar_with_fields() -> None:
  file = Terminal()
  with progress_bar.Progress(3, "train", file=file) as progress:
    for _ in range(3):
      progress.update(loss=0.5)
  text = file.getvalue()
  assert "3/3" in text and "loss 0.5" in text and "\r" in text
