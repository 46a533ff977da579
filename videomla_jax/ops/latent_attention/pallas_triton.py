"""Flash attention in Pallas Triton, for NVIDIA GPUs from Ampere on.

This is the implementation for every such GPU. Its gradient serves others, too
(`with_gradient`); beside it only Hopper has one of its own, in the expanded
form (`pallas_mosaic_gpu_hopper_vjp`).
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import jax
from jaxtyping import Array, Float, PyTree

from videomla_jax.ops import device
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import pallas_triton_forward as forward
from videomla_jax.ops.latent_attention import pallas_triton_vjp as vjp
from videomla_jax.ops.latent_attention import triton_config
from videomla_jax.ops.latent_attention import types
from videomla_jax.ops.latent_attention import xla_chunked

DTYPES = ("float32", "bfloat16", "float16")
# Widest latents for which the backward kernels have enough registers: at 256
# they spill 416 bytes a thread on a B200, at 512 up to 11,000.
GRADIENT_WIDTH = 192

Forward = Callable[[types.Queries, tuple[types.KeyValue, ...]], Array]


Segments = tuple[types.KeyValue, ...]
Content = Float[Array, "B _ K d"] | quantise.Quantised


def _stored(segments: Sequence[types.KeyValue]) -> Segments:
  """Dequantises the segments for GPUs before Hopper.

  Their tensor cores read keys from registers, of which there are too few for
  converted bytes (5,072 bytes of spills at d_c = 192), so XLA dequantises them.
  """
  # The capability is 0 where there is no CUDA: the interpreter has no registers
  # that could spill.
  if 0 < device.current().capability < 9:
    return tuple(s.dequantised() for s in segments)
  return tuple(segments)


def _config(
  direction: triton_config.Direction, segments: Segments
) -> triton_config.Config:
  """Takes the tiles of the table."""
  first = segments[0]
  width = max(first.content.shape[-1], first.values.shape[-1])
  capability = device.current().capability
  return triton_config.row_of(direction, width, capability).config


def _with_contents(segments: Segments, contents: Sequence[Content]) -> Segments:
  pairs = zip(segments, contents, strict=True)
  return tuple(s._replace(content=c) for s, c in pairs)


def _dequantised(
  segments: Segments, contents: Sequence[Content]
) -> tuple[Content, ...]:
  segments = _with_contents(segments, contents)
  return tuple(s.dequantised().content for s in segments)


def _would_spill(segments: Segments) -> bool:
  """Tells whether the backward kernels would spill: values are wide latents."""
  first = segments[0]
  return first.value is None and first.content.shape[-1] > GRADIENT_WIDTH


def with_gradient(
  run: Forward,
  *,
  scale: float,
  config: triton_config.Config | None = None,
  interpret: bool = False,
) -> Forward:
  """Gives a forward kernel the gradient of this module.

  Where a gradient is asked for, this module's forward kernel runs instead of
  `run`, since the backward pass needs the logarithm of the sum that it saves.
  Keys in eight bits are dequantised before it. Wide latents go through
  `xla_chunked`.

  Args:
    run: (queries, segments) -> values; runs where no gradient is asked for.
    scale: Logit multiplier, positive.
    config: Sizes of the tiles of the backward kernels; by default the table's.
    interpret: Whether to run the kernels of this module on a CPU.

  Returns:
    A function like `run` that can be differentiated once.
  """

  def forward_pass(
    queries: types.Queries, segments: Segments
  ) -> tuple[Float[Array, "B R H D"], tuple[PyTree, ...]]:
    stored = tuple(s.content for s in segments)
    # Gradients belong to what was stored, so the pull-back of dequantising is
    # kept along with the arrays.
    contents, to_stored = jax.vjp(lambda c: _dequantised(segments, c), stored)
    segments = _with_contents(segments, contents)
    if _would_spill(segments):
      attend = functools.partial(xla_chunked.flash, scale=scale)
      out, pull = jax.vjp(attend, queries, segments)
      return out, (pull, to_stored)
    out, log_sum = forward.forward(
      queries,
      segments,
      scale=scale,
      config=_config("forward", segments),
      interpret=interpret,
    )
    return out, (queries, segments, out, log_sum, to_stored)

  def backward_pass(
    saved: tuple[PyTree, ...], d_out: Float[Array, "B R H D"]
  ) -> tuple[types.Queries, Segments]:
    if len(saved) == 2:  # what `xla_chunked` saved
      pull, to_stored = saved
      d_queries, d_segments = pull(d_out)
    else:
      queries, segments, out, log_sum, to_stored = saved
      d_queries, d_segments = vjp.gradients(
        queries,
        segments,
        out,
        log_sum,
        d_out,
        scale=scale,
        config=config or _config("gradient", segments),
        interpret=interpret,
      )
    (d_stored,) = to_stored(tuple(s.content for s in d_segments))
    return d_queries, _with_contents(d_segments, d_stored)

  flash = jax.custom_vjp(run)
  flash.defvjp(forward_pass, backward_pass)
  return flash


def flash(
  queries: types.Queries,
  segments: Sequence[types.KeyValue],
  *,
  scale: float,
  config: triton_config.Config | None = None,
  gradient_config: triton_config.Config | None = None,
  interpret: bool = False,
) -> Float[Array, "B R H D"]:
  """Runs the forward kernel as the kernel of `forms.attend`.

  Args:
    queries: Content queries and rotated positional queries; the second may have
      no channels.
    segments: Keys and values of as many heads as the queries have.
    scale: Logit multiplier, positive.
    config: Sizes of the tiles where no gradient is asked for; by default the
      table's (`triton_config.TABLE`).
    gradient_config: Sizes of the tiles of the backward kernels, likewise.
    interpret: Whether to run on a CPU.

  Returns:
    The value of every query row and head; it can be differentiated once.

  Raises:
    NotImplementedError: If widths, dtypes or heads do not fit.
  """
  forms.check(
    "pallas_triton", queries, segments, dtypes=DTYPES, eight_bits=True
  )
  segments = _stored(segments)
  for s in segments:
    widths = {x.shape[-1] for x in (s.content, s.values)}
    for width in widths | {s.rope.shape[-1] or triton_config.MIN_PART}:
      triton_config.parts(width)
  if queries.content.dtype.name == "float32" and not interpret:
    raise NotImplementedError(
      "pallas_triton: float32 spills registers on a GPU; use bfloat16"
    )
  config = config or _config("forward", segments)
  for tiles in (config, gradient_config or config):
    if any(n & (n - 1) or n < 16 for n in (tiles.rows, tiles.keys)):
      raise NotImplementedError(
        f"pallas_triton: {tiles.rows} rows and {tiles.keys} keys must be "
        "powers of two from 16 on"
      )

  def run(
    queries: types.Queries, segments: Segments
  ) -> Float[Array, "B R H D"]:
    return forward.forward(
      queries, segments, scale=scale, config=config, interpret=interpret
    )[0]

  if not queries.rope.shape[-1]:
    # A kernel takes no empty arrays. None also saves no memory for a gradient.
    nothing: Any = None
    queries = queries._replace(rope=nothing)
    segments = tuple(s._replace(rope=nothing) for s in segments)
  flash = with_gradient(
    run, scale=scale, config=gradient_config, interpret=interpret
  )
  return flash(queries, segments)
