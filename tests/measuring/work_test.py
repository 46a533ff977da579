"""What chunk steps compute: counts against formulas. Nothing is compiled."""

import dataclasses
import functools
import inspect
import pathlib
from typing import Any

import pytest

from tests import tiny_project
from videomla_jax import benchmark
from videomla_jax.costs import flops
from videomla_jax.diffusion import rollout
from videomla_jax.measuring import chunk_programs
from videomla_jax.measuring import record
from videomla_jax.measuring import rollout_rows
from videomla_jax.measuring import work
from videomla_jax.models import wan_config


@pytest.mark.parametrize(
  ("kind", "window", "scope"),
  [("latent", "1+6", "latent_attention"), ("dense", "21", "dense_attention")],
)
def test_attention_is_counted_as_its_formula_says(
  kind: str, window: str, scope: str
) -> None:
  config = dataclasses.replace(
    wan_config.wan_1p3b(kind=kind, dtype="bfloat16"), num_layers=2
  )
  case = rollout_rows.Case(window=chunk_programs.WINDOWS[window])
  step = functools.partial(
    inspect.unwrap(rollout.scan_chunks),
    window=case.window,
    sampler=rollout_rows.SAMPLER,
    chunks=1,
    frame=chunk_programs.FRAME,
  )
  arguments = chunk_programs.rollout_arguments(config, case)
  counted = flops.of(step, *arguments, scope=scope)
  assert counted == work.self_attention_flops(config, case, "expanded")
  if kind == "latent":
    assert work.self_attention_flops(config, case, "absorbed") > counted


def test_bytes_are_those_of_four_passes_and_the_commit(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  config = wan_config.wan_1p3b()
  denoise, commit = [("other", 100), ("weights", 10)], [("other", 150)]
  monkeypatch.setattr(
    work.layer_traffic,
    "layer_loops",
    lambda text: [
      [
        work.layer_traffic.Operation(
          name="x", kind=kind, shapes=((1,),), num_bytes=count
        )
        for kind, count in loop
      ]
      for loop in text
    ],
  )

  @dataclasses.dataclass
  class Program:
    text: list[list[tuple[str, int]]]

  count = inspect.unwrap(work.beside_bytes)
  found = count(Program([commit, denoise]), config)
  assert found == (30 * (4 * 110 + 150), 30 * 4 * 10)
  with pytest.raises(ValueError, match="has 1 loops"):
    count(Program([commit]), config)


@pytest.fixture
def config(tmp_path: pathlib.Path) -> Any:
  config = tiny_project.config("benchmark", "suite=work,runlocal")
  config.record = str(tmp_path / "work.jsonl")
  return config


def test_a_row_is_counted_once(
  config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
  calls = []

  def count(values: Any) -> dict[str, Any]:
    calls.append(values["stage"])
    return dict(product_flops=1.0, attention_flops=2.0)

  monkeypatch.setattr(work, "_training_step", count)
  first = benchmark.benchmark(config)
  assert benchmark.benchmark(config) == first
  assert calls == ["pretraining"]
  (line,) = first
  assert line["name"] == "training_step" and line["stage"] == "pretraining"
  assert record.read(pathlib.Path(config.record)) == first


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("rows", "training_step, stage none", "matches nothing"),
    ("rows", "(", "no regular expression"),
    ("windows", ("7",), r"windows=\['7'\] are unknown"),
    ("products", ("float9",), r"products=\['float9'\] are unknown"),
    ("cache_dtypes", ("int3",), r"cache_dtypes=\['int3'\] are unknown"),
    ("decoders", ("none",), r"decoders=\['none'\] are unknown"),
    ("batches", (0,), "batches"),
  ],
)
def test_what_does_not_exist_is_refused(
  config: Any, field: str, value: Any, message: str
) -> None:
  config[field] = value
  with pytest.raises(ValueError, match=message):
    benchmark.benchmark(config)


def test_every_case_is_listed_once() -> None:
  suite = benchmark.suite_of(tiny_project.config("benchmark", "suite=work"))
  assert isinstance(suite, work.WorkSuite)
  labels = [row.label for row in suite.listed()]
  assert len(labels) == len(set(labels)) == (2 * 3 * 2 + 2 + 2 + 2) + 4
