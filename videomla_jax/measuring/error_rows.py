"""Rows of errors: a pass of the whole network by every implementation.

A row compares the velocity of one pass in bfloat16, behind two chunks that were
committed to the cache, with the same network in float32 by `xla_chunked`.
Weights are random, and rounded to bfloat16 for both.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.measuring import random_networks
from videomla_jax.measuring import rollout_rows
from videomla_jax.measuring import row as row_lib
from videomla_jax.models import wan
from videomla_jax.models import wan_config

_TIMESTEP = 500.0  # of the pass, half noise
_COMMITTED = 2  # chunks before it


def rows(
  *,
  make: Callable[..., wan_config.WanConfig],
  frame: tuple[int, int, int],
  implementations: Sequence[str],
) -> Iterator[row_lib.Row]:
  """Yields the rows.

  Args:
    make: Makes the sizes of the network from its `kind`.
    frame: H, W, C of a latent frame.
    implementations: Names in the table of `api`.
  """
  config = make(kind="latent")
  # The float32 network is run once for all rows.
  expected = functools.cache(functools.partial(_expected, config, frame))
  for name in implementations:
    yield row_lib.Row(
      name="pass_error",
      measure=functools.partial(_measure, config, frame, name, expected),
      shape=f"{frame[0]}x{frame[1]} latents",
      attention="latent",
      implementation=name,
      direction="forward",
    )


def _build(config: wan_config.WanConfig) -> wan.WanDiT:
  """Makes the network with kernels in bfloat16, whatever its own dtype."""
  rounded = dataclasses.replace(config, dtype="bfloat16")
  model = random_networks.make(
    lambda: wan.WanDiT(rounded, rngs=nnx.Rngs(0)), halve=True
  )
  if config.dtype == "bfloat16":
    return model
  abstract = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  wide = [x.astype(jnp.float32) for x in jax.tree.leaves(model)]
  return jax.tree.unflatten(jax.tree.structure(abstract), wide)


@functools.partial(jax.jit, static_argnames="frame")
def _velocity(
  model: wan.WanDiT,
  chunks: Float[Array, "C T H W c"],
  text: Float[Array, "1 M E"],
  *,
  frame: tuple[int, int, int],
) -> Float[Array, "1 T H W c"]:
  """Commits all chunks but the last one, and runs a pass of that one."""
  window = rollout_rows.WINDOW
  cache = rollout.empty_cache(
    model, batch=1, frame=frame, window=window, max_frames=99
  )
  for latents in chunks[:-1]:
    cache = chunk_pass.commit(model, cache, latents[None], text, window=window)
  return chunk_pass.velocity_and_history(
    model,
    cache,
    chunks[-1:],
    jnp.asarray(_TIMESTEP, jnp.float32),
    text,
    chunk_pass.positions_of(cache, window.chunk_frames, window=window),
  )[0]


def _run(
  config: wan_config.WanConfig,
  frame: tuple[int, int, int],
  *,
  dtype: str,
  implementation: str,
) -> np.ndarray:
  """Returns the velocity by one implementation in one number format."""
  attention = dataclasses.replace(
    config.attention, implementation=implementation
  )
  config = dataclasses.replace(config, attention=attention, dtype=dtype)
  shape = (_COMMITTED + 1, rollout_rows.WINDOW.chunk_frames, *frame)
  chunks = jax.random.normal(jax.random.key(1), shape)
  # Both networks read the same embeddings.
  shape = (1, config.text_tokens, config.text_dim)
  text = jax.random.normal(jax.random.key(3), shape).astype(jnp.bfloat16)
  velocity = _velocity(
    _build(config), chunks, text.astype(config.dtype), frame=frame
  )
  return np.asarray(velocity, np.float64)


def _expected(
  config: wan_config.WanConfig, frame: tuple[int, int, int]
) -> np.ndarray:
  with jax.default_matmul_precision("highest"):
    return _run(config, frame, dtype="float32", implementation="xla_chunked")


def _measure(
  config: wan_config.WanConfig,
  frame: tuple[int, int, int],
  implementation: str,
  expected: Callable[[], np.ndarray],
) -> list[row_lib.Figure]:
  """Compares a pass in bfloat16 with the one in float32."""
  ours = _run(config, frame, dtype="bfloat16", implementation=implementation)
  error = np.linalg.norm(ours - expected()) / np.linalg.norm(expected())
  return [row_lib.Figure("", float(error), "relative error")]
