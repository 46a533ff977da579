"""The student's own rollout in stage 3, and its gradient chunk by chunk.

docs/method.md, section 12.4 (arXiv:2506.08009). The student generates as at
inference but leaves the few-step loop at a random call e. Whatever is read from
the cache is a constant, hence the gradient is a sum over chunks m of gradients
of single passes:

  dL/dθ = Σ_m J_m(θ)ᵀ (dL/dX)_m                                       (12.3)

So nothing is differentiated while generating; afterwards each chunk is computed
again and pulled back, with the activations of one chunk in memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Key, PyTree

from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

Latents = Float[Array, "B T H W C"]
Text = Float[Array, "B M E"]
Chunks = Float[Array, "G B T H W C"]


class Draws(NamedTuple):
  """What a rollout draws at random.

  Attributes:
    noise: Noise of every chunk, leaves with a leading chunk axis.
    exit_call: Network calls before the exit call, 0 to K - 1, the same for all
      chunks and rows.
  """

  noise: sampling.Noise
  exit_call: Int[Array, ""]


def draw(
  key: Key[Array, ""],
  shape: tuple[int, ...],
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
) -> Draws:
  """Draws noise and exit call of a rollout.

  Args:
    key: Random key.
    shape: B, T, H, W, C of the rollout; T is rounded up to chunks.
    window: Sets the frames of a chunk.
    sampler: Sets the number of calls.
  """
  # The exit call is shared, so that all devices run the same number of passes.
  key_noise, key_exit = jax.random.split(key)
  length = window.chunk_frames
  keys = sampling.split_keys(key_noise, shape[0])
  chunks = jnp.arange(-(-shape[1] // length))

  def draw_chunk(chunk: Array) -> sampling.Noise:
    return sampling.chunk_noise(
      keys, chunk, shape=(length, *shape[2:]), sampler=sampler
    )

  noise = jax.vmap(draw_chunk)(chunks)
  exit_call = jax.random.randint(key_exit, (), 0, len(sampler.sigmas))
  return Draws(noise, exit_call)


class Trained(NamedTuple):
  """What the gradient of a chunk needs; with a leading axis, of several.

  Attributes:
    exit_input: Noisy latents that the exit call saw.
    entries: Entries of the clean chunk, leaves `[layers, B, T, P, ...]`.
  """

  exit_input: Float[Array, "*m B T H W C"]
  entries: PyTree


class SelfRollout(NamedTuple):
  """A rollout and what its gradient needs.

  Attributes:
    latents: Predictions at the exit call.
    trained: The trained chunks, which are the last ones; None if none are.
    before: The cache before the first trained chunk.
    cache: The cache after all chunks, to continue from.
  """

  latents: Latents
  trained: Trained | None
  before: cache_lib.Cache
  cache: cache_lib.Cache


def predict(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  x: Latents,
  sigma: Float32[Array, ""],
  text: Text,
  *,
  window: window_lib.Window,
) -> Latents:
  """Predicts x0 of a chunk, the one pass with a gradient; the cache has none.

  Args:
    model: The student.
    cache: The cache before the chunk.
    x: The chunk at noise level `sigma`.
    sigma: Noise level, 0..1.
    text: Text embeddings.
    window: The window that the cache was made for.

  Returns:
    Predicted clean latents.
  """
  velocity = _velocity(model, jax.lax.stop_gradient(cache), text, window=window)
  return flow.x0_from_velocity(x, velocity(x, sigma), sigma[None])


def _velocity(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  text: Text,
  *,
  window: window_lib.Window,
) -> Callable[[Latents, Array], Latents]:
  """Returns the network as a function of the next chunk and its level."""

  # The pass that keeps entries is used for all calls, since the trained one
  # among them needs gradients and a rollout of the same numbers.
  def velocity_of(x: Latents, sigma: Array) -> Latents:
    positions = chunk_pass.positions_of(cache, x.shape[1], window=window)
    level = sigma * wan_config.MAX_TIMESTEP
    return chunk_pass.velocity_and_entries(
      model, cache, x, level, text, positions
    )[0]

  return velocity_of


def _roll_chunk(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  noise: sampling.Noise,
  exit_call: Int[Array, ""],
  text: Text,
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
) -> tuple[cache_lib.Cache, Latents, Trained]:
  """Returns the cache after a chunk, its exit prediction and its record."""
  network = _velocity(model, cache, text, window=window)
  x = sampling.solve(network, noise, sampler=sampler, num_calls=exit_call)
  sigma = jnp.asarray(sampler.sigmas, jnp.float32)[exit_call]
  x0 = predict(model, cache, x, sigma, text, window=window)
  entries = chunk_pass.clean_entries(model, cache, x0, text, window=window)
  after = cache_lib.append(cache, entries, window=window)
  return after, x0, Trained(x, entries)


def generate(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  draws: Draws,
  text: Text,
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  num_trained: int = 0,
) -> SelfRollout:
  """Generates as at inference up to the exit call; has no gradient.

  Args:
    model: The student.
    cache: An empty cache, or what an earlier rollout left (long tuning).
    draws: Noise of every chunk and the exit call.
    text: Text embeddings.
    window: Which frames the cache keeps.
    sampler: The few-step sampler.
    num_trained: Number of frames at the end, whole chunks, that `gradients` is
      going to need.

  Returns:
    Latents of all chunks and what the gradient of the last ones needs.
  """
  # Whoever differentiates around this call keeps no activations of it.
  model, cache, text = jax.lax.stop_gradient((model, cache, text))
  chunks = draws.noise.start.shape[0]
  first = chunks - num_trained // window.chunk_frames

  def run(
    cache: cache_lib.Cache, some: slice, *, keep: bool
  ) -> tuple[cache_lib.Cache, tuple[Chunks, Trained | None]]:
    def step(cache: cache_lib.Cache, noise: sampling.Noise) -> PyTree:
      after, x0, trained = _roll_chunk(
        model,
        cache,
        noise,
        draws.exit_call,
        text,
        window=window,
        sampler=sampler,
      )
      return after, (x0, trained if keep else None)

    return jax.lax.scan(
      step, cache, jax.tree.map(lambda leaf: leaf[some], draws.noise)
    )

  # A record of chunks without a gradient would cost the memory of a cache each.
  before, clips, trained = cache, [], None
  if first:
    before, (x0, _) = run(cache, slice(first), keep=False)
    clips.append(x0)
  after = before
  if first < chunks:
    after, (x0, trained) = run(before, slice(first, None), keep=True)
    clips.append(x0)
  latents = sampling.joined(jnp.concatenate(clips))
  return SelfRollout(latents, trained, before, after)


def gradients(
  model: wan.WanDiT,
  rolled: SelfRollout,
  cotangent: Latents,
  exit_call: Int[Array, ""],
  text: Text,
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
) -> wan.WanDiT:
  """Sums the gradients of all trained chunks, docs/method.md, Eq. (12.3).

  Args:
    model: The student.
    rolled: A rollout of the student.
    cotangent: Gradient of the loss to the latents of the trained frames.
    exit_call: Number of the call whose predictions the latents are.
    text: Text embeddings.
    window: Which frames the cache keeps.
    sampler: The few-step sampler.

  Returns:
    The gradient to the student's parameters.
  """
  assert rolled.trained is not None
  sigma = jnp.asarray(sampler.sigmas, jnp.float32)[exit_call]
  chunks, batch, length = rolled.trained.exit_input.shape[:3]
  pulls = cotangent.reshape(batch, chunks, length, *cotangent.shape[2:])

  def step(carry: PyTree, chunk: tuple[Trained, Array]) -> PyTree:
    cache, total = carry
    trained, pull = chunk

    def x0_of(model: wan.WanDiT) -> Latents:
      x = trained.exit_input
      return predict(model, cache, x, sigma, text, window=window)

    _, back = jax.vjp(x0_of, model)
    total = jax.tree.map(jnp.add, total, back(pull)[0])
    # The cache that a chunk saw is rebuilt from the recorded entries: one kept
    # for every chunk would need the memory of as many caches.
    cache = cache_lib.append(cache, trained.entries, window=window)
    return (cache, total), None

  # A loop over chunks keeps the activations of one chunk only.
  zeros = jax.tree.map(jnp.zeros_like, model)
  every_chunk = (rolled.trained, jnp.moveaxis(pulls, 1, 0))
  (_, total), _ = jax.lax.scan(step, (rolled.before, zeros), every_chunk)
  return total
