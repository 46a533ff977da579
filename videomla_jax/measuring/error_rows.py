"""Rows of errors: a pass of the whole network by every implementation.

A row compares the velocity of one pass in bfloat16, behind two chunks that were
committed to the cache, with the same network in float32 by `xla_chunked`.
Weights are random, and rounded to bfloat16 for both. `tests/pass_errors.py`
also compares the latents of a chunk, which takes a pass for each noise level.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.measuring import random_networks
from videomla_jax.measuring import rollout_rows
from videomla_jax.measuring import row as row_lib
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.ops.latent_attention import types

_TIMESTEP = 500.0  # of the pass, half noise
_COMMITTED = 2  # chunks before it


class Outputs(NamedTuple):
  """What a network computes behind the committed chunks.

  Attributes:
    velocity: Of one pass.
    latents: The chunk after all passes of a sampler; None without a sampler.
  """

  velocity: Float[Array | np.ndarray, "1 T H W c"]
  latents: Float[Array | np.ndarray, "1 T H W c"] | None = None


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
  truth = functools.cache(functools.partial(expected, config, frame))
  for name in implementations:
    yield row_lib.Row(
      name="pass_error",
      measure=functools.partial(_measure, config, frame, name, truth),
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


@functools.partial(jax.jit, static_argnames=("frame", "sampler"))
def _outputs(
  model: wan.WanDiT,
  chunks: Float[Array, "C T H W c"],
  text: Float[Array, "1 M E"],
  *,
  frame: tuple[int, int, int],
  sampler: sampling.Sampler | None,
) -> Outputs:
  """Commits all chunks but the last one, and computes that one.

  The last chunk is half noise for the pass, and only noise for the sampler.
  """
  window = rollout_rows.WINDOW
  cache = rollout.empty_cache(
    model, batch=1, frame=frame, window=window, max_frames=99
  )
  for latents in chunks[:-1]:
    cache = chunk_pass.commit(model, cache, latents[None], text, window=window)
  last = chunks[-1:]
  velocity, _ = chunk_pass.velocity_and_history(
    model,
    cache,
    last,
    jnp.asarray(_TIMESTEP, jnp.float32),
    text,
    chunk_pass.positions_of(cache, window.chunk_frames, window=window),
  )
  if sampler is None:
    return Outputs(velocity)
  fresh = jax.random.normal(
    jax.random.key(5), (len(sampler.sigmas) - 1, *last.shape)
  )
  noise = sampling.Noise(last, fresh)
  latents = chunk_pass.denoise(
    model, cache, noise, text, window=window, sampler=sampler
  )
  return Outputs(velocity, latents)


def run(
  config: wan_config.WanConfig,
  frame: tuple[int, int, int],
  *,
  dtype: str,
  implementation: str,
  form: types.Form = "auto",
  sampler: sampling.Sampler | None = None,
) -> Outputs:
  """Computes a chunk by one implementation in one number format.

  Args:
    config: Sizes of the network.
    frame: H, W, C of a latent frame.
    dtype: Dtype of the products; weights are rounded to bfloat16 in any case.
    implementation: Name in `api.IMPLEMENTATIONS`.
    form: "expanded", "absorbed" or "auto".
    sampler: How the chunk is denoised; without it only one pass is run.

  Returns:
    The outputs in float64.
  """
  attention = dataclasses.replace(
    config.attention, implementation=implementation, form=form
  )
  config = dataclasses.replace(config, attention=attention, dtype=dtype)
  shape = (_COMMITTED + 1, rollout_rows.WINDOW.chunk_frames, *frame)
  chunks = jax.random.normal(jax.random.key(1), shape)
  # Both networks read the same embeddings.
  shape = (1, config.text_tokens, config.text_dim)
  text = jax.random.normal(jax.random.key(3), shape).astype(jnp.bfloat16)
  outputs = _outputs(
    _build(config),
    chunks,
    text.astype(config.dtype),
    frame=frame,
    sampler=sampler,
  )
  return jax.tree.map(lambda x: np.asarray(x, np.float64), outputs)


def expected(
  config: wan_config.WanConfig,
  frame: tuple[int, int, int],
  *,
  sampler: sampling.Sampler | None = None,
) -> Outputs:
  """Computes what implementations are compared with, in float32.

  Args:
    config: Sizes of the network.
    frame: H, W, C of a latent frame.
    sampler: How the chunk is denoised; without it only one pass is run.
  """
  with jax.default_matmul_precision("highest"):
    return run(
      config,
      frame,
      dtype="float32",
      implementation="xla_chunked",
      sampler=sampler,
    )


def relative_error(
  ours: Float[Array | np.ndarray, "*s"], theirs: Float[Array | np.ndarray, "*s"]
) -> float:
  """Returns |a - b| / |b| with norms over everything.

  Args:
    ours: a.
    theirs: b.
  """
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _measure(
  config: wan_config.WanConfig,
  frame: tuple[int, int, int],
  implementation: str,
  truth: Callable[[], Outputs],
) -> list[row_lib.Figure]:
  """Compares a pass in bfloat16 with the one in float32."""
  ours = run(config, frame, dtype="bfloat16", implementation=implementation)
  error = relative_error(ours.velocity, truth().velocity)
  return [row_lib.Figure("", error, "relative error")]
