"""Scores become totals as VBench and the paper say, or are refused."""

import json
import pathlib

import pytest

from videomla_jax.quality import paper
from videomla_jax.quality import scores


def test_totals_equal_those_by_hand() -> None:
  judged = dict.fromkeys(scores.DIMENSIONS, 0.5)
  judged |= dict(motion_smoothness=0.9, dynamic_degree=0.2)
  found = scores.totals(judged)
  assert found["overall"] == pytest.approx((4 * 0.5 + 0.9 + 0.2) / 6)
  quality = (
    (0.5 - 0.1462) / (1 - 0.1462)
    + (0.5 - 0.2615) / (1 - 0.2615)
    + (0.5 - 0.6293) / (1 - 0.6293)  # VBench does not clip it
    + (0.9 - 0.706) / (0.9975 - 0.706)
    + 0.5
    + 0.5
    + 0.5 * 0.2
  ) / 6.5
  semantic = (
    6 * 0.5
    + 0.5 / 0.8222
    + (0.5 - 0.0009) / (0.2855 - 0.0009)
    + 2 * 0.5 / 0.364
    - 0.5
  ) / 9
  assert found["quality"] == pytest.approx(quality)
  assert found["semantic"] == pytest.approx(semantic)
  assert found["total"] == pytest.approx((4 * quality + semantic) / 5)
  assert found["mean"] == pytest.approx((quality + semantic) / 2)


def test_bounds_become_zero_and_one() -> None:
  least = scores.totals({k: v.least for k, v in scores.DIMENSIONS.items()})
  most = scores.totals({k: v.most for k, v in scores.DIMENSIONS.items()})
  assert (least["total"], least["quality"], least["semantic"]) == (0, 0, 0)
  assert most["total"] == pytest.approx(1)


def test_a_total_needs_all_of_its_dimensions() -> None:
  judged = dict.fromkeys(scores.SIX, 0.5)
  assert [*scores.totals(judged)] == ["overall"]
  del judged["dynamic_degree"]
  assert scores.totals(judged) == {}


@pytest.mark.parametrize("length", ["30s", "60s"])
def test_the_papers_overall_is_the_mean_of_six(length: str) -> None:
  for method, row in paper.rows(length).items():
    mean = sum(row[x] for x in scores.SIX) / 6
    # The six are rounded to three digits, and so is their mean, or cut.
    assert row["overall"] == pytest.approx(mean, abs=1.6e-3), method


def test_the_papers_total_of_sizes_is_a_plain_mean() -> None:
  for name, row in paper.rows("short").items():
    mean = (row["semantic"] + row["quality"]) / 2
    assert row["mean"] == pytest.approx(mean, abs=1e-4), name
    weighed = 0.8 * row["quality"] + 0.2 * row["semantic"]
    assert abs(row["mean"] - weighed) > 2e-3, name


def test_scores_stand_beside_the_papers() -> None:
  judged = dict.fromkeys(scores.SIX, 0.5)
  text = paper.table("60s", judged | scores.totals(judged))
  assert "| these videos | 0.500 |" in text
  assert "| these − VideoMLA | -0.069 | -0.463 | -0.458 |" in text
  assert "| these videos | – | – | – |" in paper.table("short", judged)


def _write(folder: pathlib.Path, content: object) -> pathlib.Path:
  path = folder / "a_eval_results.json"
  path.write_text(json.dumps(content))
  return path


def test_results_of_both_kinds_are_read(tmp_path: pathlib.Path) -> None:
  path = _write(
    tmp_path,
    {
      "scene": [0.25, [{"video_path": "a", "video_results": 0.25}]],
      "imaging_quality": [0.5, [], [{"video_path": "a", "video_results": 50}]],
    },
  )
  assert scores.read_results(path) == {"scene": 0.25, "imaging_quality": 0.5}


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ({}, "has no dimension"),
    ([], "no object"),
    ({"taste": [1.0]}, "'taste', which is no dimension"),
    ({"scene": 0.5}, "has None as the score"),
    ({"scene": []}, "has None as the score"),
    ({"scene": [68.2, []]}, "must lie in 0..1"),
    ({"scene": [True, []]}, "must lie in 0..1"),
    ({"scene": [float("nan"), []]}, "must lie in 0..1"),
  ],
)
def test_other_results_are_one_sentence(
  content: object, words: str, tmp_path: pathlib.Path
) -> None:
  with pytest.raises(ValueError, match=words):
    scores.read_results(_write(tmp_path, content))


def test_results_of_other_videos_are_not_mixed() -> None:
  joined = scores.join([("a", {"scene": 0.5}), ("b", {"color": 0.1})])
  assert joined == {"scene": 0.5, "color": 0.1}
  with pytest.raises(ValueError, match="scene is 0.5000 in a and 0.6000 in b"):
    scores.join([("a", {"scene": 0.5}), ("b", {"scene": 0.6})])
