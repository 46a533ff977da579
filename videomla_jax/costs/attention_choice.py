"""What a network computes with, known from shapes before it is compiled."""

import jax
import jax.numpy as jnp

from videomla_jax.costs import attention_shapes
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.ops import device
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import forms

# What is chosen, by its name in a report.
Choices = dict[str, str]


def of_rollout(
  config: wan_config.WanConfig,
  *,
  rows: int,
  tokens: int,
  window: window_lib.Window,
  max_frames: int,
  cache_dtype: str | None = None,
) -> Choices:
  """Says what the pass of a chunk takes.

  Args:
    config: The network.
    rows: Rows of the network's batch.
    tokens: P, tokens of a latent frame.
    window: Which frames a chunk sees.
    max_frames: Latent frames of the video.
    cache_dtype: Dtype of the cache; the model's own by default.
  """
  return of(
    config,
    rows=rows,
    tokens=tokens,
    chunk_frames=window.chunk_frames,
    history_frames=window.slots(max_frames),
    cache_dtype=cache_dtype,
  )


def of(
  config: wan_config.WanConfig,
  *,
  rows: int,
  tokens: int,
  chunk_frames: int,
  history_frames: int = 0,
  cache_dtype: str | None = None,
  gradient: bool = False,
) -> Choices:
  """Says what one pass takes.

  Args:
    config: The network.
    rows: Rows of the network's batch.
    tokens: P, tokens of a latent frame.
    chunk_frames: Latent frames that are computed.
    history_frames: Latent frames that they see beside themselves.
    cache_dtype: Dtype of the history; the model's own by default.
    gradient: Whether the network is trained.

  Returns:
    Form, implementation and reason of self-attention and of the attention to
    the text; and how projections multiply, if they are not of the usual kind.
  """
  sizes = config.attention
  length, heads = chunk_frames * tokens, sizes.num_heads
  frames = history_frames + chunk_frames
  dtype = jnp.dtype(config.dtype)

  def array(keys: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, keys, heads, sizes.head_dim), dtype)

  def dense(keys: int, flags: jax.ShapeDtypeStruct | None) -> str:
    found = api.explain_dense(
      array(length), array(keys), array(keys), flags,
      scale=sizes.head_dim**-0.5, gradient=gradient,
    )  # fmt: skip
    return str(found)

  text = dense(config.text_tokens, None)
  if sizes.implementation is not None:
    own = f"{sizes.implementation}, form {sizes.form!r} (named in the config)"
  elif sizes.kind == "dense":
    own = dense(
      frames * tokens, jax.ShapeDtypeStruct((rows, frames), jnp.dtype(bool))
    )
  else:
    shape = attention_shapes.Shape(
      sizes=forms.Sizes(
        queries=length,
        keys=frames * tokens,
        heads=heads,
        content_latent=sizes.d_c,
        rope=sizes.d_rope,
        content=sizes.d_nope,
        value=sizes.head_dim,
      ),
      history_frames=history_frames,
      chunk_frames=chunk_frames,
      frame_tokens=tokens,
      batch=rows,
      cache_dtype=cache_dtype if quantise.is_eight_bit(cache_dtype) else None,
    )
    found = api.explain_latent(
      *shape.arguments(dtype), form=sizes.form, gradient=gradient
    )
    own = str(found)
  products = dict(products=_products(config)) if config.products else {}
  return dict(self_attention=own, text_attention=text) | products


def _products(config: wan_config.WanConfig) -> str:
  """Says whether the device multiplies float8, or only stores it."""
  where = device.current()
  if quantise.has_float8_units(where):
    return f"{config.products}, in float8"
  return (
    f"{config.products}, widened to {config.dtype} since {where.kind} does not"
    " multiply float8: memory is saved, time is not"
  )


def lines(choices: Choices) -> list[str]:
  """Returns what is chosen as lines of a log.

  Args:
    choices: What `of` returned.
  """
  found = [
    f"attention: {choices['self_attention']}",
    f"attention to the text: {choices['text_attention']}",
  ]
  if "products" in choices:
    found.append(f"products: {choices['products']}")
  return found
