"""Tests of the evaluation on tiny models with a judge that knows nothing."""

import json
import pathlib
from typing import Any

from flax import nnx
import numpy as np
from PIL import Image
import pytest

from tests import tiny_project
from videomla_jax import evaluate
from videomla_jax.small_world import judge
from videomla_jax.small_world import judge_network


def _ignorant() -> tuple[judge_network.Judge, judge.JudgeReport]:
  """Returns a judge that was never trained."""
  report = judge.JudgeReport(
    identity=0.1,
    identity_clean=0.1,
    content=0.3,
    whole_clean=0.3,
    confusion=[[1.0, 0.0, 0.0]] * 3,
    kinds={},
    train_seconds=0.0,
  )
  return judge_network.Judge(dropout=0.0, rngs=nnx.Rngs(0)), report


@pytest.fixture
def config(
  tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> Any:
  tiny_project.shrink(monkeypatch)
  monkeypatch.setattr(judge, "load_or_train_judge", lambda path: _ignorant())
  rng = np.random.default_rng(seed)
  config = tiny_project.config("evaluate", "models=latent,runlocal")
  tiny_project.checkpoint(tmp_path / "latent", rng)
  config.checkpoints.latent = str(tmp_path / "latent")
  config.judge = str(tmp_path / "judge.npz")
  config.output.folder = str(tmp_path / "out")
  return config


def test_report_table_and_sheet_cover_every_video(
  config: Any, tmp_path: pathlib.Path, capsys
) -> None:
  report = evaluate.evaluate(config)
  names = sorted(p.name for p in (tmp_path / "out").iterdir())
  assert names == ["evaluate-latent.png", "evaluate.json", "evaluate.md"]
  assert (report["videos"], report["frames"]) == (10, 12)
  assert set(report["summary"]) == {"real", "latent"}
  stored = json.loads((tmp_path / "out" / "evaluate.json").read_text())
  for row in stored["per_video"].values():
    (seed_row,) = row
    assert seed_row and all(len(values) == 10 for values in seed_row.values())
  Image.open(tmp_path / "out" / "evaluate-latent.png").verify()
  table = (tmp_path / "out" / "evaluate.md").read_text()
  assert "real" in table and "latent" in table
  assert table.strip() in capsys.readouterr().out


def test_seeds_are_averaged(
  config: Any, tmp_path: pathlib.Path, seed: int
) -> None:
  tiny_project.checkpoint(tmp_path / "other", np.random.default_rng(seed + 1))
  config.checkpoints.latent += f"; {tmp_path / 'other'}"
  report = evaluate.evaluate(config)
  assert len(report["generation_seconds"]["latent"]) == 2
  row = report["summary"]["latent"]["ink/all"]
  means = [np.mean(x["ink/all"]) for x in report["per_video"]["latent"]]
  assert row["n"] == 2
  assert row["mean"] == pytest.approx(np.mean(means))
  assert row["std"] == pytest.approx(np.std(means, ddof=1))
  sheets = {p.name for p in (tmp_path / "out").glob("*.png")}
  assert sheets == {"evaluate-latent-0.png", "evaluate-latent-1.png"}


def test_mistakes_are_refused_before_a_judge_is_trained(
  config: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(judge, "load_or_train_judge", None)
  config.videos_per_prompt = 0
  with pytest.raises(ValueError, match="videos_per_prompt=0 must be"):
    evaluate.evaluate(config)
  config.videos_per_prompt = 1
  config.output.folder = str(tmp_path / "latent" / "config.json" / "out")
  with pytest.raises(ValueError, match="choose a folder"):
    evaluate.evaluate(config)
  config.sampler.kind = "magic"
  with pytest.raises(ValueError, match="sampler.kind='magic'"):
    evaluate.evaluate(config)
  config.checkpoints.latent = "missing"
  with pytest.raises(ValueError, match="is not a directory"):
    evaluate.evaluate(config)
  assert not (tmp_path / "out").exists()
