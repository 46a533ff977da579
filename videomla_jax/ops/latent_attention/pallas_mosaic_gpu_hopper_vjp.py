"""Gradient of the expanded form on Hopper: arguments and launches.

What the kernels compute is in `pallas_mosaic_gpu_hopper_gradient`. One launch
makes dQ, and another one dK and dV of all segments of keys. The positional key,
which the heads share, gets a gradient from every head in float32, and these are
summed afterwards.
"""

from collections.abc import Sequence
import itertools
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import blocks
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper_gradient as program,
)
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper_gradient_config as gradient_plan,
)
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_items as items
from videomla_jax.ops.latent_attention import types

Interpret = plgpu.InterpretGPUParams | bool | None
Arrays = dict[str, Array]
Shapes = dict[str, jax.ShapeDtypeStruct]

_GRID = ("example", "head", "index")
_TILE_ROWS = 128  # what is read of rows is padded to a multiple of this


def gradients(
  queries: types.Queries,
  segments: Sequence[types.KeyValue],
  out: Float[Array, "B R H D"],
  log_sum: Float32[Array, "B H _"],
  d_out: Float[Array, "B R H D"],
  *,
  scale: float,
  widths: plan.Widths,
  interpret: Interpret = None,
) -> tuple[types.Queries, tuple[types.KeyValue, ...]]:
  """Computes the gradients of queries and segments.

  Args:
    queries: Queries of the forward pass.
    segments: Keys and values of the forward pass.
    out: Output of the forward pass.
    log_sum: Base-2 logarithm of the sum of each row of the forward pass; what
      follows the last row is not read.
    d_out: Gradient of the output.
    scale: Logit multiplier, positive.
    widths: Channels of the call.
    interpret: Parameters of the interpreter, to run on a CPU.

  Returns:
    Gradients in the places of what they belong to; flags have None.
  """
  call = _Call(scale, widths, out.shape[2], interpret)
  lines = _lines(out, log_sum, d_out)
  rows = _flat(queries.content, queries.rope, d_out)
  d_query = _query_gradient(call, rows, lines, segments)
  d_queries = jax.tree.map(
    lambda like, flat: flat.reshape(like.shape),
    queries,
    queries._replace(**d_query),
  )
  return d_queries, _key_gradients(call, rows, lines, segments)


class _Call(NamedTuple):
  """What all kernels of a call are given."""

  scale: float
  widths: plan.Widths
  heads: int
  interpret: Interpret


class _Blocks(NamedTuple):
  """Arrays of a segment whose blocks come by, and which of them are visited."""

  arrays: Arrays
  table: blocks.BlockTable | None = None


def _flat(
  content: Float[Array, "B T H d_n"],
  rope: Float[Array, "B T *H d_r"] | None,
  value: Float[Array, "B T H D"],
) -> Arrays:
  """Lays heads side by side; leaves out what has no channels."""
  named = dict(content=content, rope=rope, value=value)
  return {
    name: x.reshape(*x.shape[:2], -1)
    for name, x in named.items()
    if x is not None
  }


def _lines(
  out: Float[Array, "B R H D"],
  log_sum: Float32[Array, "B H _"],
  d_out: Float[Array, "B R H D"],
) -> Float32[Array, "B H 2 _"]:
  """Joins what there is of every row, L and delta; zeros past the end."""
  delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
  delta = delta.swapaxes(1, 2)
  rows = delta.shape[2]
  lines = jnp.stack([log_sum[:, :, :rows], delta], axis=2)
  return jnp.pad(lines, ((0, 0), (0, 0), (0, 0), (0, -rows % _TILE_ROWS)))


def _query_gradient(
  call: _Call,
  rows: Arrays,
  lines: Float32[Array, "B H 2 _"],
  segments: Sequence[types.KeyValue],
) -> Arrays:
  """Makes dQ from all segments."""
  config = gradient_plan.config_of(call.widths, of_keys=False)
  streams = []
  for s in segments:
    assert not isinstance(s.content, quantise.Quantised)  # `forms.check`
    assert s.value is not None  # the plan refuses the absorbed form
    table = blocks.table_of(
      s.valid, validity_block=s.validity_block, block=config.block
    )
    # The compiler must see that copies start at whole tiles.
    table = table._replace(start=table.start // plan.TILE_ROWS)
    streams.append(_Blocks(_flat(s.content, s.rope, s.value), table))
  outs = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype)
    for name, x in rows.items()
    if name != "value"
  }
  return _launch(call, config, [({**rows, "lines": lines}, outs)], streams)[0]


def _key_gradients(
  call: _Call,
  rows: Arrays,
  lines: Float32[Array, "B H 2 _"],
  segments: Sequence[types.KeyValue],
) -> tuple[types.KeyValue, ...]:
  """Makes dK and dV of all segments."""
  config = gradient_plan.config_of(call.widths, of_keys=True)
  stays, visited = [], []
  for s in segments:
    assert not isinstance(s.content, quantise.Quantised)  # `forms.check`
    assert s.value is not None  # the plan refuses the absorbed form
    keys = _flat(s.content, s.rope, s.value)
    batch, length = s.content.shape[:2]
    outs = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in keys.items()}
    if s.rope is not None:
      # The gradients of the heads are summed, so none is rounded before.
      shape = (batch, length, call.heads * s.rope.shape[-1])
      outs["rope"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    seen = s.valid_keys.astype(jnp.float32)
    seen = jnp.pad(seen, ((0, 0), (0, -length % config.tile_rows)))
    stays.append(({**keys, "seen": seen}, outs))
    visited.append(seen.reshape(batch, -1, config.tile_rows).max(-1))
  found = _launch(
    call,
    config,
    stays,
    [_Blocks({**rows, "lines": lines})],
    visited=jnp.concatenate(visited, axis=1).astype(jnp.int32),
  )
  return tuple(map(_shaped, segments, found))


def _shaped(segment: types.KeyValue, found: Arrays) -> types.KeyValue:
  """Gives gradients the shapes of what they belong to."""
  nothing: Any = None  # flags have no gradient
  rope, value = segment.rope, segment.value
  assert value is not None  # the plan refuses the absorbed form
  if rope is not None:
    # All heads share the positional key, so their gradients are added.
    by_head = found["rope"].reshape(*rope.shape[:2], -1, rope.shape[-1])
    rope = by_head.sum(2).astype(rope.dtype)
  return types.KeyValue(
    found["content"].reshape(*value.shape[:3], -1),
    rope,
    found["value"].reshape(value.shape),
    nothing,
  )


def _launch(
  call: _Call,
  config: gradient_plan.Config,
  stays: Sequence[tuple[Arrays, Shapes]],
  streams: Sequence[_Blocks],
  *,
  visited: Int32[Array, "B items"] | None = None,
) -> list[Arrays]:
  """Runs one of the two kernels.

  Args:
    call: What all kernels of the call are given.
    config: Sizes of the work.
    stays: Arrays of the rows that stay, and shapes of their gradients, of each
      segment.
    streams: Blocks that come by.
    visited: Zero where a thread block has nothing to add up; None if all have.

  Returns:
    The gradients of each segment.
  """
  tiles, shapes = zip(*stays, strict=True)
  leaves, tree = jax.tree.flatten((tiles, list(streams), visited))
  outs, out_tree = jax.tree.flatten(shapes)
  rows = [arrays["content"].shape[1] for arrays in tiles]
  ends = list(itertools.accumulate(pl.cdiv(n, config.tile_rows) for n in rows))

  def body(*refs: jax.Ref, **scratch: Any) -> None:
    tiles, streams, visited = jax.tree.unflatten(tree, refs[: len(leaves)])
    gradients = jax.tree.unflatten(out_tree, refs[len(leaves) :])
    example, head, index = (lax.axis_index(name) for name in _GRID)
    program.kernel(
      program.Block(
        widths=call.widths,
        config=config,
        scale=call.scale,
        example=example,
        head=head,
        index=index,
        stays=list(map(program.Rows, tiles, gradients, rows, [0, *ends])),
        streams=[
          _stream(x, config, example, index, visited=visited) for x in streams
        ],
        refs=scratch,
      )
    )

  side = "key" if config.of_keys else "query"
  body.__name__ = f"latent_attention_{side}_gradient"
  content = tiles[0]["content"]
  found = plgpu.kernel(
    body,
    out_type=outs,
    grid=(content.shape[0], call.heads, ends[-1]),
    grid_names=_GRID,
    num_threads=1 + config.tiles,
    thread_name="group",
    scratch_types=gradient_plan.scratch(call.widths, config, content.dtype),
    compiler_params=plgpu.CompilerParams(approx_math=True),
    interpret=call.interpret,
  )(*leaves)
  return list(jax.tree.unflatten(out_tree, found))


def _stream(
  blocks_of: tuple[Any, Any],
  config: gradient_plan.Config,
  example: items.Scalar,
  index: items.Scalar,
  *,
  visited: jax.Ref | None,
) -> program.Stream:
  """Sorts what a kernel reads of the blocks of one segment.

  Args:
    blocks_of: `_Blocks` with refs in the place of arrays.
    config: Sizes of the work.
    example: Index of the row of the batch.
    index: Index of the thread block among those of a head.
    visited: Zero where a thread block has nothing to add up.
  """
  arrays, table = blocks_of
  if table is not None:
    return program.Stream(
      arrays, table.num_blocks[example], table.start, table.count
    )
  steps = pl.cdiv(arrays["content"].shape[1], config.block)
  if visited is not None:
    steps = jnp.where(visited[example, index] > 0, steps, 0)
  return program.Stream(arrays, steps)
