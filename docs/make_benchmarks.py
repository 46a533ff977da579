"""Writes the pages of measurements, and the README's table, from the records.

  python docs/make_benchmarks.py

Reads docs/benchmarks/*.jsonl, which `benchmark.py:suite=gpu` adds to, and
docs/benchmark_memory.jsonl of `suite=memory`, docs/benchmark_work.jsonl of
`suite=work`, docs/benchmark_world.jsonl of `suite=world`,
docs/benchmark_kernels.jsonl of `suite=kernels`,
docs/measures.jsonl, docs/small_world.json and docs/colour_world.json of
`evaluate`, docs/colour_world_runs.jsonl of record_training.py,
docs/float8_errors.jsonl of tests/float8_errors.py, docs/pass_errors.jsonl of
tests/pass_errors.py, docs/peers.jsonl of tests/peers/attention_time.py and
rollout_time.py, and docs/ablations.jsonl of `ablate`. Writes
docs/ablations.md, docs/benchmarks.md, docs/evidence.md, docs/memory.md,
docs/models.md, docs/throughput.md, and parts of docs/colour_world.md,
docs/kernels.md, docs/evaluation.md, docs/small_world.md and README.md between
two markers. A test does the same and compares, so that no number is typed.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import importlib
import json
import pathlib
from typing import Any

from pages import ablations
from pages import colour_world
from pages import evidence
from pages import kernels
from pages import models
from pages import peers
from pages import small_world
from pages import spreads
from pages import throughput

from videomla_jax.measuring import rates
from videomla_jax.measuring import record
from videomla_jax.runtime import config_files

ROOT = pathlib.Path(__file__).parents[1]
START, END = "<!-- measured: start -->", "<!-- measured: end -->"
_HEAD = """# Measured on GPUs

Every number on this page was measured on the device that stands above it, and
is a line of a file in docs/benchmarks. `python docs/make_benchmarks.py` writes
this page, and

```
python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=gpu
```

adds lines for the GPU that is there. Weights and inputs are random. Each number
is one machine on one day: ratios inside one run are what counts. In a row, the
fastest is bold.
"""
# Figures of a program, by what is added to its name, with their titles.
_COLUMNS = {
  "": "time",
  "rate": "frames/s",
  "first_chunk": "first chunk",
  "compile": "compile",
  "temporaries": "temporaries",
  "temporaries_predicted": "predicted",
  "state": "state",
  "peak_memory": "peak memory",
  "utilisation": "utilisation",
}
_PROGRAMS = {
  "chunk_step": "Chunk step, the network alone",
  "vae_decode": "Decoder, a chunk",
  "text_to_pixels": "Text embeddings to pixels, a chunk",
  "training_step": "Training step",
}


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a table in Markdown."""
  lines = [titles, ["---"] * len(titles), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _has_value(line: record.Line) -> bool:
  """Whether a line is a number and no error."""
  return line.get("value") is not None


def _value(line: record.Line) -> str:
  value = line["value"]
  digits = f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
  return f"{digits} {line['unit']}"


def _sessions(lines: list[record.Line]) -> list[list[record.Line]]:
  """Groups lines by commit and versions, in the order of the record."""
  groups: dict[str, list[record.Line]] = {}
  for line in lines:
    key = repr((line["commit"], sorted(line["versions"].items())))
    groups.setdefault(key, []).append(line)
  return [*groups.values()]


def _newest(lines: Iterable[record.Line]) -> list[record.Line]:
  """Returns the last line of every figure, in the order of the first."""
  key = lambda x: (record.label(x), x.get("unit"), x.get("note"))
  return [*{key(x): x for x in lines}.values()]


def _attention(lines: list[record.Line], name: str) -> str:
  """Returns a table of calls and of what computes them."""
  chosen = [
    x
    for x in lines
    if x["name"] == name and _has_value(x) and x["unit"] == "us"
  ]
  call = lambda x: (x.get("shape"), x.get("holes"), x.get("direction"))
  how = lambda x: " ".join(
    str(x[k]) for k in ("implementation", "form") if x.get(k)
  )
  columns = [*dict.fromkeys(map(how, chosen))]
  rows = []
  for key in dict.fromkeys(map(call, chosen)):
    times = {how(x): x["value"] for x in chosen if call(x) == key}
    best = min(times.values())
    cells = [
      "" if c not in times
      else f"**{times[c]:,.0f}**" if times[c] == best
      else f"{times[c]:,.0f}"
      for c in columns
    ]  # fmt: skip
    shape, holes, direction = key
    rows.append(
      [str(shape), "some" if holes else "none", str(direction), *cells]
    )
  titles = ["shape", "invalid frames", "direction", *columns]
  return table(titles, rows) if rows else ""


def _programs(lines: list[record.Line], name: str) -> str:
  """Returns a table of programs and their figures."""
  program = lambda x: ", ".join(
    str(x[k]) for k in ("attention", "shape", "implementation") if x.get(k)
  )
  found: dict[str, dict[str, str]] = {}
  for x in lines:
    suffix = str(x["name"]).removeprefix(name).removeprefix("_")
    if x["name"] in (name, f"{name}_{suffix}") and suffix in _COLUMNS:
      text = _value(x) if _has_value(x) else "failed"
      found.setdefault(program(x), {})[suffix] = text
  used = [c for c in _COLUMNS if any(c in row for row in found.values())]
  rows = [[p, *(row.get(c, "") for c in used)] for p, row in found.items()]
  titles = ["program", *(_COLUMNS[c] for c in used)]
  return table(titles, rows) if rows else ""


def _further(lines: list[record.Line]) -> str:
  """Returns a table of what stands in no other one."""
  shown = {f"{n}_{c}" if c else n for n in _PROGRAMS for c in _COLUMNS}
  rows = [
    [record.label(x).replace("/", ", "), _value(x), str(x.get("note", ""))]
    for x in lines
    if _has_value(x) and x["name"] not in shown and x["unit"] != "us"
  ]
  return table(["what", "value", ""], rows) if rows else ""


def _failed(lines: list[record.Line]) -> str:
  rows = [
    [record.label(x).replace("/", ", "), f"`{x['error']}`"]
    for x in lines
    if "error" in x
  ]
  return table(["what", "error"], rows) if rows else ""


def page(records: Sequence[list[record.Line]]) -> str:
  """Returns the page.

  Args:
    records: The lines of each device's record.
  """
  parts = [_HEAD]
  for lines in records:
    for session in reversed(_sessions(lines)):
      first = session[0]
      versions = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
      parts.append(f"## {first['device']}, commit {first['commit']}\n")
      parts.append(f"{first['date']}; {versions}.\n")
      session = _newest(session)
      sections = {
        "Latent attention, microseconds of a whole call": _attention(
          session, "latent_attention"
        ),
        "Dense attention, microseconds of a call": _attention(
          session, "dense_attention"
        ),
        **{t: _programs(session, n) for n, t in _PROGRAMS.items()},
        "Further numbers": _further(session),
        "What failed": _failed(session),
      }
      for title, text in sections.items():
        parts += [f"### {title}\n", text] if text else []
  return "\n".join(parts)


def summary(lines: list[record.Line]) -> str:
  """Returns the README's table: chunk steps of the newest session.

  Args:
    lines: The lines of one device's record.
  """
  session = _newest(_sessions(lines)[-1])
  first = session[0]
  rows = []
  for x in session:
    if x["name"] == "chunk_step" and _has_value(x):
      same = dict(x, name="chunk_step_rate")
      rate = next(
        (y for y in session if record.label(y) == record.label(same)), None
      )
      program = f"{x.get('attention')}, {x.get('implementation')}, {x['shape']}"
      rows.append(
        [program, f"{x['value']:.0f}", f"{rate['value']:.1f}" if rate else ""]
      )
  about = (
    f"{first['device']}, {first['date']}, commit {first['commit']} "
    "([docs/benchmarks.md](docs/benchmarks.md)):"
  )
  titles = ["network, attention by, sizes", "ms a chunk", "frames/s"]
  return f"{about}\n\n{table(titles, rows)}"


_MEMORY_HEAD = """# Memory, and how many videos fit

Chunk steps of Wan-1.3B (480 x 832, bfloat16, four passes and the commit) were
compiled for GPUs that were not there, and nothing has run.
`python docs/make_benchmarks.py` writes this page from
docs/benchmark_memory.jsonl, and

```
JAX_PLATFORMS=cpu python -m videomla_jax.benchmark \\
  --config=configs/benchmark.py:suite=memory
```

adds cases to that file (extra `aot`; three programs for each case, about half a
minute each).

- *First video*: arguments (weights, cache, text) and temporaries of one video.
- *Each further*: what a video adds, from programs for one and for eight.
- *Fit*: videos side by side in all memory of the device. The programs of these
  batches were compiled too, and need what stands in brackets; where that is
  more than there is (H100: 84.9 GB), one or two of a hundred are too many. JAX
  itself sets aside three quarters of a GPU unless
  `XLA_PYTHON_CLIENT_MEM_FRACTION` says otherwise.
- *Tiny*, *Wan*: how many fit if the decoder with its weights and its memory of
  earlier frames stays beside the network; its activations come on top and are
  not counted.
- *Window* 1+6 is one sink frame and six local ones, the chunk included; 21 is
  every frame of a clip of 5 s.

The paper reports for one B200 and a cache of 21 frames: dense 6.26 GB a request
and a batch of 28; latents of 64 to 512 channels 0.57 to 1.43 GB, and 4.6 to
more than 11.4 times the batch, 8.0 times at 192. Here the chunk's own frames
are not cached (18 of 21 are), a video needs its cache and little else, and no
decoder is counted in *fit*; the paper does not say what its requests hold
beside the cache.
"""


def memory_page(lines: Sequence[record.Line]) -> str:
  """Returns the page about memory.

  Args:
    lines: The record of `suite=memory`; later lines replace earlier ones.
  """
  parts = [_MEMORY_HEAD]
  case = lambda x: (x["device"], x["spare_memory"], x["window"], x["d_c"])
  newest = {(*case(x), x["decoder"]): x for x in lines}
  for group in sorted({k[:3] for k in newest}):
    device, spare, window = group
    sparing = ", memory spared" if spare else ""
    parts.append(f"## {device.upper()}, window {window}{sparing}\n")
    sizes = sorted({k[3] for k in newest if k[:3] == group})
    dense = newest.get((*group, 0, "none"))
    rows = [
      _memory_row(
        {k[4]: x for k, x in newest.items() if k[:4] == (*group, d_c)}, dense
      )
      for d_c in sizes
    ]
    titles = ("attention", "cache", "temporaries", "first video")
    titles += ("each further", "fit", "of dense", "tiny", "Wan")
    parts.append(table(titles, rows))
  return "\n".join(parts)


def _memory_row(
  by_decoder: dict[str, record.Line], dense: record.Line | None
) -> list[str]:
  """Returns a line of the table: one size of the latent."""
  alone = by_decoder["none"]
  fit = f"{alone['largest_batch']}"
  if "total_bytes_at_largest_batch" in alone:
    fit += f" ({alone['total_bytes_at_largest_batch'] / 1e9:.0f} GB)"
  ratio = ""
  if dense and alone["d_c"]:
    ratio = f"{alone['largest_batch'] / dense['largest_batch']:.1f}x"
  return [
    f"latent, d_c = {alone['d_c']}" if alone["d_c"] else "dense",
    f"{alone['cache_bytes'] / 1e6:,.0f} MB",
    f"{alone['temp_bytes'] / 1e6:,.0f} MB",
    f"{alone['total_bytes'] / 1e9:.2f} GB",
    f"{alone['bytes_per_video'] / 1e6:,.0f} MB",
    fit,
    ratio,
    str(by_decoder["tiny"]["largest_batch"]),
    str(by_decoder["wan"]["largest_batch"]),
  ]


_FEW = 10  # videos of a folder that have a column each


def measures_section(lines: Sequence[record.Line]) -> str:
  """Returns the tables of measures without weights.

  Args:
    lines: The record of `evaluate`; later lines replace earlier ones.
  """
  columns = {x.get("checkpoint") or x["folder"]: x for x in lines}
  many = {k: x for k, x in columns.items() if x["num_videos"] > _FEW}
  parts = []
  if many:
    names = next(iter(many.values()))["summary"]
    rows = [
      [name, *(spreads.spread(x["summary"].get(name)) for x in many.values())]
      for name in names
    ]
    titles = [f"{k}, n = {x['num_videos']}" for k, x in many.items()]
    parts.append(table(["mean ± deviation", *titles], rows))
  for folder, line in columns.items():
    if folder not in many:
      videos = line["videos"]
      rows = [
        [name, *(spreads.four(x["measures"][name]) for x in videos.values())]
        for name in line["summary"]
      ]
      titles = [
        f"{name} ({x['frames']} frames, {x['fps']:.4g} a second)"
        for name, x in videos.items()
      ]
      parts.append(table([folder, *titles], rows))
  return "\n".join(parts)


def between(text: str, new: str, *, start: str = START, end: str = END) -> str:
  """Replaces what stands between the markers of a text.

  Args:
    text: A document.
    new: What is to stand there.
    start: The marker in front of it.
    end: The marker behind it.

  Raises:
    ValueError: If the document lacks them.
  """
  before, _, rest = text.partition(start)
  _, found, after = rest.partition(end)
  if not found:
    raise ValueError(f"the text lacks {start} and {end}")
  return f"{before}{start}\n{new}{end}{after}"


def _report(name: str) -> dict[str, Any]:
  """Returns the report of `evaluate` that a page quotes."""
  path = ROOT / "docs" / f"{name}.json"
  return json.loads(path.read_text("utf-8"))


def _colour_page(text: str) -> str:
  """Returns the page of the colour world with its tables."""
  with config_files.importing_from(ROOT / "configs"):
    whole = importlib.import_module("world").get_config("all")
  lines = colour_world.runs(ROOT)
  tables = {
    (colour_world.START, colour_world.END): colour_world.table(
      colour_world.read(ROOT), whole
    ),
    (
      colour_world.RATES_START,
      colour_world.RATES_END,
    ): colour_world.rates(lines),
    (
      colour_world.JUDGED_START,
      colour_world.JUDGED_END,
    ): colour_world.judged(_report("colour_world")),
  }
  for name in colour_world.RUNS:
    marks = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    tables[marks] = colour_world.run(lines, name)
  for (start, end), table in tables.items():
    text = between(text, table, start=start, end=end)
  return text


def _kernel_page(text: str) -> str:
  """Returns the page of kernels with its tables."""
  folder = ROOT / "docs"
  rows = lambda name: kernels.read(folder / f"{name}.jsonl")
  tables = {
    (kernels.START, kernels.END): kernels.table(rows("benchmark_kernels")),
    (
      kernels.FLOAT8_START,
      kernels.FLOAT8_END,
    ): kernels.float8_table(rows("float8_errors")),
    (
      kernels.ERRORS_START,
      kernels.ERRORS_END,
    ): kernels.errors_table(rows("pass_errors")),
  }
  tables |= {
    peers.markers(name): peers.table(rows("peers"), name)
    for name in ("attention", "rollout_chunk")
  }
  for (start, end), table in tables.items():
    text = between(text, table, start=start, end=end)
  return text


def documents() -> dict[pathlib.Path, str]:
  """Returns the text of each document by its path."""
  folder = ROOT / "docs" / "benchmarks"
  records = [record.read(path) for path in sorted(folder.glob("*.jsonl"))]
  readme = ROOT / "README.md"
  kernel_page = ROOT / "docs" / "kernels.md"
  memory = record.read(ROOT / "docs" / "benchmark_memory.jsonl")
  measured = rates.Measured.read(ROOT / "docs")
  evaluation = ROOT / "docs" / "evaluation.md"
  quality = record.read(ROOT / "docs" / "measures.jsonl")
  world_page = ROOT / "docs" / "small_world.md"
  world = _report("small_world")
  colour_page = ROOT / "docs" / "colour_world.md"
  return {
    ROOT / "docs" / "benchmarks.md": page(records),
    ROOT / "docs" / "memory.md": memory_page(memory),
    ROOT / "docs" / "ablations.md": ablations.page(
      record.read(ROOT / "docs" / "ablations.jsonl")
    ),
    ROOT / "docs" / "evidence.md": evidence.page(ROOT),
    ROOT / "docs" / "models.md": models.page(ROOT),
    ROOT / "docs" / "throughput.md": throughput.page(measured),
    kernel_page: _kernel_page(kernel_page.read_text("utf-8")),
    readme: between(
      between(readme.read_text("utf-8"), summary(records[0])),
      small_world.quality(world),
      start=small_world.START,
      end=small_world.END,
    ),
    world_page: between(
      world_page.read_text("utf-8"),
      small_world.whole(world),
      start=small_world.START,
      end=small_world.END,
    ),
    colour_page: _colour_page(colour_page.read_text("utf-8")),
    evaluation: between(
      between(evaluation.read_text("utf-8"), measures_section(quality)),
      spreads.beyond(quality),
      start=spreads.START,
      end=spreads.END,
    ),
  }


if __name__ == "__main__":
  for path, text in documents().items():
    path.write_text(text, "utf-8")
    print(path.relative_to(ROOT))
