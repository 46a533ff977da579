"""Rows are counted once, and taken from their record afterwards."""

import json

import pytest

from videomla_jax.measuring import counted
from videomla_jax.measuring import record


class _Counter:
  """Counts how often something was counted."""

  def __init__(self) -> None:
    self.calls = 0

  def row(self, **about: object) -> counted.Row:
    return counted.Row(about=about, count=self)

  def __call__(self) -> dict[str, int]:
    self.calls += 1
    return dict(kernels=self.calls)


def _gather(tmp_path, rows, pattern: str = "", *, again: bool = False):
  return counted.gather(
    rows,
    pattern=pattern,
    again=again,
    record=str(tmp_path / "record.jsonl"),
    json_file=str(tmp_path / "out.jsonl"),
  )


def test_what_a_record_has_is_counted_again_if_asked_only(tmp_path) -> None:
  counter = _Counter()
  rows = [counter.row(name="step", target=x) for x in ("a", "b")]
  first = _gather(tmp_path, rows)
  assert [x["kernels"] for x in first] == [1, 2]
  assert _gather(tmp_path, rows) == first
  assert counter.calls == 2
  assert [x["kernels"] for x in _gather(tmp_path, rows, again=True)] == [3, 4]
  # Newer lines follow older ones, which stay.
  assert len(record.read(tmp_path / "record.jsonl")) == 4
  assert [x["kernels"] for x in _gather(tmp_path, rows)] == [3, 4]


def test_rows_are_picked_by_name_and_other_fields(tmp_path) -> None:
  counter = _Counter()
  rows = [counter.row(name="step", target=x) for x in ("a", "b")]
  (line,) = _gather(tmp_path, rows, "step, target b")
  assert (line["target"], counter.calls) == ("b", 1)
  text = (tmp_path / "out.jsonl").read_text()
  assert [json.loads(x) for x in text.splitlines()] == [line]
  with pytest.raises(ValueError, match="rows='x' matches nothing"):
    _gather(tmp_path, rows, "x")


def test_a_count_that_fails_leaves_the_rows_before_it(tmp_path) -> None:
  def broken() -> dict[str, int]:
    raise MemoryError

  counter = _Counter()
  rows = [
    counter.row(name="good"),
    counted.Row(about=dict(name="bad"), count=broken),
  ]
  with pytest.raises(MemoryError):
    _gather(tmp_path, rows)
  assert [x["name"] for x in record.read(tmp_path / "record.jsonl")] == ["good"]
