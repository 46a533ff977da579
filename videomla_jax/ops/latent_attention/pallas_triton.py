"""Flash attention in Pallas Triton, for NVIDIA GPUs from Ampere on.

The portable implementation, and the only GPU one with a gradient of its own.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import pallas_triton_forward as forward
from videomla_jax.ops.latent_attention import pallas_triton_vjp as vjp
from videomla_jax.ops.latent_attention import specs
from videomla_jax.ops.latent_attention import xla_chunked

Config = forward.Config
DTYPES = ("float32", "bfloat16", "float16")
# Widest latents whose backward kernels have registers enough: at 256 they spill
# 416 bytes a thread on a B200, at 512 up to 11,000.
GRADIENT_WIDTH = 192


def _stored(segments):
  """Segments as the kernel reads them: before Hopper not in eight bits.

  There tensor cores read keys from registers, which converted bytes overflow
  (5,072 bytes of spills at d_c = 192), so XLA dequantises them.
  """
  if 0 < device.current().capability < 9:
    return tuple(s.dequantised() for s in segments)
  return tuple(segments)


def _config(segments):
  first = segments[0]
  return forward.config_of(first.content.shape[-1], first.values.shape[-1])


def _with_contents(segments, contents):
  pairs = zip(segments, contents, strict=True)
  return tuple(s._replace(content=c) for s, c in pairs)


def _dequantised(segments, contents):
  segments = _with_contents(segments, contents)
  return tuple(s.dequantised().content for s in segments)


def _in_xla(segments) -> bool:
  """Whether the backward kernels would spill: latents as values, and wide."""
  first = segments[0]
  return first.value is None and first.content.shape[-1] > GRADIENT_WIDTH


def with_gradient(run: forms.Flash, *, scale: float, interpret: bool = False):
  """Gives a forward kernel the gradient of this module.

  Where a gradient is asked for, this module's forward kernel runs, too: its
  logarithm of the sum is what the backward pass needs. Keys in eight bits are
  dequantised before it. Wide latents go through `xla_chunked` instead.

  Args:
    run: (queries, segments) -> per-head values; used without a gradient.
    scale: Logit multiplier.
    interpret: Run the kernels of this module on a CPU.

  Returns:
    A function like `run` that can be differentiated once.
  """

  def forward_pass(queries, segments):
    stored = tuple(s.content for s in segments)
    contents, to_stored = jax.vjp(lambda c: _dequantised(segments, c), stored)
    segments = _with_contents(segments, contents)
    if _in_xla(segments):
      attend = functools.partial(xla_chunked.flash, scale=scale)
      out, pull = jax.vjp(attend, queries, segments)
      return out, (pull, to_stored)
    out, log_sum = forward.forward(
      queries,
      segments,
      scale=scale,
      config=_config(segments),
      interpret=interpret,
    )
    return out, (queries, segments, out, log_sum, to_stored)

  def backward_pass(saved, d_out):
    if len(saved) == 2:  # of XLA
      pull, to_stored = saved
      d_queries, d_segments = pull(d_out)
    else:
      queries, segments, out, log_sum, to_stored = saved
      d_queries, d_segments = vjp.gradients(
        queries, segments, out, log_sum, d_out, scale=scale, interpret=interpret
      )
    (d_stored,) = to_stored(tuple(s.content for s in d_segments))
    return d_queries, _with_contents(d_segments, d_stored)

  flash = jax.custom_vjp(run)
  flash.defvjp(forward_pass, backward_pass)
  return flash


def flash(
  queries: specs.Queries,
  segments: Sequence[forms.KeyValue],
  *,
  scale: float,
  config: forward.Config | None = None,
  interpret: bool = False,
) -> Float[Array, "B R H D"]:
  """The kernel that `forms.attend` runs, with a gradient.

  Args:
    queries: Content and rotated positional queries; the second may have no
      channels.
    segments: Keys and values, heads as in the queries.
    scale: Logit multiplier, positive.
    config: Block sizes of the forward pass without a gradient.
    interpret: Run on a CPU.

  Raises:
    NotImplementedError: If widths, dtypes or heads do not fit.
  """
  forms.check(
    "pallas_triton", queries, segments, dtypes=DTYPES, eight_bits=True
  )
  segments = _stored(segments)
  for s in segments:
    widths = {x.shape[-1] for x in (s.content, s.values)}
    for width in widths | {s.rope.shape[-1] or forward.MIN_PART}:
      forward.parts(width)
  if queries.content.dtype.name == "float32" and not interpret:
    raise NotImplementedError(
      "pallas_triton: float32 spills registers on a GPU; use bfloat16"
    )
  config = config or _config(segments)
  if any(n & (n - 1) or n < 16 for n in (config.rows, config.keys)):
    raise NotImplementedError(
      f"pallas_triton: {config.rows} rows and {config.keys} keys must be "
      "powers of two from 16 on"
    )

  def run(queries, segments):
    return forward.forward(
      queries, segments, scale=scale, config=config, interpret=interpret
    )[0]

  if not queries.rope.shape[-1]:
    # Kernels take no empty arrays; None also leaves nothing to be saved.
    nothing: Any = None
    queries = queries._replace(rope=nothing)
    segments = tuple(s._replace(rope=nothing) for s in segments)
  flash = with_gradient(run, scale=scale, interpret=interpret)
  return flash(queries, segments)
