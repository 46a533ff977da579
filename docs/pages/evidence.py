"""Writes docs/evidence.md: the paper's claims beside what is known here."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

from videomla_jax.ablations import page as ablations
from videomla_jax.ablations import statistics
from videomla_jax.costs import chunk_time
from videomla_jax.measuring import rates
from videomla_jax.measuring import record
from videomla_jax.models import wan_config
from videomla_jax.ops import device

_PAGE = """# Evidence: the paper's claims, one by one

What VideoMLA (arXiv:2605.30351) reports, and what this project can say of it.
`python docs/make_benchmarks.py` writes this page from the files that the named
commands write; a number that no file holds is not here. Released weights were
not at hand, and one GPU was, once, before most of today's code. So a verdict is
one of

- **holds**: it follows from sizes, or was counted,
- **reproduced in small**: seen in the small world, with its seeds and spread,
- **compiled only**: read from programs that were compiled for a GPU,
- **measured** or **computed** on a GPU that is named,
- **contradicted**: seen otherwise in the setting that is named,
- **not testable here**, with the reason.

{table}"""
_TITLES = (
  "claim",
  "paper",
  "here",
  "setting, seeds and spread",
  "command or test",
  "verdict",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """One row.

  Attributes:
    claim: What the paper says.
    paper: Its number.
    here: Ours.
    setting: What it was seen on, with seeds and spread.
    command: What writes the number.
    verdict: See the head of the page.
  """

  claim: str
  paper: str
  here: str
  setting: str
  command: str
  verdict: str

  def cells(self) -> list[str]:
    """Returns the row."""
    return [*dataclasses.asdict(self).values()]


def _cache() -> Iterator[Claim]:
  """Yields what follows from sizes."""
  latent = wan_config.wan_1p3b(kind="latent").attention.cached_scalars
  dense = wan_config.wan_1p3b(kind="dense").attention.cached_scalars
  yield Claim(
    claim="Scalars in the cache per token and layer",
    paper="3072 dense, 224 latent, -92.7 %",
    here=f"{dense} dense, {latent} latent, {latent / dense - 1:.1%}",
    setting="Wan-1.3B",
    command="`tests/models/attention_test.py`",
    verdict="holds",
  )


def _fits(
  lines: Sequence[record.Line], window: str, target: str
) -> dict[int, Any]:
  """Returns the newest lines without a decoder, by d_c."""
  return {
    x["d_c"]: x
    for x in lines
    if (x["window"], x["device"], x["decoder"]) == (window, target, "none")
  }


def _memory(lines: Sequence[record.Line]) -> Iterator[Claim]:
  """Yields what was compiled about memory."""
  found = _fits(lines, "21", "b200")
  dense, sizes = found[0], sorted(d for d in found if d)
  ratio = lambda d: found[d]["largest_batch"] / dense["largest_batch"]
  per_video = lambda d: found[d]["bytes_per_video"] / 1e9
  command = "`benchmark --config=configs/benchmark.py:suite=memory`"
  yield Claim(
    claim="A dense cache of 21 frames fills one B200 at batch 28, 6.26 GB each",
    paper="28; 6.26 GB",
    here=f"{dense['largest_batch']}; {per_video(0):.2f} GB",
    setting="1.3B, 480 x 832; here 18 of the 21 frames are cached, and no"
    " decoder is counted",
    command=command,
    verdict="compiled only",
  )
  yield Claim(
    claim="Latents allow larger batches",
    paper="4.6x (512) to over 11.4x (64); 8.0x at 192",
    here=", ".join(f"{ratio(d):.1f}x ({d})" for d in sizes),
    setting="the same; a video needs "
    + ", ".join(f"{per_video(d):.2f} GB ({d})" for d in sizes)
    + "; the paper 0.57 to 1.43 GB",
    command=command,
    verdict="compiled only: at least as large",
  )
  short = _fits(lines, "1+6", "b200")
  gain = short[192]["largest_batch"] / short[0]["largest_batch"]
  yield Claim(
    claim="The gain is the cache's (not in the paper)",
    paper="-",
    here=f"{gain:.1f}x at 192",
    setting="window of 1 sink and 6 local frames: dense caches are small too",
    command=command,
    verdict="compiled only",
  )


def _throughput(measured: rates.Measured) -> Iterator[Claim]:
  """Yields what was measured and computed about speed."""
  line = rates.chunk_line(measured)
  work, shares = rates.work_of(line), measured.shares()
  of = lambda major: sum(
    chunk_time.seconds(work, shares, device.PEAKS[major]).values()
  )
  took = measured.rate(
    "chunk_step", "ms", implementation="cudnn", attention="latent",
    shape="480x832, 12 pixel frames",
  )  # fmt: skip
  peer = measured.rate(
    "chunk_step", "ms", implementation="torch",
    shape="480x832, 12 pixel frames, window 7, sink 1",
  )  # fmt: skip
  yield Claim(
    claim="Frames per second on one B200 at 480 x 832",
    paper="23.96, text to pixels",
    here=f"{12 / of(10):.0f}, the network alone; {12 / of(9):.0f} on an H100",
    setting="the shares of the data sheet that one H100 reached",
    command="`benchmark --config=configs/benchmark.py:suite=work`, `suite=gpu`",
    verdict="computed",
  )
  yield Claim(
    claim="Faster than the dense student",
    paper="1.33x (23.96 against 18.06, Self-Forcing)",
    here=f"{peer / took:.2f}x",
    setting="one H100, once, commit 499dede: our latent network against"
    " Self-Forcing's PyTorch code with the same window, the network alone",
    command="`benchmark --config=configs/benchmark.py:suite=gpu`",
    verdict="measured on an H100; PyTorch without flash-attn",
  )


def _rollout(rollout: Mapping[str, Any]) -> Iterator[Claim]:
  """Yields what was measured about long videos."""
  minutes = rollout["seconds_of_video"] / 60
  yield Claim(
    claim="Time and memory per chunk do not grow with the video",
    paper="constant",
    here=f"last over first fifth of {rollout['step_time']['chunks']} chunks:"
    f" {rollout['step_time']['ratio']:.2f}; temporaries of ten seconds and of"
    f" {minutes:.0f} minutes:"
    f" {rollout['memory_ten_seconds']['temporaries']:,} and"
    f" {rollout['memory_whole']['temporaries']:,} B",
    setting="small world, two CPU cores, one run",
    command="`benchmark`",
    verdict="reproduced in small",
  )


def _ranks(report: Mapping[str, Any]) -> Iterator[Claim]:
  """Yields what was measured about spectra."""
  found = {x["checkpoint"]: x for x in report["summary"]}
  dense, latent = found["small_dense"], found["small_latent"]
  share = lambda x: f"{x['rank_median']:.0f} of {x['highest_rank']}"
  command = "`analyze`"
  yield Claim(
    claim="Dense keys and values fill most directions",
    paper="above 1300 of 1536, every layer",
    here=f"{share(dense)} ({dense['rank_least']} to {dense['rank_most']})",
    setting="shipped small_dense, 4 layers, one training",
    command=command,
    verdict="reproduced in small",
  )
  yield Claim(
    claim="A trained latent uses its whole budget",
    paper="about 0.98 d_c, every d_c",
    here=f"{share(latent)} in every layer",
    setting="shipped small_latent, 4 layers, one training",
    command=command,
    verdict="reproduced in small",
  )


def _ablations(lines: Sequence[record.Line]) -> Iterator[Claim]:
  """Yields what ablations of the small world say of the paper's question."""
  rows = ablations.rows_of(lines)
  base = rows["base"]
  mean = lambda name, key: statistics.summarise(
    [*rows[name].values(key).values()]
  )
  free = [
    name
    for name, row in rows.items()
    if row.first.get("attention") == "latent"
    and "rank" in row.first
    and "forced" not in name
  ]
  by_budget: dict[float, list[float]] = {}
  for name in free:
    highest = float(rows[name].first["rank_highest"])
    by_budget.setdefault(highest, []).append(mean(name, "rank").mean)
  ranks = "; ".join(
    f"{min(found):.1f} to {max(found):.1f} of {highest:.0f} ({len(found)} rows)"
    for highest, found in sorted(by_budget.items())
  )
  budget = f"small world; {base.budget}; {len(base.lines)} seeds a row"
  yield _claim(
    "The budget is occupied for every size and start",
    "about 0.98 d_c, SVD and random starts",
    ranks,
    "small world; every row of its own start and training that is not forced,"
    f" digits and films, stage 1 and students; {len(base.lines)} seeds a row;"
    " 99 % rank, mean over layers and seeds",
    "reproduced in small; a calibrated start begins"
    f" at {mean('calibrated start', 'rank_at_start').mean:.1f}",
  )
  yield _claim(
    "How a head is split into content and position matters",
    "VBench total 76.47 (112/16), 83.89 (96/32), 80.83 (64/64), 78.31 (32/96)",
    "against 24/8: "
    + "; ".join(
      f"{32 - n}/{n}: loss {_difference(rows, f'd_rope={n}', 'base')}, steps"
      f" {_difference(rows, f'd_rope={n}', 'base', 'steps')}"
      for n in (4, 16, 24)
    ),
    f"{budget}; paired by seed, 95 % intervals; heads of 32 channels; the same"
    " start",
    "in small: an eighth is too little for positions, more than a quarter is"
    " not seen to cost anything",
  )
  pairs = (("rank 4 forced", "d_c=4"), ("rank 8 forced", "d_c=8"))
  yield _claim(
    "Asked by reviewers: does the budget or the occupied rank decide?",
    "-",
    "held-out loss, "
    + "; ".join(
      f"{one} against {other}: {_difference(rows, one, other)}"
      for one, other in (*pairs, ("rank 8 forced", "base"))
    ),
    f"{budget}; paired by seed, 95 % intervals; the same start",
    "in small: the rank decides, a larger latent of that rank is not seen to"
    " be better",
  )


def _students(lines: Sequence[record.Line]) -> Iterator[Claim]:
  """Yields what ablations say of students that went through all stages."""
  rows = ablations.rows_of(lines)
  base, dense, random = (
    f"{name}, student" for name in ("base", "dense", "random start")
  )
  starts = {name: rows[name].first["start"] for name in (base, dense, random)}
  setting = (
    f"small world; {rows[base].budget}; {len(rows[base].lines)} seeds a row;"
    " paired by seed, 95 % intervals; "
  )
  yield _claim(
    "A latent may be too small; beyond a size nothing is gained",
    "VBench total 78.30 (64), 83.24 (128), 83.66 (256), 83.40 (512)",
    "against d_c = 16: "
    + "; ".join(
      f"{n}: steps {_difference(rows, f'd_c={n}, student', base, 'steps')}"
      for n in (4, 8, 32, 64)
    ),
    f"{setting}one start: {starts[base]}",
    "in small: four channels are too few, other sizes are not told apart",
  )
  yield _claim(
    "A latent student is as good as a dense one",
    "VBench, 30 s, overall: .859; dense .762 (Self-Forcing), .792 (Causal"
    " Forcing)",
    "latent against dense: " + _all_of(rows, base, dense),
    f"{setting}other starts: {starts[base]}; dense {starts[dense]}",
    "not told apart in small, with little training and wide intervals",
  )
  yield _claim(
    "Students of spectral starts are better than those of random ones",
    "SVD and random starts are compared by rank only",
    "random against spectral: " + _all_of(rows, random, base),
    f"{setting}other starts: {starts[random]}; spectral {starts[base]}",
    "yes, in small and with little training",
  )


def _rollouts(lines: Sequence[record.Line]) -> Iterator[Claim]:
  """Yields what shipped models say of how a rollout is made."""
  rows = ablations.rows_of(lines)
  base, stage1 = "student, 4 steps", "stage 1, 10 steps"
  setting = (
    f"shipped models, videos of 15 s; {len(rows[base].lines)} seeds of the"
    " noise, one training; paired, 95 % intervals"
  )
  last_pass = "commits the last denoising pass"
  yield _claim(
    "Entries are cached in a pass over the clean chunk",
    "done, not ablated",
    "without it, student: "
    + _all_of(rows, f"student, {last_pass}", base)
    + ". Stage 1: "
    + _all_of(rows, f"stage 1, {last_pass}", stage1),
    setting,
    "supported in small for the student, not for stage 1",
  )
  yield _claim(
    "One sink frame is kept",
    "done, not ablated",
    "student without it: " + _all_of(rows, "student, no sink", base),
    setting,
    "not seen in small: this world needs no sink",
  )
  yield _claim(
    "The cache may be rounded (not in the paper)",
    "-",
    "student, int8: " + _all_of(rows, "student, cache in int8", base),
    setting,
    "reproduced in small: no difference is seen",
  )


def _claim(
  claim: str, paper: str, here: str, setting: str, verdict: str
) -> Claim:
  """Returns what an ablation says of a claim."""
  return Claim(
    claim=claim,
    paper=paper,
    here=here,
    setting=setting,
    command="[`ablate`](ablations.md)",
    verdict=verdict,
  )


def _all_of(rows: Mapping[str, ablations.Row], one: str, other: str) -> str:
  """Returns the differences of what the judge measures."""
  keys = ("identity", "count", "steps")
  found = (f"{key} {_difference(rows, one, other, key)}" for key in keys)
  return "; ".join(found)


def _difference(
  rows: Mapping[str, ablations.Row], one: str, other: str, key: str = "loss"
) -> str:
  """Says a paired difference of a measure with its interval."""
  x = statistics.differences(rows[one].values(key), rows[other].values(key))
  assert x is not None
  low, high = x.mean - x.half, x.mean + x.half
  return f"{x.mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def _untested() -> Iterator[Claim]:
  """Yields what cannot be tested here."""
  no = "not testable here: no released weights were at hand"
  yield Claim(
    claim="VBench over 30 s and 60 s",
    paper="overall .859 and .859",
    here="-",
    setting="`evaluate` makes the videos and the comparison",
    command="[evaluation.md](evaluation.md)",
    verdict=no,
  )
  yield Claim(
    claim="Scores by size of the latent and by split",
    paper="totals 78.30 to 83.66; 76.47 to 83.89",
    here="-",
    setting="1.3B has to be trained for each",
    command="-",
    verdict=no,
  )


def page(root: pathlib.Path) -> str:
  """Returns the page.

  Args:
    root: Folder of the project.
  """
  docs = root / "docs"
  read = lambda name: json.loads((docs / name).read_text("utf-8"))
  claims = [
    *_cache(),
    *_memory(record.read(docs / "benchmark_memory.jsonl")),
    *_throughput(rates.Measured.read(docs)),
    *_rollout(read("benchmark_rollout.json")),
    *_ranks(read("ranks_small.json")),
    *_ablations(record.read(docs / "ablations.jsonl")),
    *_students(record.read(docs / "ablations.jsonl")),
    *_rollouts(record.read(docs / "ablations.jsonl")),
    *_untested(),
  ]
  rows = [_TITLES, ["---"] * len(_TITLES), *(c.cells() for c in claims)]
  table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
  return _PAGE.format(table=table)
