"""Writes docs/throughput.md from records, for make_benchmarks.py."""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses

from videomla_jax.costs import chunk_time
from videomla_jax.measuring import chunk_programs
from videomla_jax.measuring import rates
from videomla_jax.measuring import record
from videomla_jax.ops import device

_PIXEL_FRAMES = 12  # of a chunk of three latent frames
_GPUS = {"H100": 9, "B200": 10, "A100": 8}  # keys of `device.PEAKS`
_LATENT = "latent, window 1+6"
_LAUNCH = 5e-6  # seconds, assumed
_PAPER = 23.96  # frames/s on one B200, arXiv:2605.30351
_PAGE = """# How fast a chunk is, and what its time is made of

Wan-1.3B at 480 x 832, bfloat16, four passes and the commit, a full window, on
one GPU. **Computed and not timed**, unless a number says that it was measured.
`python docs/make_benchmarks.py` writes this page from two kinds of files:

- docs/benchmark_work.jsonl: what a chunk computes, counted in its trace, and
  what it moves beside products and attention, counted in the program that was
  compiled for an H100. `JAX_PLATFORMS=cpu python -m videomla_jax.benchmark
  --config=configs/benchmark.py:suite=work` adds to it (extra `aot`; a program
  for each row).
- docs/benchmarks: the rates that one H100 reached, measured by `suite=gpu`.

A part takes its operations or bytes over the rate that such a part reached on
that H100, and parts run one after the other
(`videomla_jax/costs/chunk_time.py`). On other GPUs it is the same share of the
data sheet, which is a guess.

## The rates

{rates}
Only one gradient was timed, of one frame of queries, which is a smaller call
than those of training. "Beside" is what elementwise operations, copies and
concatenations of commit 499dede took ({beside:.1f} ms a chunk) for the bytes
that are counted in its program.

## Checked against what was timed

The H100 timed four chunk steps of commit 499dede. Attention has the rate of its
kernel. The bytes beside products are those of that commit's latent program, and
for dense attention those of today's. No rate comes from these times; the time
beside products is that of the first program, of which it is a quarter. By
parts the first program's error is larger: attention to the text took {text:.0f}
ms and is computed as {text_computed:.0f}, since it has no rate of its own.

{check}
## Frames per second

Time of a chunk, pixel frames per second of all its videos, and in brackets the
least time by the data sheet. The time of a chunk is also how long one waits for
its twelve frames, beside the decoder. Bytes are those of the program for an
H100 on every GPU. "Window" is sink and local frames, the chunk included; 21 is
every frame of a clip of 5 s.

{speeds}
The paper reports {paper} frames/s on a B200, in PyTorch and with everything
between text and pixels. The network alone would reach {b200:,.0f} there if each
part reached the same share as on the H100. No program and no kernel of ours has
run on a B200.

## What the time is made of

{parts}
## The two forms of latent attention

{forms}
## Decoders

Least time by the data sheet, convolutions and bytes one after the other. On the
H100, decoding by `wan` took {decode:.0f} ms at commit 499dede, which moved
three times as much beside its convolutions; today's program was not timed.

{decoders}
## Attention's share in training

One clip of 81 frames; operations of the trace, with activations that are
computed again. Behind each kernel: seconds on one H100 for products and
attention alone, attention's share of them, and how much of the data sheet is
used. Before the choice followed the record, `pallas_triton` computed attention
with a gradient. What is moved beside products is not counted here, and passes
without a gradient, which distribution matching has, are taken at the rate of
those with one.

{training}
## Small models: launches

A chunk of the demo's four videos has so little work that the number of kernels
could decide. Its program for an H100 was compiled, not run:

{small}
At 5 us a launch, which is an assumption, a minute of video has launches for
{launches:.1f} s. The demo took {demo:.0f} s on that H100, so launches alone do
not explain it; the rest may be the start of CUDA, compiling, and writing files.
A second start compiles nothing, since compiled programs are kept.
"""


_PRODUCTS = {
  "float8_per_token": "float8 products",
  "float8_constant": "float8 products with constant scales",
}


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [titles, ["---"] * len(titles), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _case(line: record.Line) -> str:
  words = [line["attention"], f"window {line['window']}"]
  words += [f"{line['batch']} videos"] if line["batch"] > 1 else []
  words += [f"{line['cache']} cache"] if line["cache"] != "bfloat16" else []
  words += (
    [_PRODUCTS[line["products"]]] if line["products"] != "bfloat16" else []
  )
  return ", ".join(words)


def _chunk_lines(work: Sequence[record.Line]) -> list[record.Line]:
  """Returns the newest chunk steps that were compiled for an H100."""
  chosen = [
    x for x in work if x["name"] == "chunk_step" and x["target"] == "h100"
  ]
  newest = {_case(x): x for x in chosen}.values()
  order = lambda x: (
    x["attention"] == "dense",
    [*chunk_programs.WINDOWS].index(x["window"]),
    x["batch"],
  )
  return sorted(newest, key=order)


def _rates(measured: rates.Measured) -> str:
  """Tabulates the rates, and where each one is from."""
  shares, sheet = measured.shares(), measured.peak
  flops = lambda share: [
    f"{share * sheet.bf16_flops / 1e12:,.0f} TFLOP/s",
    f"{share:.0%}",
  ]
  dense = measured.rate("dense_attention", "TFLOP/s", implementation="cudnn")
  rows = [
    ["products", *flops(shares.products), "a product of 8192 x 8192 x 8192"],
    ["attention", *flops(shares.attention), "`cudnn`, the whole call at 480p"],
    ["dense, window 21", *flops(dense * 1e12 / sheet.bf16_flops),
     "`cudnn`, the call of such a layer"],
    ["with gradient", *flops(shares.gradient), "`cudnn`, `480p_framewise`"],
    ["beside", f"{shares.beside * sheet.bandwidth / 1e12:.2f} TB/s",
     f"{shares.beside:.0%}", "the profile of a chunk"],
  ]  # fmt: skip
  return _table(["part", "rate", "of the data sheet", "from"], rows)


def _check(measured: rates.Measured) -> str:
  """Compares the model with chunk steps that were timed."""
  then = next(
    x for x in reversed(measured.work) if x["name"] == "chunk_step_as_measured"
  )
  by_case = {_case(x): x for x in _chunk_lines(measured.work)}
  activations = then["beside_bytes"] - then["weight_copy_bytes"]
  cases = (
    (_LATENT, "480x832, 12 pixel frames", "cudnn", 1),
    (_LATENT, "480x832, 12 pixel frames", "pallas_triton", 1),
    (f"{_LATENT}, 8 videos", "480x832, 12 pixel frames, 8 rows",
     "cudnn", 8),
    ("dense, window 21", "480x832, 12 pixel frames, window 21",
     "pallas_triton", 1),
  )  # fmt: skip
  rows = []
  for case, shape, implementation, videos in cases:
    if case not in by_case:
      continue
    work = rates.work_of(by_case[case])
    if not case.startswith("dense"):
      # What it moved then, where products were not cuBLAS's from the start.
      moved = then["weight_copy_bytes"] + videos * activations
      work = dataclasses.replace(work, beside_bytes=moved)
    shares = rates.shares_of(measured, by_case[case], implementation)
    computed = (
      sum(chunk_time.seconds(work, shares, measured.peak).values()) * 1e3
    )
    took = measured.rate(
      "chunk_step",
      "ms",
      shape=shape,
      implementation=implementation,
      attention=case.split(",")[0],
    )
    rows.append(
      [f"{case}, {implementation}", f"{took:,.0f} ms", f"{computed:,.0f} ms",
       f"{computed / took - 1:+.0%}".replace("-0%", "+0%")]
    )  # fmt: skip
  return _table(
    ["program of commit 499dede", "measured", "computed", "error"], rows
  )


def _speeds(measured: rates.Measured) -> str:
  """Tabulates times and rates of every case and GPU."""
  rows = []
  for line in _chunk_lines(measured.work):
    cells = [_case(line)]
    for major in _GPUS.values():
      if line["products"] != "bfloat16" and major < 9:
        cells.append("no float8")
        continue
      times = [
        sum(
          chunk_time.seconds(
            rates.work_of(line), shares, device.PEAKS[major]
          ).values()
        )
        for shares in (rates.shares_of(measured, line), chunk_time.SHEET)
      ]
      frames = _PIXEL_FRAMES * line["batch"] / times[0]
      cells.append(
        f"{times[0] * 1e3:,.0f} ms, {frames:,.1f} frames/s"
        f" ({times[1] * 1e3:,.0f} ms)"
      )
    rows.append(cells)
  return _table(["chunk step", *_GPUS], rows)


def _parts(measured: rates.Measured) -> str:
  """Tabulates what the time of a chunk is made of, on an H100."""
  rows = []
  for line in _chunk_lines(measured.work):
    times = chunk_time.seconds(
      rates.work_of(line), rates.shares_of(measured, line), measured.peak
    )
    whole = sum(times.values())
    cells = [f"{t * 1e3:,.0f} ms ({t / whole:.0%})" for t in times.values()]
    rows.append([_case(line), *cells, f"{line['beside_bytes'] / 1e9:,.1f} GB"])
  titles = ["chunk step, H100", "products", "self-attention", "text", "beside"]
  return _table([*titles, "moved beside"], rows)


def _forms(measured: rates.Measured) -> str:
  """Compares the two forms by the rates of the kernels that have both."""
  line = {_case(x): x for x in _chunk_lines(measured.work)}[
    "latent, window 1+6"
  ]
  rows = []
  for implementation, form in (
    ("cudnn", "expanded"),
    ("pallas_triton", "expanded"),
    ("pallas_triton", "absorbed"),
  ):
    shares = measured.shares(implementation, form)
    work = rates.work_of(line, form)
    times = chunk_time.seconds(work, shares, measured.peak)
    rows.append(
      [
        f"{form}, `{implementation}`",
        f"{work.attention_flops / 1e12:.1f}",
        f"{times['attention'] * 1e3:,.0f} ms",
        f"{sum(times.values()) * 1e3:,.0f} ms",
      ]
    )
  titles = ["form", "TFLOP of self-attention", "self-attention", "chunk"]
  return _table(titles, rows)


def _decoders(measured: rates.Measured) -> str:
  """Tabulates the least time of decoders."""
  chosen = [
    x for x in measured.work if x["name"] == "decode" and x["target"] == "h100"
  ]
  rows = []
  for name, line in {x["decoder"]: x for x in chosen}.items():
    cells = [name, f"{line['product_flops'] / 1e12:.1f}",
             f"{line['beside_bytes'] / 1e9:.1f} GB"]  # fmt: skip
    for major in _GPUS.values():
      peak = device.PEAKS[major]
      least = line["product_flops"] / peak.bf16_flops
      least += line["beside_bytes"] / peak.bandwidth
      cells.append(f"{least * 1e3:,.0f} ms")
    rows.append(cells)
  titles = ["decoder, a chunk", "TFLOP", "moved beside convolutions"]
  return _table([*titles, *(f"{g}, at least" for g in _GPUS)], rows)


def _training(measured: rates.Measured) -> str:
  """Tabulates attention's share of every stage, before and after."""
  rows = []
  stages = [x for x in measured.work if x["name"] == "training_step"]
  for stage, line in {x["stage"]: x for x in stages}.items():
    both = line["product_flops"] + line["attention_flops"]
    cells = [
      stage,
      f"{both / 1e15:.2f}",
      f"{line['attention_flops'] / both:.0%}",
    ]
    for implementation in ("pallas_triton", "cudnn"):
      shares, peak = measured.shares(implementation), measured.peak.bf16_flops
      products = line["product_flops"] / (shares.products * peak)
      attention = line["attention_flops"] / (shares.gradient * peak)
      whole = products + attention
      used = both / peak / whole
      cells.append(f"{whole:.2f} s, {attention / whole:.0%}, {used:.0%}")
    rows.append(cells)
  titles = ["stage", "PFLOP a clip", "of which attention", "`pallas_triton`"]
  return _table([*titles, "`cudnn`"], rows)


def _small(work: Sequence[record.Line]) -> list[record.Line]:
  """Returns the newest chunk steps of small models for an H100."""
  chosen = [
    x for x in work if x["name"] == "small_chunk_step" and x["target"] == "h100"
  ]
  return [*{x["checkpoint"]: x for x in chosen}.values()]


def page(measured: rates.Measured) -> str:
  """Returns the page about throughput.

  Args:
    measured: What an H100 reached, and the record of `suite=work`.
  """
  small = _small(measured.work)
  latent = {_case(x): x for x in _chunk_lines(measured.work)}[_LATENT]
  peak = device.PEAKS[_GPUS["B200"]]
  times = chunk_time.seconds(rates.work_of(latent), measured.shares(), peak)
  return _PAGE.format(
    rates=_rates(measured),
    beside=measured.beside_seconds() * 1e3,
    check=_check(measured),
    text=measured.rate(
      "chunk_step_part_text_attention", "ms", implementation="cudnn"
    ),
    text_computed=1e3
    * chunk_time.seconds(
      rates.work_of(latent), measured.shares(), measured.peak
    )["text"],
    speeds=_speeds(measured),
    paper=_PAPER,
    b200=_PIXEL_FRAMES / sum(times.values()),
    parts=_parts(measured),
    forms=_forms(measured),
    decode=measured.rate("vae_decode", "ms", implementation="xla"),
    decoders=_decoders(measured),
    training=_training(measured),
    small=_table(
      ["model", "kernels a chunk", "chunks a minute", "moved a chunk"],
      [
        [
          x["checkpoint"],
          f"{x['kernels']:,}",
          str(x["chunks"]),
          f"{x['moved_bytes'] / 1e6:,.0f} MB",
        ]
        for x in small
      ],
    ),
    launches=sum(x["kernels"] * x["chunks"] for x in small) * _LAUNCH,
    demo=measured.rate("demo", "s"),
  )
