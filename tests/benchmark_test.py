"""Tests of the benchmark on a tiny model."""

import json
import pathlib
from typing import Any

import ml_collections
import numpy as np
import pytest

from tests import tiny_project
from videomla_jax import benchmark
from videomla_jax.chain import costs as chain_costs
from videomla_jax.chain import settings
from videomla_jax.costs import rollout_run
from videomla_jax.costs import step_time
from videomla_jax.training.stages import table


@pytest.fixture
def config(
  tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> Any:
  tiny_project.shrink(monkeypatch)
  rng = np.random.default_rng(seed)
  tiny_project.checkpoint(tmp_path / "model", rng)
  config = tiny_project.config("benchmark", "runlocal")
  config.checkpoint = str(tmp_path / "model")
  config.seconds = 15.0
  config.json = str(tmp_path / "benchmark.json")
  return config


def test_memory_of_a_long_rollout_is_that_of_a_short_one(config: Any) -> None:
  report = benchmark.benchmark(config)
  assert report["cache_bytes"] == report["cache_bytes_predicted"]
  assert report["cache_bytes"] == 2 * 4 * 9 * 24 * 4
  short, whole = report["memory_ten_seconds"], report["memory_whole"]
  # Donated state is the cache and a few counters.
  assert short["aliased"] == whole["aliased"] >= report["cache_bytes"]
  # 42 and 60 frames of 6 x 6 x 16 latents; nothing else may grow.
  assert short["latents"] == 42 * 576 * 4 and whole["latents"] == 60 * 576 * 4
  growth = whole["temporaries"] - short["temporaries"]
  assert growth <= whole["latents"] - short["latents"]
  assert report["step_time"]["chunks"] == 20
  assert report["step_time"]["ratio"] > 0
  assert json.loads(pathlib.Path(config.json).read_text()) == report


def test_early_and_late_chunks_are_compared_by_their_medians() -> None:
  seconds = np.concatenate([[9.0] * 5, np.linspace(1, 2, 50), [7.0]])
  ratio = rollout_run.time_ratio(seconds)
  steady = seconds[5:-1]
  assert ratio["first_seconds"] == np.median(steady[:10])
  assert ratio["last_seconds"] == np.median(steady[-10:])
  assert ratio["chunks"] == 56


def test_mistakes_are_refused_before_anything_runs(
  config: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(rollout_run, "chunk_seconds", None)
  config.seconds = 3.0
  with pytest.raises(ValueError, match="use 10 or more"):
    benchmark.benchmark(config)
  config.seconds = 15.0
  config.json = str(tmp_path / "model" / "config.json" / "a.json")
  with pytest.raises(ValueError, match="choose a folder"):
    benchmark.benchmark(config)
  config.json = ""
  config.checkpoint = "shipped:none"
  with pytest.raises(ValueError, match="shipped are"):
    benchmark.benchmark(config)


def test_training_suite_counts_every_stage(tmp_path: pathlib.Path) -> None:
  config = tiny_project.config("benchmark", "suite=training")
  config.json = str(tmp_path / "training.json")
  rows = {row["stage"]: row for row in benchmark.benchmark(config)}
  assert set(rows) == set(table.STAGES)
  for row in rows.values():
    expected = row["operations"] / (0.4 * 2.25e15)
    assert row["seconds"]["b200"] == pytest.approx(expected)
  # A student with its rollout and two scores, and five critics with theirs.
  assert rows["dmd"]["operations"] > 5 * rows["pretraining"]["operations"]
  stored = json.loads((tmp_path / "training.json").read_text())
  assert stored == list(rows.values())
  config.utilisation = 0.0
  with pytest.raises(ValueError, match="utilisation=0.0"):
    benchmark.benchmark(config)


def test_kernel_suite_refuses_what_it_does_not_know() -> None:
  config = ml_collections.ConfigDict(
    dict(suite="kernels", json="", targets=("b300",), shapes=("480p",))
  )
  with pytest.raises(ValueError, match=r"targets=\['b300'\] .*'b200'"):
    benchmark.benchmark(config)
  config.targets = ()
  with pytest.raises(ValueError, match="targets is empty; use some of"):
    benchmark.benchmark(config)
  config.targets, config.shapes = ("b200",), ("4k",)
  with pytest.raises(ValueError, match=r"shapes=\['4k'\] .*'720p'"):
    benchmark.benchmark(config)


def test_world_suite_writes_a_line_for_each_part(tmp_path, monkeypatch) -> None:
  compiled = []

  def cost(config, target: str, *args, images: bool = False):
    compiled.append("images of vae" if images else config.get("stage", "vae"))
    work = step_time.Work(kernels=len(compiled), num_bytes=10**9, flops=1e9)
    return chain_costs.Cost(target=target, examples=2, work=work)

  monkeypatch.setattr(chain_costs, "_of_vae", cost)
  monkeypatch.setattr(chain_costs, "_of_stage", cost)
  config = tiny_project.config("benchmark", "suite=world")
  config.record = str(tmp_path / "record.jsonl")
  config.json = str(tmp_path / "world.jsonl")
  config.rows = "images|frames"
  benchmark.benchmark(config)
  assert compiled == ["images of vae", "pretraining"]
  # What the record has is not compiled again.
  config.rows = ""
  rows = benchmark.benchmark(config)
  assert compiled[2:] == ["vae", *settings.PARTS[2:]]
  names = [chain_costs.VAE_IMAGES, *settings.PARTS]
  assert [row["kernels"] for row in rows] == [1, 3, 2, 4, 5, 6, 7]
  assert [row["name"] for row in rows] == names
  text = (tmp_path / "world.jsonl").read_text()
  assert [json.loads(line) for line in text.splitlines()] == rows
  config.targets = ("b300",)
  with pytest.raises(ValueError, match="b300"):
    benchmark.benchmark(config)
