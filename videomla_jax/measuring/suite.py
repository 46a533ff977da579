"""Everything that a GPU is asked, row after row, into its record."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import itertools
import pathlib
import re
import time
from typing import Annotated

import jax
import ml_collections

from videomla_jax.costs import attention_shapes
from videomla_jax.measuring import attention_rows
from videomla_jax.measuring import ceilings
from videomla_jax.measuring import error_rows
from videomla_jax.measuring import pixel_rows
from videomla_jax.measuring import record
from videomla_jax.measuring import rollout_rows
from videomla_jax.measuring import row as row_lib
from videomla_jax.measuring import tile_rows
from videomla_jax.measuring import training_rows
from videomla_jax.models import tiny_decoder
from videomla_jax.models import vae_coders
from videomla_jax.models import wan_config
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import forms
from videomla_jax.runtime import config_values
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder

# What attention is measured at: the paper's picture first, then larger ones,
# single frames, the widest network, and a cache in eight bits.
_SHAPES = (
  *("480p", "480p_framewise", "few_queries", "720p", "480p_14b"),
  *("480p_first_chunk", "480p_int8", "few_queries_int8"),
)
_GRADIENTS = ("480p_framewise", "480p")
_FULL = ("480p", "720p")
# The reference writes every score, and is what the others are compared with.
# Plain XLA is measured where it is within reach of the kernels.
_IMPLEMENTATIONS = tuple(n for n in api.IMPLEMENTATIONS if n != "reference")
_KERNELS = tuple(n for n in _IMPLEMENTATIONS if n != "xla_chunked")
_WAN = functools.partial(wan_config.wan_1p3b, dtype="bfloat16")
_DENSE_FRAMES = 21  # that dense layers of the original code see


def _dense_sizes(
  shape: attention_shapes.Shape, *, text_tokens: int
) -> tuple[tuple[int, int], ...]:
  """Returns queries and keys of dense layers and of attention to the text.

  Args:
    shape: The latent call of the same chunk.
    text_tokens: M, text tokens.
  """
  queries, keys = shape.sizes.queries, shape.sizes.keys
  every = _DENSE_FRAMES * shape.frame_tokens
  return tuple((queries, n) for n in (every, keys, text_tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """The sizes at which everything is measured.

  Attributes:
    side: Side of the matrices whose product is the ceiling.
    shapes: Calls of latent attention by name.
    full: Names of those that are measured without holes, too.
    gradients: Names of those whose gradient is measured.
    dense: Queries and keys of dense attention.
    make: Makes the sizes of the network from its `kind`.
    vae: Sizes of the VAE.
    tiny_decoder: Sizes of the tiny decoder.
    frame: H, W, C of a latent frame.
    layers: Layers of the networks of a training step.
  """

  side: int
  shapes: Mapping[str, attention_shapes.Shape]
  full: tuple[str, ...]
  gradients: tuple[str, ...]
  dense: tuple[tuple[int, int], ...]
  make: functools.partial[wan_config.WanConfig]
  vae: vae_coders.VaeConfig
  tiny_decoder: tiny_decoder.TinyDecoderConfig
  frame: tuple[int, int, int]
  layers: int


_TINY_SHAPE = attention_shapes.Shape(
  sizes=forms.Sizes(
    queries=24,
    keys=72,
    heads=2,
    content_latent=16,
    rope=8,
    content=24,
    value=32,
  ),
  history_frames=6,
  chunk_frames=3,
  frame_tokens=8,
)
SIZES = {
  "real": Sizes(
    side=8192,
    shapes={n: attention_shapes.SHAPES[n] for n in _SHAPES},
    full=_FULL,
    gradients=_GRADIENTS,
    dense=_dense_sizes(
      attention_shapes.SHAPES["480p"],
      text_tokens=_WAN(kind="dense").text_tokens,
    ),
    make=_WAN,
    vae=vae_coders.wan_vae(),
    tiny_decoder=tiny_decoder.TinyDecoderConfig(),
    frame=(60, 104, 16),
    layers=4,
  ),
  # Seconds on a CPU: shows that every row runs, and nothing about speed.
  "tiny": Sizes(
    side=128,
    shapes={"tiny": _TINY_SHAPE},
    full=("tiny",),
    gradients=("tiny",),
    dense=((16, 32),),
    make=functools.partial(wan_config.tiny, text_tokens=8),
    vae=vae_coders.tiny_vae(),
    tiny_decoder=tiny_decoder.tiny(),
    frame=(4, 6, 4),
    layers=1,
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuSuite:
  """Measures the device that is here and adds to its record.

  Attributes:
    sizes: Key of `SIZES`: "real", or "tiny" to try the rows on any machine.
    rows: Regular expression that a row's label must contain.
    minutes: Minutes after which no further row is started.
    again: Whether rows that the record has are measured again.
    folder: Folder of the records, one file for each kind of device.
    stages: Config of each stage of training by its name.
    json: File to which this run's lines are written as well; empty for none.
  """

  sizes: str
  rows: str
  minutes: Annotated[float, config_values.Range(0.0, 1e6)]
  again: bool
  folder: config_values.Path
  stages: Mapping[str, ml_collections.ConfigDict]
  json: config_values.Path

  def __post_init__(self) -> None:
    if self.sizes not in SIZES:
      raise ValueError(
        f"sizes={self.sizes!r} is unknown; use one of {[*SIZES]}."
      )
    record.check_pattern(self.rows)

  def run(self) -> list[record.Line]:
    """Measures every row that is asked for and not known, and prints a table.

    Returns:
      The lines of this device, code and versions, older ones included.

    Raises:
      ValueError: If the device is no GPU but sizes are real, no row matches, or
        the record cannot be read.
    """
    session = record.Session.here()
    if self.sizes == "real" and jax.default_backend() != "gpu":
      raise ValueError(
        f"suite=gpu measures GPUs, and this is {session.device!r}; to try it, "
        "use --config=configs/benchmark.py:suite=gpu,runlocal."
      )
    wanted = [r for r in self.all_rows() if re.search(self.rows, r.label)]
    if not wanted:
      raise ValueError(
        f"rows={self.rows!r} matches none of the rows, such as "
        f"{next(self.all_rows()).label!r}."
      )
    folder = pathlib.Path(self.folder)
    output_folder.check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / record.file_name(session.device)
    with record.written_alone(path):
      left = self._measure(wanted, path, session)
    lines = [x for x in record.read(path) if session.made(x)]
    print(f"{path}: {len(lines)} lines of {session.commit}", flush=True)
    if left:
      print(
        f"minutes={self.minutes:g} are over; the same command goes on with "
        f"{len(left)} rows: {', '.join(left[:3])}...",
        flush=True,
      )
    if self.json:
      atomic.write_text(self.json, record.text_of(lines))
    return lines

  def _measure(
    self,
    wanted: list[row_lib.Row],
    path: pathlib.Path,
    session: record.Session,
  ) -> list[str]:
    """Measures row by row, and returns the labels that time did not reach."""
    started, left = time.monotonic(), []
    lines = [x for x in record.read(path) if session.made(x)]
    known = set() if self.again else {record.label(x) for x in lines}
    for row in wanted:
      if row.label not in known:
        if time.monotonic() - started > 60 * self.minutes:
          left.append(row.label)
          continue
        new = row.lines()
        lines += new
        # What a device cannot run by its nature is no measurement of it.
        record.add(path, session, [x for x in new if "refused" not in x])
      print(described(row, lines), flush=True)
      # Programs and arrays of a row must not take the next one's memory.
      jax.clear_caches()
    return left

  def all_rows(self) -> Iterator[row_lib.Row]:
    """Yields every row of the suite, the most telling ones first."""
    sizes = SIZES[self.sizes]
    attention = functools.partial(
      attention_rows.rows,
      full=sizes.full,
      gradients=sizes.gradients,
    )
    names = [*sizes.shapes]
    first = {n: sizes.shapes[n] for n in names[:1]}
    others = {n: sizes.shapes[n] for n in names[1:]}
    width = sizes.make(kind="dense").attention
    yield from itertools.chain(
      ceilings.rows(side=sizes.side),
      rollout_rows.rows(make=sizes.make, frame=sizes.frame),
      pixel_rows.rows(
        make=sizes.make,
        decoders=pixel_rows.decoders(sizes.vae, sizes.tiny_decoder),
        others=pixel_rows.forms(sizes.vae),
        frame=sizes.frame,
      ),
      attention(shapes=first, implementations=_IMPLEMENTATIONS),
      attention_rows.dense_rows(
        sizes=sizes.dense, heads=width.num_heads, width=width.head_dim
      ),
      training_rows.rows(stages=self.stages, layers=sizes.layers),
      attention(shapes=others, implementations=_KERNELS),
      error_rows.rows(
        make=sizes.make, frame=sizes.frame, implementations=_IMPLEMENTATIONS
      ),
      tile_rows.rows(
        sizes.shapes, tile_rows.calls(names[0], sizes.gradients[0])
      ),
    )


def described(row: row_lib.Row, lines: list[record.Line]) -> str:
  """Describes a row in one line of the table that is printed.

  Args:
    row: The row.
    lines: What was measured so far, the row included; the last line counts.
  """
  mine = [x for x in lines if _same(row, x)]
  for reason in ("error", "refused"):
    if mine and reason in mine[-1]:
      return f"{row.label}: {reason}, {mine[-1][reason]}"
  figures = {
    x["name"].removeprefix(row.name).strip("_"): x
    for x in mine
    if x.get("value") is not None
  }
  main = figures.pop("")
  text = f"{row.label}: {main['value']:.5g} {main['unit']}"
  fastest = fastest_of(row.line, lines)
  if fastest and main["value"] > fastest:
    text += f", {main['value'] / fastest:.2f} times the fastest"
  for suffix, x in figures.items():
    text += f", {suffix.replace('_', ' ')} {x['value']:.4g} {x['unit']}"
  return text


def _same(row: row_lib.Row, line: record.Line) -> bool:
  """Whether a line is a figure of a row, whatever it is called."""
  return str(line["name"]).startswith(row.name) and record.label(
    line | {"name": row.name}
  ) == (row.label)


def fastest_of(
  line: record.Line, lines: list[record.Line]
) -> float | int | None:
  """Returns the least time of the implementations and forms of one call.

  Args:
    line: A line or the fields of a row.
    lines: All lines.
  """
  fields = ("name", "shape", "attention", "direction", "holes")
  call = [line.get(f) for f in fields]
  times = [
    x["value"]
    for x in lines
    if x.get("value") is not None
    and x["unit"] in ("us", "ms")
    and [x.get(f) for f in fields] == call
  ]
  return min(times, default=None)
