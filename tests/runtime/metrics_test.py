"""Tests of metric files and of the progress bar."""

import json
import pathlib

from hypothesis import given
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from videomla_jax.runtime import event_files
from videomla_jax.runtime import metrics


def test_every_metric_has_group_unit_and_meaning() -> None:
  for name, (unit, meaning) in metrics.METRICS.items():
    assert name.split("/")[0] in ("train", "vae", "eval", "rank", "perf")
    assert unit and meaning


def test_no_metric_is_declared_that_nothing_writes() -> None:
  package = pathlib.Path(metrics.__file__).parents[1]
  sources = [p for p in package.rglob("*.py") if p.name != "metrics.py"]
  text = "".join(p.read_text() for p in sources)
  assert [name for name in metrics.METRICS if f'"{name}"' not in text] == []


def test_values_come_back_from_jsonl(tmp_path: pathlib.Path, seed: int) -> None:
  values = np.random.default_rng(seed).normal(size=5)
  with metrics.MetricWriter(tmp_path) as writer:
    for step, value in enumerate(values):
      writer.scalars(step, {"train/loss": value, "perf/step_seconds": 2})
  lines = metrics.read_jsonl(tmp_path)
  assert [x["step"] for x in lines] == list(range(5))
  np.testing.assert_array_equal([x["train/loss"] for x in lines], values)


def test_lines_are_on_disk_before_close(tmp_path: pathlib.Path) -> None:
  writer = metrics.MetricWriter(tmp_path)
  writer.scalars(1, {"train/loss": jnp.float32(0.5)})
  assert metrics.read_jsonl(tmp_path)[0]["train/loss"] == 0.5
  writer.close()


def _board_scalars(folder: pathlib.Path) -> list[tuple[int, str, float]]:
  found = []
  for path in sorted(folder.glob("events.*")):
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], "little")
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      found += [
        (event.step, x.tag, x.simple_value) for x in event.summary.value
      ]
      at += size + 16
  return found


def test_starting_often_leaves_two_event_files(tmp_path: pathlib.Path) -> None:
  for step in range(6):
    with metrics.MetricWriter(tmp_path, resumed_step=step) as writer:
      writer.scalars(step + 1, {"train/loss": step})
    newest = max(tmp_path.glob("events.*"))
    # A kill cuts the last record.
    newest.write_bytes(newest.read_bytes() + b"\x40" + bytes(20))
    # Names hold seconds, and starts take longer than that.
    newest.rename(tmp_path / f"events.out.tfevents.{step:010d}.host")
  assert len([*tmp_path.glob("events.*")]) == 2
  found = _board_scalars_whole(tmp_path)
  assert found == [(i + 1, "train/loss", i) for i in range(6)]


def _board_scalars_whole(folder: pathlib.Path) -> list[tuple[int, str, float]]:
  """The scalars of all files, without records that were cut."""
  event_files.join(folder)
  return _board_scalars(folder)


def test_values_come_back_from_tensorboard(tmp_path: pathlib.Path) -> None:
  with metrics.MetricWriter(tmp_path) as writer:
    writer.scalars(
      7, {"train/loss": 0.25, "perf/peak_memory_gib": np.float32(2)}
    )
  expected = [(7, "train/loss", 0.25), (7, "perf/peak_memory_gib", 2.0)]
  assert _board_scalars(tmp_path) == expected


def test_unknown_name_is_an_error_that_writes_nothing(
  tmp_path: pathlib.Path,
) -> None:
  with metrics.MetricWriter(tmp_path) as writer:
    with pytest.raises(ValueError, match="'train/lss' is not declared"):
      writer.scalars(1, {"train/loss": 1.0, "train/lss": 1.0})
  assert not metrics.read_jsonl(tmp_path)


def test_array_is_an_error(tmp_path: pathlib.Path) -> None:
  with metrics.MetricWriter(tmp_path) as writer:
    with pytest.raises(ValueError, match="one number"):
      writer.scalars(1, {"train/loss": np.zeros(2)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_file_stays_json_with_non_finite_values(
  tmp_path: pathlib.Path, value: float
) -> None:
  with metrics.MetricWriter(tmp_path) as writer:
    writer.scalars(1, {"train/loss": value})
  assert metrics.read_jsonl(tmp_path)[0]["train/loss"] is None


@given(st.integers(0, 12), st.booleans())
def test_resumed_run_equals_uninterrupted_run(
  tmp_path_factory: pytest.TempPathFactory, resumed_step: int, torn: bool
) -> None:
  folder = tmp_path_factory.mktemp("run")
  with metrics.MetricWriter(folder) as writer:
    for step in range(1, 11):
      writer.scalars(step, {"train/loss": step})
  if torn:
    with (folder / "metrics.jsonl").open("a") as file:
      file.write('{"step": 1, "train/l')
  with metrics.MetricWriter(folder, resumed_step=resumed_step) as writer:
    for step in range(resumed_step + 1, 15):
      writer.scalars(step, {"train/loss": step})
  steps = [x["step"] for x in metrics.read_jsonl(folder)]
  kept = list(range(1, min(resumed_step, 10) + 1))
  assert steps == kept + list(range(resumed_step + 1, 15))


def test_unwritable_folder_is_one_sentence(tmp_path: pathlib.Path) -> None:
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="choose a folder"):
    metrics.MetricWriter(tmp_path / "file" / "run")


def test_jsonl_has_one_object_per_line(tmp_path: pathlib.Path) -> None:
  with metrics.MetricWriter(tmp_path) as writer:
    writer.scalars(1, {"train/loss": 1})
  for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
    assert json.loads(line)["step"] == 1
