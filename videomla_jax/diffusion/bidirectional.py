"""Whole clips at once: Wan's own many-step sampling.

docs/method.md, section 7.4. Every frame sees every frame, so a clip is as long
as the network was trained for (21 latent frames) and nothing is shown early.
One compiled step is called for every noise level, so a caller sees the progress
and may stop.
"""

from collections.abc import Iterator
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomla_jax.diffusion import sampling
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.ops import device

Latents = sampling.Latents


def velocity(
  model: wan.WanDiT,
  latents: Float[Array, "B T H W C"],
  sigma: Float[Array, "*#B"] | Float[Array, "B T"],
  text: Float[Array, "B M E"],
  *,
  has_gradients: bool = True,
) -> Float[Array, "B T H W C"]:
  """Predicts the velocity in one pass in which all frames see each other.

  Args:
    model: The network, dense or latent.
    latents: Noisy latents.
    sigma: Noise level 0..1, one for all, one per row or one per frame.
    text: Text embeddings.
    has_gradients: False for a pass without gradients, which needs less memory.
  """
  batch, frames = latents.shape[:2]
  timestep = sigma * wan_config.MAX_TIMESTEP
  if sigma.ndim < 2:
    timestep = jnp.reshape(timestep, (-1, 1))
  run = (
    model.velocity_and_entries if has_gradients else model.velocity_and_history
  )
  out, _ = run(
    latents[:, None],
    jnp.broadcast_to(timestep[:, None], (batch, 1, frames)),
    text,
    window_lib.all_together(frames),
    context_of=lambda own, past: [own],
  )
  return out[:, 0]


@functools.partial(
  jax.jit,
  static_argnames="sampler",
  donate_argnames="state",
  compiler_options=device.PRODUCTS_BY_CUBLAS,
)
def _step(
  model: wan.WanDiT,
  state: sampling.State,
  text: Float[Array, "R M E"],
  call: sampling.Call,
  *,
  sampler: sampling.Sampler,
) -> sampling.State:
  """Runs one network call of the schedule; the state is donated."""
  network = sampling.guided(
    lambda x, sigma: velocity(model, x, sigma, text, has_gradients=False),
    sampler,
  )
  answer = network(state.x, call.sigma)
  return sampling.step(sampler, state, answer, call)


def denoise(
  model: wan.WanDiT,
  noise: Latents,
  text: Float[Array, "R M E"],
  *,
  sampler: sampling.Sampler,
) -> Iterator[Latents]:
  """Yields the latents after every network call; the last ones are clean.

  Args:
    model: The network.
    noise: Gaussian noise of the whole clip.
    text: Text embeddings, with guidance the unconditional rows after the
      conditional ones.
    sampler: A sampler that adds no noise; few-step students are causal.

  Raises:
    ValueError: If the sampler adds fresh noise, or shapes do not fit.
  """
  if sampler.step_rule.adds_noise:
    raise ValueError(
      f"sampler.rule={sampler.rule!r} is for few-step causal "
      "students; use 'unipc' or 'euler' for whole clips."
    )
  rows = noise.shape[0] * sampler.rows_per_video
  if text.shape[0] != rows:
    raise ValueError(
      f"text has {text.shape[0]} rows but {noise.shape[0]} clips need "
      f"{rows}; give conditional, then unconditional embeddings."
    )
  # The rule adds no noise, so there are no steps of fresh noise to hold.
  gaussian = sampling.Noise(jnp.copy(noise), jnp.zeros((0, *noise.shape)))
  calls = sampling.calls(sampler, gaussian)
  state = sampling.start(sampler, gaussian)
  # Every call donates its state, so its leaves must not share memory.
  state = jax.tree.map(jnp.copy, state)
  # This is a Python loop over one program, so that the caller may stop between
  # two calls.
  for i in range(len(sampler.sigmas)):
    call = jax.tree.map(lambda leaf, i=i: leaf[i], calls)
    state = _step(model, state, text, call, sampler=sampler)
    # The next call donates its state; a copy is the caller's to keep.
    yield jnp.copy(state.x)


def generate(
  model: wan.WanDiT,
  noise: Latents,
  text: Float[Array, "R M E"],
  *,
  sampler: sampling.Sampler,
) -> Latents:
  """Returns clean latents of whole clips, see `denoise`."""
  *_, latents = denoise(model, noise, text, sampler=sampler)
  return latents
