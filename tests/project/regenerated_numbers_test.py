"""A cheap part of the recorded numbers, computed again."""

import json
import pathlib

from tests import tiny_project
from videomla_jax import analyze
from videomla_jax.costs import memory
from videomla_jax.measuring import chunk_programs
from videomla_jax.measuring import record
from videomla_jax.measuring import rollout_rows
from videomla_jax.measuring import work
from videomla_jax.models import wan_config

_DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_ranks_of_a_shipped_model(tmp_path: pathlib.Path) -> None:
  config = tiny_project.config("analyze")
  config.checkpoints, config.formats = "shipped:small_latent", ""
  config.output = str(tmp_path)
  analyze.analyze(config)
  made, kept = (
    json.loads(path.read_text("utf-8"))["summary"]
    for path in (tmp_path / "report.json", _DOCS / "ranks_small.json")
  )
  (mine,) = made
  old = next(x for x in kept if x["checkpoint"] == mine["checkpoint"])
  ranks = ("kind", "layers", "d_c", "rank_median", "rank_least", "rank_most")
  assert [mine[k] for k in ranks] == [old[k] for k in ranks]


def test_operations_of_attention() -> None:
  lines = [
    x
    for x in record.read(_DOCS / "benchmark_work.jsonl")
    if x["name"] == "chunk_step"
  ]
  assert len(lines) >= 12
  for line in lines:
    case = rollout_rows.Case(
      window=chunk_programs.WINDOWS[line["window"]], videos=line["batch"]
    )
    config = wan_config.wan_1p3b(kind=line["attention"])
    found = work.self_attention_flops(config, case, "expanded")
    assert found == line["attention_flops"]


def test_bytes_of_caches() -> None:
  lines = [
    x
    for x in record.read(_DOCS / "benchmark_memory.jsonl")
    if x["decoder"] == "none"
  ]
  assert lines
  for line in lines:
    kind = dict(kind="latent", d_c=line["d_c"]) if line["d_c"] else {}
    config = wan_config.wan_1p3b(
      **(kind or dict(kind="dense")), dtype="bfloat16"
    )
    needs = memory.needs(
      chunk_programs.network(config),
      rows=1,
      frame=chunk_programs.FRAME,
      window=chunk_programs.WINDOWS[line["window"]],
      max_frames=999,
    )
    assert needs.cache_bytes == line["cache_bytes"]
