"""Flash attention in Pallas Triton, for NVIDIA GPUs from Ampere on.

The portable implementation, and the only GPU one with a gradient of its own.
"""

from collections.abc import Sequence
import functools

import jax
from jaxtyping import Array, Float

from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import pallas_triton_forward as forward
from videomla_jax.ops.latent_attention import pallas_triton_vjp as vjp
from videomla_jax.ops.latent_attention import specs

Config = forward.Config
DTYPES = ("float32", "bfloat16", "float16")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _flash(queries, segments, scale, config, interpret):
  return forward.forward(
    queries, segments, scale=scale, config=config, interpret=interpret
  )[0]


def forward_pass(queries, segments, *, scale, config=None, interpret=False):
  """Output, and what `backward_pass` needs; for `jax.custom_vjp`."""
  out, log_sum = forward.forward(
    queries,
    segments,
    scale=scale,
    config=config or _config(segments),
    interpret=interpret,
  )
  return out, (queries, segments, out, log_sum)


def backward_pass(saved, d_out, *, scale, interpret=False):
  """Gradients of queries and segments, from what `forward_pass` saved."""
  queries, segments, out, log_sum = saved
  return vjp.gradients(
    queries, segments, out, log_sum, d_out, scale=scale, interpret=interpret
  )


def _config(segments):
  first = segments[0]
  return forward.config_of(first.content.shape[-1], first.values.shape[-1])


def _flash_forward(queries, segments, scale, config, interpret):
  return forward_pass(
    queries, segments, scale=scale, config=config, interpret=interpret
  )


def _flash_backward(scale, config, interpret, saved, d_out):
  del config  # The backward kernels have their own block sizes.
  return backward_pass(saved, d_out, scale=scale, interpret=interpret)


_flash.defvjp(_flash_forward, _flash_backward)


def check(queries: specs.Queries, segments: Sequence[forms.KeyValue]) -> None:
  """Raises `NotImplementedError` for what the kernels cannot take."""
  heads, dtype = queries.content.shape[2], queries.content.dtype
  if dtype.name not in DTYPES:
    raise NotImplementedError(
      f"pallas_triton: dtype {dtype} is none of {DTYPES}"
    )
  if len({s.value is None for s in segments}) > 1:
    raise NotImplementedError(
      "pallas_triton: some segments have values of their own, others not"
    )
  for s in segments:
    if s.content.shape[2] != heads:
      raise NotImplementedError(
        f"pallas_triton: keys have {s.content.shape[2]} heads, queries {heads}"
      )
    if {s.content.dtype, s.rope.dtype, s.values.dtype} != {dtype}:
      raise NotImplementedError(
        "pallas_triton: queries and keys differ in dtype"
      )
    for x in (s.content, s.rope, s.values):
      forward.parts(x.shape[-1])


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
    queries: Content and rotated positional queries.
    segments: Keys and values, heads as in the queries.
    scale: Logit multiplier, positive.
    config: Block sizes of the forward pass.
    interpret: Run on a CPU.

  Raises:
    NotImplementedError: If widths, dtypes or heads do not fit.
  """
  check(queries, segments)
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
  return _flash(queries, tuple(segments), scale, config, interpret)
