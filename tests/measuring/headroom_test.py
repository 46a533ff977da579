"""Which batch fits: the arithmetic, and the record. Nothing is compiled."""

import pathlib
from typing import Any

import pytest

from tests import tiny_project
from videomla_jax import benchmark
from videomla_jax.costs import gpus
from videomla_jax.data import locks
from videomla_jax.measuring import headroom
from videomla_jax.measuring import record

ONCE, EACH = 3_000_000_000, 200_000_000  # of the made-up compiler


@pytest.fixture
def config(tmp_path: pathlib.Path) -> Any:
  config = tiny_project.config("benchmark", "suite=memory,runlocal")
  config.record = str(tmp_path / "memory.jsonl")
  config.check = True
  return config


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
  """Batches that are compiled; memory is a straight line."""
  batches: list[int] = []

  def compile_one(case: headroom.Case, batch: int) -> headroom.Bytes:
    batches.append(batch)
    return headroom.Bytes(ONCE + 150_000_000 * batch, 50_000_000 * batch)

  monkeypatch.setattr(headroom, "compiled", compile_one)
  return batches


def test_the_largest_batch_is_the_last_that_fits(
  config: Any, compiled: list[int]
) -> None:
  lines = {x["decoder"]: x for x in benchmark.benchmark(config)}
  most = gpus.TARGETS["b200"].memory_bytes
  alone = lines["none"]
  batch = alone["largest_batch"]
  assert ONCE + batch * EACH <= most < ONCE + (batch + 1) * EACH
  assert alone["total_bytes_at_largest_batch"] == ONCE + batch * EACH
  assert compiled == [1, 8, batch]
  # A decoder has weights once, and a state for every video.
  for name in ("tiny", "wan"):
    line = lines[name]
    state = line["bytes_per_video"] - EACH
    weights = line["decoder_bytes"] - state
    assert state > 0 and weights > 0
    fits = lambda n, w=weights, s=state: ONCE + w + n * (EACH + s) <= most
    assert fits(line["largest_batch"]) and not fits(line["largest_batch"] + 1)
  assert lines["wan"]["largest_batch"] < lines["tiny"]["largest_batch"] < batch


def test_what_is_recorded_is_not_compiled_again(
  config: Any, compiled: list[int], tmp_path: pathlib.Path
) -> None:
  config.json = str(tmp_path / "lines.jsonl")
  first = benchmark.benchmark(config)
  count = len(compiled)
  assert benchmark.benchmark(config) == first and len(compiled) == count
  assert record.read(pathlib.Path(config.json)) == first
  config.again = True
  again = benchmark.benchmark(config)
  assert len(compiled) == 2 * count and len(again) == len(first)
  # A further case is all that is missing now.
  config.again, config.windows = False, ("1+6", "21")
  benchmark.benchmark(config)
  assert len(compiled) == 3 * count


def test_a_second_process_is_refused_before_anything_compiles(
  config: Any, compiled: list[int]
) -> None:
  with locks.alone(pathlib.Path(config.record), wait=False):
    with pytest.raises(ValueError, match="another process measures into"):
      benchmark.benchmark(config)
  assert not compiled


@pytest.mark.parametrize(
  ("key", "value", "words"),
  [
    ("targets", ("b300",), "targets="),
    ("windows", (), "windows is empty"),
    ("latents", (-1,), "latents"),
    ("latents", (), "is empty"),
    ("rows", "nothing", "matches nothing"),
    ("rows", "(", "no regular expression"),
  ],
)
def test_mistakes_are_refused_before_anything_compiles(
  config: Any, compiled: list[int], key: str, value: Any, words: str
) -> None:
  config[key] = value
  with pytest.raises(ValueError, match=words):
    benchmark.benchmark(config)
  assert not compiled
