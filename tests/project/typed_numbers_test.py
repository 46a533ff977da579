"""No table in a text repeats by hand what a record holds."""

import pathlib
import re

import pytest

from videomla_jax.measuring import record

_ROOT = pathlib.Path(__file__).parents[2]
# Programs write these, or parts of these between markers.
_GENERATED = ("benchmarks.md", "memory.md", "throughput.md", "evidence.md")
_MARKED = re.compile(r"<!-- (\w+): start -->.*?<!-- \1: end -->", re.DOTALL)
_UNITS = ("us", "ms", "frames/s", "TFLOP/s")
_NUMBER = re.compile(rf"\d[\d,]*(?:\.\d+)? (?:{'|'.join(_UNITS)})")


def _texts() -> list[pathlib.Path]:
  found = [*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md")]
  return sorted(p for p in found if p.name not in _GENERATED)


def _measured() -> set[str]:
  """Times and rates of the records of GPUs, as tables write them."""
  found = set()
  for path in (_ROOT / "docs" / "benchmarks").glob("*.jsonl"):
    for line in record.read(path):
      value, unit = line.get("value"), line.get("unit")
      if value is not None and unit in _UNITS:
        found |= {f"{value:{form}} {unit}" for form in (",.0f", ",.1f", "g")}
  return found


def _typed(text: str) -> list[str]:
  """Rows of tables that have a time or a rate of a record."""
  measured = _measured()
  rows = [x for x in _MARKED.sub("", text).splitlines() if x.startswith("|")]
  return [x for x in rows if set(_NUMBER.findall(x)) & measured]


@pytest.mark.parametrize("path", _texts(), ids=lambda p: p.name)
def test_tables_of_measurements_are_written_by_programs(
  path: pathlib.Path,
) -> None:
  typed = _typed(path.read_text("utf-8"))
  assert not typed, (
    f"{path.name} repeats numbers of docs/benchmarks by hand; let "
    "docs/make_benchmarks.py write the table, or link to benchmarks.md"
  )


def test_a_typed_row_is_found() -> None:
  row = "| latent, cudnn | 245 ms | 49.0 frames/s |"
  assert _typed(f"text\n{row}\n") == [row]
  marked = f"<!-- measured: start -->\n{row}\n<!-- measured: end -->"
  assert not _typed(marked)
