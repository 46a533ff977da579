"""Writes tables of docs/kernels.md: compiled kernels, errors of networks."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
from typing import Any

START, END = "<!-- compiled: start -->", "<!-- compiled: end -->"
_TITLES = (
  "shape",
  "form",
  "B200: Mosaic, registers / SMEM / TMEM / MMA",
  "B200: Triton, the same",
  "H100: Mosaic, registers / SMEM / MMA",
  "H100: Triton, the same",
  "B200 roofline",
  "H100 roofline",
)
_MOSAIC, _TRITON = "pallas_mosaic_gpu", "pallas_triton"

type Row = Mapping[str, Any]


def read(path: pathlib.Path) -> list[Row]:
  """Reads the rows of `suite=kernels`.

  Args:
    path: Its file of JSON lines.
  """
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _cell(row: Row) -> str:
  """Says what a kernel needs, or why there is none."""
  if not row["compiled"]:
    eight = "dequantise" in row["error"]
    return "no eight bits" if eight else "too wide"
  needs = [f"{row['registers']}", f"{row['smem_bytes']:,}"]
  if row["target"] == "b200":
    needs.append(str(row["tmem_columns"] or "-"))
  return " / ".join([*needs, f"{row['tensor_core_ops']}"])


def table(rows: Sequence[Row]) -> str:
  """Returns the table: a line for each shape and form.

  Args:
    rows: What `suite=kernels` wrote.
  """
  found = {
    (r["shape"], r["form"], r["target"], r["implementation"]): r for r in rows
  }
  lines = [_TITLES, ["---"] * len(_TITLES)]
  for shape, form in dict.fromkeys((r["shape"], r["form"]) for r in rows):
    own = lambda target, name, s=shape, f=form: found[s, f, target, name]
    cells = [
      _cell(own(target, name))
      for target in ("b200", "h100")
      for name in (_MOSAIC, _TRITON)
    ]
    least = [own(target, _TRITON) for target in ("b200", "h100")]
    cells += [f"{r['roofline_us']:.1f} us, {r['bound']}" for r in least]
    lines.append([shape, form, *cells])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


FLOAT8_START, FLOAT8_END = "<!-- float8: start -->", "<!-- float8: end -->"


def float8_table(rows: Sequence[Row]) -> str:
  """Returns the table of errors of float8 products.

  Args:
    rows: What `tests/float8_errors.py` wrote; later ones replace earlier ones.
  """
  newest = {(r["network"], r["products"]): r for r in rows}
  titles = ["network", "products", "each layer", "chunk 1", "chunk 8"]
  lines, before = [titles, ["---"] * len(titles)], ""
  for (network, products), row in newest.items():
    layers = ", ".join(f"{x:.3f}" for x in row["layers"])
    ends = [f"{row[end]:.3f}" for end in ("first", "last")]
    lines.append(
      ["" if network == before else network, products, layers, *ends]
    )
    before = network
  return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


ERRORS_START = "<!-- pass_errors: start -->"
ERRORS_END = "<!-- pass_errors: end -->"
_RUNS = {
  "XLA": "compiled by XLA for a CPU",
  "interpreted": "interpreted on a CPU",
  "wrong on purpose": "wrong on purpose",
}


def newest_errors(rows: Sequence[Row]) -> list[Row]:
  """Returns the last line of each implementation and form.

  Args:
    rows: What `tests/pass_errors.py` wrote.
  """
  case = lambda r: (r["network"], r["implementation"], r["form"])
  return [*{case(r): r for r in rows}.values()]


def errors_table(rows: Sequence[Row]) -> str:
  """Returns the table of errors of a pass and of a chunk.

  Args:
    rows: What `tests/pass_errors.py` wrote; later ones replace earlier ones.
  """
  titles = ["network", "attention by", "form", "how", "one pass"]
  lines = [[*titles, "chunk"], ["---"] * (len(titles) + 1)]
  for row in newest_errors(rows):
    network = f"{row['network']}, {row['shape']}, {row['passes']} passes"
    errors = [f"{row[field]:.1e}" for field in ("velocity", "latents")]
    own = (row["implementation"], row["form"], _RUNS[row["run"]])
    lines.append([network, *own, *errors])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
