"""Flash attention for Hopper and Blackwell in Pallas Mosaic GPU.

The two generations multiply by different units, so each has its own kernel and
its own plan, which says how the work is cut:

  9   sm_90a   `pallas_mosaic_gpu_hopper`, `pallas_mosaic_gpu_hopper_config`
  10  sm_100a  `pallas_mosaic_gpu_kernel`, `pallas_mosaic_gpu_config`

What they visit and how it is loaded is the same (`pallas_mosaic_gpu_items`).
Hopper has a gradient of its own in the expanded form
(`pallas_mosaic_gpu_hopper_vjp`).
"""

from collections.abc import Sequence
import math
import types as python_types
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PyTree

from videomla_jax.ops import device
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import blocks
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_hopper
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_hopper_config
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper_gradient_config as gradient_plan,
)
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_hopper_vjp
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_items as items
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_kernel
from videomla_jax.ops.latent_attention import pallas_triton
from videomla_jax.ops.latent_attention import types

DTYPES = ("bfloat16", "float16")


class Generation(NamedTuple):
  """The modules for GPUs of one generation.

  Attributes:
    plan: Has `config_of`, `refusal`, `rings` and `scratch`.
    program: Has `kernel`, which takes an `items.Block`.
    has_gradient: Whether it saves what its own gradient needs.
  """

  plan: python_types.ModuleType
  program: python_types.ModuleType
  has_gradient: bool = False


# Keys are major numbers of the compute capability.
GENERATIONS: dict[int, Generation] = {
  9: Generation(
    pallas_mosaic_gpu_hopper_config, pallas_mosaic_gpu_hopper, has_gradient=True
  ),
  10: Generation(plan, pallas_mosaic_gpu_kernel),
}


def _generation(config: plan.Config | None) -> Generation:
  """Returns that of a configuration, or else of the device.

  Where there is no such device, as in an interpreter, it is the newest.
  """
  major = int(device.current().capability)
  if config is not None:
    is_hopper = isinstance(config, pallas_mosaic_gpu_hopper_config.Config)
    major = 9 if is_hopper else 10
  return GENERATIONS.get(major, GENERATIONS[10])


def flash(
  queries: types.Queries,
  segments: Sequence[types.KeyValue],
  *,
  scale: float,
  config: plan.Config | None = None,
  interpret: plgpu.InterpretGPUParams | bool | None = None,
) -> Float[Array, "B R H D"]:
  """Runs the kernel of this GPU's generation as the kernel of `forms.attend`.

  Hopper has kernels for the gradient of the expanded form. For any other
  gradient Pallas Triton's kernels run instead of this one: they save the
  logarithm of the sum, for which Blackwell's has no registers left.

  Args:
    queries: Content queries and rotated positional queries; on Hopper the
      second may have no channels.
    segments: Keys and values of as many heads as the queries have.
    scale: Logit multiplier, positive.
    config: Sizes of the tiles, and thereby the generation; what the device is
      and its plan says by default.
    interpret: Parameters of the interpreter, to run on a CPU.

  Returns:
    The value of every query row and head.

  Raises:
    NotImplementedError: If widths, dtypes or heads do not fit.
  """
  widths = _widths(queries, segments)
  batch, rows, heads, _ = queries.content.shape
  made_for = _generation(config)
  chosen: plan.Config = config or made_for.plan.config_of(
    widths, rows=rows, heads=batch * heads
  )
  reason = made_for.plan.refusal(widths, chosen)
  if reason:
    raise NotImplementedError(f"pallas_mosaic_gpu: {reason}")

  nothing: Any = None
  if not widths.rope:
    # A kernel takes no empty arrays, and neither does that of the gradient.
    queries = queries._replace(rope=nothing)
    segments = [s._replace(rope=nothing) for s in segments]
  call = _Call(made_for, scale, widths, chosen, interpret)
  if made_for.has_gradient and not gradient_plan.refusal(widths):
    attend = _with_gradient(call)
  else:
    attend = pallas_triton.with_gradient(
      lambda queries, segments: _run(call, queries, segments)[0],
      scale=scale,
      interpret=interpret is not None,
    )
  return attend(queries, tuple(segments))


class _Call(NamedTuple):
  """What a kernel is given beside arrays.

  Attributes:
    made_for: The modules for this GPU.
    scale: Logit multiplier.
    widths: Channels of the call.
    config: Sizes of the tiles.
    interpret: Parameters of the interpreter, to run on a CPU.
  """

  made_for: Generation
  scale: float
  widths: plan.Widths
  config: plan.Config
  interpret: plgpu.InterpretGPUParams | bool | None


def _with_gradient(call: _Call) -> pallas_triton.Forward:
  """Makes the forward pass for Hopper, which can be differentiated once."""

  def forward_pass(
    queries: types.Queries, segments: pallas_triton.Segments
  ) -> tuple[Float[Array, "B R H D"], tuple[PyTree, ...]]:
    out, log_sum = _run(call, queries, segments, save_log_sum=True)
    return out, (queries, segments, out, log_sum)

  def backward_pass(
    saved: tuple[PyTree, ...], d_out: Float[Array, "B R H D"]
  ) -> tuple[types.Queries, pallas_triton.Segments]:
    queries, segments, out, log_sum = saved
    return pallas_mosaic_gpu_hopper_vjp.gradients(
      queries,
      segments,
      out,
      log_sum,
      d_out,
      scale=call.scale,
      widths=call.widths,
      interpret=call.interpret,
    )

  attend = jax.custom_vjp(
    lambda queries, segments: _run(call, queries, segments)[0]
  )
  attend.defvjp(forward_pass, backward_pass)
  return attend


def _tables(
  segments: Sequence[types.KeyValue], config: plan.Config
) -> list[blocks.BlockTable]:
  """Makes the block tables; no row of the batch goes without a block.

  A row without any valid key gets one block of which no key is used, and its
  output is zero. Otherwise the softmax would wait for a block that never comes,
  and hang the device.
  """
  tables = [
    blocks.table_of(s.valid, validity_block=s.validity_block, block=config.keys)
    for s in segments
  ]
  total = sum(t.num_blocks for t in tables)
  last = tables[-1]
  tables[-1] = last._replace(num_blocks=last.num_blocks + (total == 0))
  # The compiler must see that copies start at whole tiles.
  return [t._replace(start=t.start // plan.TILE_ROWS) for t in tables]


def _run(
  call: _Call,
  queries: types.Queries,
  segments: pallas_triton.Segments,
  *,
  save_log_sum: bool = False,
) -> tuple[Float[Array, "B R H D"], Float32[Array, "B H _"] | None]:
  """Lays out the arguments and launches the kernel.

  Args:
    call: What the kernel is given beside arrays.
    queries: Content and positional queries.
    segments: Keys and values.
    save_log_sum: Whether to save the logarithm of the sum.

  Returns:
    Values, and the base-2 logarithm of the sum of each row, padded to whole
    tiles, if it is saved.
  """
  made_for, widths, config = call.made_for, call.widths, call.config
  batch, rows, heads, _ = queries.content.shape
  tables = _tables(segments, config)
  arrays = [blocks.longest_first(tables)]
  arrays += [q.reshape(batch, rows, -1) for q in queries if q is not None]
  for s, table in zip(segments, tables, strict=True):
    keys = (batch, s.content.shape[1], -1)
    assert not isinstance(s.content, quantise.Quantised)  # `forms.check`
    arrays += [*table, s.content.reshape(keys)]
    arrays += [s.rope] if widths.rope else []
    arrays += [] if s.value is None else [s.value.reshape(keys)]
  dtype = queries.content.dtype
  grid = (batch, heads, pl.cdiv(rows, config.item_rows))
  scratch_types = made_for.plan.scratch(widths, config, dtype)
  outs = [jax.ShapeDtypeStruct((batch, rows, heads * widths.value), dtype)]
  if save_log_sum:
    padded = (batch, heads, grid[2] * config.item_rows)
    outs.append(jax.ShapeDtypeStruct(padded, jnp.float32))

  def body(*refs: jax.Ref, **scratch: Any) -> None:
    block = items.block_of(
      refs[: len(arrays)],
      refs[len(arrays) :],
      widths=widths,
      config=config,
      scale=call.scale,
      rows=rows,
      grid=grid,
      rings=made_for.plan.rings(widths),
      scratch=scratch,
    )
    made_for.program.kernel(block)

  body.__name__ = "latent_attention"
  out, *log_sum = plgpu.kernel(
    body,
    out_type=outs,
    grid=(min(config.cores, math.prod(grid)),),
    grid_names=("block",),
    num_threads=1 + config.tiles,
    thread_name="group",
    scratch_types=scratch_types,
    compiler_params=plgpu.CompilerParams(approx_math=True),
    interpret=call.interpret,
  )(*arrays)
  out = out.reshape(batch, rows, heads, widths.value)
  return out, log_sum[0] if log_sum else None


def _widths(
  queries: types.Queries, segments: Sequence[types.KeyValue]
) -> plan.Widths:
  """Reads the widths of a call; refuses those that the kernel cannot take."""
  forms.check("pallas_mosaic_gpu", queries, segments, dtypes=DTYPES)
  for s in segments:
    if s.valid.shape[1] > 1 and s.validity_block % plan.TILE_ROWS:
      raise NotImplementedError(
        f"pallas_mosaic_gpu: frames of {s.validity_block} keys are no multiple "
        f"of {plan.TILE_ROWS}"
      )
  first = segments[0]
  widths = plan.Widths(
    content=first.content.shape[-1],
    rope=first.rope.shape[-1],
    value=first.values.shape[-1],
    shared=first.value is None,
  )
  for width in (widths.content, widths.rope, widths.value):
    if width % 16:
      raise NotImplementedError(
        f"pallas_mosaic_gpu: width {width} is no multiple of 16"
      )
  return widths
