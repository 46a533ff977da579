"""Tests of the suite that measures a GPU, at tiny sizes on a CPU."""

import json
import math
import pathlib
import re
from typing import Any

import jax
import pytest

from tests import tiny_project
from videomla_jax import benchmark
from videomla_jax import sharding
from videomla_jax.costs import attention_shapes
from videomla_jax.data import locks
from videomla_jax.measuring import record
from videomla_jax.measuring import row as row_lib
from videomla_jax.measuring import suite as suite_lib
from videomla_jax.measuring import training_rows
from videomla_jax.training import abstract_step
from videomla_jax.training.stages import table


@pytest.fixture
def config(tmp_path: pathlib.Path) -> Any:
  config = tiny_project.config("benchmark", "suite=gpu,runlocal")
  config.folder = str(tmp_path / "records")
  return config


def _labels(config: Any) -> list[str]:
  return [r.label for r in benchmark.suite_of(config).all_rows()]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
  """Labels of the rows that are measured; each gives one microsecond."""
  labels: list[str] = []

  def lines(row: row_lib.Row) -> list[record.Line]:
    labels.append(row.label)
    return [row.line | dict(value=1.0, unit="us")]

  monkeypatch.setattr(row_lib.Row, "lines", lines)
  return labels


def test_labels_name_one_row_each(config: Any) -> None:
  for sizes in suite_lib.SIZES:
    config.sizes = sizes
    labels = _labels(config)
    assert len(set(labels)) == len(labels)
  # Each stage of training and every call of the table is among them.
  assert sum(x.startswith("training_step") for x in labels) == 4
  config.sizes = "real"
  assert {x.split("/")[1] for x in _labels(config)} >= {"480p", "720p"}


def test_what_is_interrupted_goes_on_and_is_not_measured_twice(
  config: Any, made: list[str]
) -> None:
  config.minutes = 0.0
  assert benchmark.benchmark(config) == []
  assert not made
  config.minutes = 5.0
  config.rows = "latent_attention"
  some = len(benchmark.benchmark(config))
  assert some == len(made) > 10
  config.rows = ""
  lines = benchmark.benchmark(config)
  assert len(lines) == len(made) == len(set(made)) == len(_labels(config))
  config.again = True
  config.rows = "^copy"
  assert len(benchmark.benchmark(config)) == len(lines) + 1
  assert made[-1] == "copy/xla"


def test_lines_of_another_commit_are_kept_and_not_counted(
  config: Any, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
  config.rows = "^copy"
  monkeypatch.setattr(record, "_commit", lambda: "0000000")
  benchmark.benchmark(config)
  monkeypatch.setattr(record, "_commit", lambda: "1111111")
  (line,) = benchmark.benchmark(config)
  assert line["commit"] == "1111111" and len(made) == 2
  (path,) = pathlib.Path(config.folder).iterdir()
  commits = [json.loads(x)["commit"] for x in path.read_text().splitlines()]
  assert commits == ["0000000", "1111111"]


def test_errors_are_results_and_refusals_are_not_kept(
  config: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
  def fail() -> list[row_lib.Figure]:
    raise AttributeError("no attribute 'backend'\nand more")

  def refuse() -> list[row_lib.Figure]:
    raise NotImplementedError("needs another GPU")

  rows = [
    row_lib.Row(name="broken", measure=fail),
    row_lib.Row(name="other", measure=refuse),
    row_lib.Row(name="fine", measure=lambda: [row_lib.Figure("", 2.0, "ms")]),
  ]
  monkeypatch.setattr(suite_lib.GpuSuite, "all_rows", lambda self: iter(rows))
  lines = benchmark.benchmark(config)
  assert [x["name"] for x in lines] == ["broken", "fine"]
  assert lines[0]["error"] == "AttributeError: no attribute 'backend'"
  assert "other: refused, needs another GPU" in capsys.readouterr().out


def test_numbers_that_are_not_finite_are_errors(
  config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
  figures = [
    row_lib.Figure("", 2.0, "ms"),
    row_lib.Figure("error", math.nan, ""),
  ]
  row = row_lib.Row(name="a", measure=lambda: figures)
  monkeypatch.setattr(suite_lib.GpuSuite, "all_rows", lambda self: iter([row]))
  fine, broken = benchmark.benchmark(config)
  assert fine["value"] == 2.0
  assert broken["name"] == "a_error" and broken["error"] == "the result is nan"


def test_a_second_process_is_refused_and_nothing_is_lost(
  config: Any, made: list[str], tmp_path: pathlib.Path
) -> None:
  config.rows = "^copy"
  config.json = str(tmp_path / "lines.jsonl")
  lines = benchmark.benchmark(config)
  (path,) = pathlib.Path(config.folder).iterdir()
  assert record.read(pathlib.Path(config.json)) == lines == record.read(path)
  config.again = True
  with locks.alone(path, wait=False):
    with pytest.raises(ValueError, match="another process measures into"):
      benchmark.benchmark(config)
  assert record.read(path) == lines and len(made) == 1


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ('{"name": "a"}\n{"name"', "has a line 2 that is no JSON"),
    ("[]", "has a line 1 that has JSON that is a list"),
    ('{"value": 1}', "has a line 1 that has no name"),
    ("[" * 100_000, "nested too deeply"),
    ("a\0", "is no text"),
  ],
)
def test_damaged_records_are_refused_by_line_and_left_alone(
  config: Any, made: list[str], text: str, words: str
) -> None:
  config.rows = "^copy"
  folder = pathlib.Path(config.folder)
  folder.mkdir()
  path = folder / record.file_name(record.Session.here().device)
  path.write_text(text)
  with pytest.raises(ValueError, match=words):
    benchmark.benchmark(config)
  assert path.read_text() == text and not made


def test_a_row_is_compared_with_the_fastest_of_its_call() -> None:
  row = row_lib.Row(
    name="a", measure=list, shape="s", implementation="x", holes=True
  )
  about = dict(name="a", shape="s", unit="us")
  lines = [
    about | dict(implementation="x", holes=True, value=6.0),
    about | dict(implementation="y", holes=True, value=2.0),
    about | dict(implementation="y", holes=False, value=1.0),
    about | dict(name="a_rate", implementation="x", holes=True, value=9.0),
  ]
  text = suite_lib.described(row, lines)
  assert text == "a/s/x/holes: 6 us, 3.00 times the fastest, rate 9 us"


@pytest.mark.parametrize(
  "rows",
  [
    "^(matmul|copy|dense_attention.*xla_chunked)",
    "^latent_attention/tiny/(expanded|absorbed)/xla_chunked",
    "^chunk_step.*latent.*window 1.6/|^vae_decode",
  ],
)
def test_rows_run_and_are_right(config: Any, rows: str) -> None:
  config.rows = rows
  lines = benchmark.benchmark(config)
  assert lines and all(x["value"] > 0 for x in lines), lines
  for line in lines:
    if line["name"].endswith("_error"):
      assert line["value"] < 0.02, line
    if line["unit"] == "1 is yes":
      assert line["value"] == 1, line


def test_training_steps_are_those_of_shallow_networks_and_one_clip(
  config: Any,
) -> None:
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  for values in config.stages.values():
    stage, settings = table.read(values)
    settings = training_rows.for_one_clip(settings, layers=2)
    step, arguments = abstract_step.step_and_arguments(stage, settings, mesh)
    state, batch, _, frozen = arguments
    networks = [state.model, *frozen.values()]
    assert {n.config.num_layers for n in networks} == {2}
    first = jax.tree.leaves({k: x for k, x in batch.items() if k != "negative"})
    assert {x.shape[0] for x in first} == {stage.examples_per_step(settings)}
    assert step.trace(*arguments).out_info


def test_a_cpu_is_refused_at_real_sizes(config: Any) -> None:
  config.sizes = "real"
  with pytest.raises(ValueError, match="measures GPUs, and this is 'cpu'"):
    benchmark.benchmark(config)


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("rows", "(", "is no regular expression"),
    ("rows", "nothing like it", "matches none of the rows"),
    ("sizes", "large", "use one of"),
  ],
)
def test_mistakes_are_refused(
  config: Any, field: str, value: str, words: str
) -> None:
  config[field] = value
  with pytest.raises(ValueError, match=words):
    benchmark.benchmark(config)


def test_the_drawn_flags_have_holes() -> None:
  shape = attention_shapes.SHAPES["few_queries"]
  for holes in (True, False):
    _, keys, _ = suite_lib.attention_rows.draw(shape, holes=holes)
    missing = [int((~k.valid).sum()) for k in keys]
    assert missing == ([1, 0] if holes else [0, 0])


def test_labels_are_words_and_files_have_plain_names() -> None:
  line = dict(name="a", shape="480p", form=None, holes=False)
  assert record.label(line) == "a/480p/full"
  name = record.file_name("NVIDIA H100 80GB HBM3")
  assert name == "nvidia-h100-80gb-hbm3.jsonl"
  assert re.fullmatch(r"[a-z0-9-]+\.jsonl", record.file_name("../../x y"))
