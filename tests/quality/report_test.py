"""Scores are judged by one process at a time."""

import pathlib
import sys

import pytest

from videomla_jax.data import locks
from videomla_jax.quality import folder as folder_lib
from videomla_jax.quality import judge
from videomla_jax.quality import judging as judging_lib
from videomla_jax.quality import report


def test_shares_that_end_together_judge_once(
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture[str],
) -> None:
  folder = folder_lib.Folder(tmp_path)
  judging = judging_lib.Judging(dimensions=("scene", "color"))
  package = judge.Package(
    python=sys.executable, version="0.1.5", program=(), cache=tmp_path
  )

  def judged() -> report.Judged:
    return report.judge_all(
      judging, package, folder, videos=folder.videos, measured=[]
    )

  seen: list[report.Judged] = []

  def score(
    _: object, dimension: str, *args: object, **kwargs: object
  ) -> float:
    if dimension == "color":
      # What another process gets meanwhile.
      seen.append(judged())
    return 0.5

  monkeypatch.setattr(judge, "judge", score)
  assert judged().scores == {"scene": 0.5, "color": 0.5}
  (other,) = seen
  assert not other.scores and {*other.reasons} == {"scene", "color"}
  assert "another process judges the videos of" in other.reasons["scene"]
  told = [x for x in capsys.readouterr().out.splitlines() if "another" in x]
  assert len(told) == 1
  with locks.alone(folder.judged, wait=False):
    pass  # The lock ended with the scores.
