"""Memory of rollouts on GPUs that need not be here, and the largest batch.

  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=memory

The chunk step of a rollout is compiled for each device at two batches. Memory
grows by a constant per video (docs/method.md, section 3.5) beside what is there
once, so both tell the largest batch, and a third program, at that batch, checks
it. Compiled, and never run.
"""

from collections.abc import Iterator
import dataclasses
import functools
import pathlib
import re
from typing import NamedTuple

from videomla_jax.costs import gpus
from videomla_jax.costs import memory
from videomla_jax.measuring import chunk_programs
from videomla_jax.measuring import record
from videomla_jax.measuring import rollout_rows
from videomla_jax.models import wan_config
from videomla_jax.runtime import config_values

_FEW = 8  # rows of the second program
_MOST = 4096  # rows that a batch may have at all


class Case(NamedTuple):
  """A rollout on a device; `d_c` is 0 for dense attention."""

  d_c: int
  window: str
  device: str
  spare_memory: bool

  @property
  def config(self) -> wan_config.WanConfig:
    """Sizes of the network."""
    changes = dict(dtype="bfloat16", spare_memory=self.spare_memory)
    if self.d_c:
      return wan_config.wan_1p3b(kind="latent", d_c=self.d_c, **changes)
    return wan_config.wan_1p3b(kind="dense", **changes)

  @property
  def label(self) -> str:
    """The case in one line; `rows` of the config selects by it."""
    kind = f"latent {self.d_c}" if self.d_c else "dense"
    sparing = ", memory spared" if self.spare_memory else ""
    return f"{kind}, window {self.window}, {self.device}{sparing}"


class Bytes(NamedTuple):
  """Memory of one compiled program."""

  arguments: int
  temporaries: int


def compiled(case: Case, batch: int) -> Bytes:
  """Compiles the chunk step of a rollout.

  Args:
    case: The rollout and the device.
    batch: Videos side by side.

  Raises:
    NotImplementedError: If the compiler is not installed.
  """
  rows = rollout_rows.Case(
    window=chunk_programs.WINDOWS[case.window], videos=batch
  )
  program = chunk_programs.chunk_step(case.config, rows, target=case.device)
  # The results that are no donated arguments take memory, too.
  results = program.output_bytes - program.alias_bytes
  return Bytes(program.argument_bytes, program.temporary_bytes + results)


class _Line(NamedTuple):
  """Bytes that are there once, and bytes of each video."""

  once: float
  each: float

  @classmethod
  def through(cls, one: int, few: int) -> "_Line":
    each = (few - one) / (_FEW - 1)
    return cls(one - each, each)


def lines_of(case: Case) -> Iterator[record.Line]:
  """Compiles a case, and yields a line for each decoder.

  Args:
    case: The rollout and the device.
  """
  one, few = compiled(case, 1), compiled(case, _FEW)
  network = _Line.through(sum(one), sum(few))
  most = gpus.TARGETS[case.device].memory_bytes
  for decoder in chunk_programs.DECODERS:
    codec = chunk_programs.decoder(decoder)
    needs = functools.partial(
      memory.needs,
      chunk_programs.network(case.config),
      frame=chunk_programs.FRAME,
      window=chunk_programs.WINDOWS[case.window],
      max_frames=999,
      codec=codec,
      platform="gpu",
    )
    single, double = needs(rows=1, videos=1), needs(rows=2, videos=2)
    state = double.decoder_bytes - single.decoder_bytes
    room = most - network.once - (single.decoder_bytes - state)
    yield dict(
      name="memory",
      model="wan_1p3b",
      d_c=case.d_c,
      window=case.window,
      batch=1,
      device=case.device,
      devices=1,
      decoder=decoder,
      spare_memory=case.spare_memory,
      cache_bytes=single.cache_bytes,
      decoder_bytes=single.decoder_bytes,
      argument_bytes=one.arguments,
      temp_bytes=one.temporaries,
      total_bytes=sum(one) + single.decoder_bytes,
      bytes_per_video=round(network.each) + state,
      largest_batch=min(max(int(room / (network.each + state)), 0), _MOST),
    )


def checked(case: Case, line: record.Line) -> record.Line:
  """Adds the memory of a program at the largest batch, without a decoder.

  Args:
    case: The rollout and the device.
    line: Its line for no decoder.
  """
  found = sum(compiled(case, max(line["largest_batch"], 1)))
  return dict(line, total_bytes_at_largest_batch=found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorySuite:
  """Compiles rollouts of Wan-1.3B and tells how many fit side by side.

  Attributes:
    targets: Keys of `gpus.TARGETS`.
    latents: Sizes d_c of the content latent; 0 is dense attention.
    windows: Keys of `chunk_programs.WINDOWS`.
    spare_memory: Whether passes spare memory, see `WanConfig`.
    check: Whether the largest batch is compiled, too.
    again: Whether cases that the record has are compiled again.
    rows: Regular expression that a case must contain.
    record: File of the record, which is added to.
    json: File to which this run's lines are written as well; empty for none.
  """

  targets: tuple[str, ...]
  latents: tuple[int, ...]
  windows: tuple[str, ...]
  spare_memory: bool
  check: bool
  again: bool
  rows: str
  record: config_values.Path
  json: config_values.Path

  def __post_init__(self) -> None:
    record.check_names("targets", self.targets, gpus.TARGETS)
    record.check_names("windows", self.windows, chunk_programs.WINDOWS)
    if not self.latents:
      raise ValueError("latents=[] is empty; give sizes d_c, 0 for dense.")
    for d_c in self.latents:
      config_values.Range(0, 2**14)(d_c, "latents")
    record.check_pattern(self.rows)

  def cases(self) -> list[Case]:
    """Returns what is asked for."""
    every = [
      Case(d_c, window, target, self.spare_memory)
      for target in self.targets
      for window in self.windows
      for d_c in self.latents
    ]
    return [c for c in every if re.search(self.rows, c.label)]

  def run(self) -> list[record.Line]:
    """Compiles what the record does not have, and prints a table.

    Returns:
      The lines of what was asked for.

    Raises:
      ValueError: If the record cannot be read or written, or no case matches.
      NotImplementedError: If the compiler is not installed.
    """
    return record.gather(
      self.cases(),
      self._of,
      record=self.record,
      json_file=self.json,
      pattern=self.rows,
    )

  def _of(self, case: Case, path: pathlib.Path) -> list[record.Line]:
    """Takes the lines of a case out of the record, or makes them."""
    known = _known(case, path)
    if self.again or not known:
      lines = [*lines_of(case)]
      if self.check and lines[0]["largest_batch"] < _MOST:
        lines[0] = checked(case, lines[0])
      record.add(path, record.Session.here(), lines)
      known = _known(case, path)
    for line in known:
      print(said(line), flush=True)
    return known


def _known(case: Case, path: pathlib.Path) -> list[record.Line]:
  """Returns the newest line of each decoder."""
  mine = [
    x
    for x in record.read(path)
    if all(x.get(k) == v for k, v in case._asdict().items())
  ]
  return [*{x["decoder"]: x for x in mine}.values()]


def said(line: record.Line) -> str:
  """Says a line of the record in words."""
  kind = f"latent {line['d_c']}" if line["d_c"] else "dense"
  text = (
    f"{line['device']}, {kind}, window {line['window']}, decoder "
    f"{line['decoder']}: one video {line['total_bytes'] / 1e9:.2f} GB "
    f"(cache {line['cache_bytes'] / 1e6:.0f} MB, temporaries "
    f"{line['temp_bytes'] / 1e6:.0f} MB), each further one "
    f"{line['bytes_per_video'] / 1e6:.0f} MB, at most {line['largest_batch']}"
  )
  if "total_bytes_at_largest_batch" in line:
    found = line["total_bytes_at_largest_batch"] / 1e9
    text += f" ({found:.1f} GB compiled)"
  return text
