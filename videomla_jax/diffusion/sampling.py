"""How a chunk is denoised: noise levels, step rule, guidance, noise.

spec/diffusion.md sections 7 and 8. Few-step students jump to x0 and add fresh
noise; stage-1 models follow the flow ODE with Euler steps and guidance.
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomla_jax.diffusion import flow

# Examples b are half of the network's batch B under guidance.
Latents = Float[Array, "b T H W C"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """How a chunk is denoised.

  Attributes:
    sigmas: Noise levels of the network calls, descending from 1; the level
      after the last is 0.
    renoise: True jumps to x0 and adds fresh noise (few-step students), False
      follows the flow ODE with Euler steps (stage-1 models).
    guidance: w in `uncond + w (cond - uncond)`; None runs no unconditional
      pass.
  """

  sigmas: tuple[float, ...]
  renoise: bool
  guidance: float | None = None

  def __post_init__(self):
    levels = (*self.sigmas, 0.0)
    descends = all(a > b for a, b in itertools.pairwise(levels))
    if len(levels) < 2 or levels[0] > 1 or not descends:
      raise ValueError(
        f"sampler.sigmas={self.sigmas} must descend from at most 1 and stay "
        "above 0; list the noise levels of the network calls."
      )

  @property
  def streams(self) -> int:
    """Network inputs per example: two with guidance."""
    return 1 if self.guidance is None else 2


def few_step(
  steps: tuple[int, ...] = (1000, 750, 500, 250), *, shift: float = 5.0
) -> Sampler:
  """The distilled student's sampler, spec/diffusion.md Eq. (15) and (16)."""
  sigmas = flow.few_step_sigmas(steps, s=shift)
  return Sampler(sigmas=tuple(map(float, sigmas)), renoise=True)


def euler(num_steps: int, *, shift: float, guidance: float | None) -> Sampler:
  """The many-step sampler of stage-1 models, with guidance.

  Raises:
    ValueError: If there is no step.
  """
  if num_steps < 1:
    raise ValueError(f"num_steps={num_steps} must be at least 1; use 10.")
  sigmas = flow.sigma_table(num_steps, s=shift)
  return Sampler(
    sigmas=tuple(map(float, sigmas)), renoise=False, guidance=guidance
  )


class Noise(NamedTuple):
  """Gaussian noise of one chunk.

  Attributes:
    start: What the chunk starts from.
    fresh: Noise of each re-noising step, one fewer than the network calls.
  """

  start: Latents
  fresh: Float[Array, "K B T H W C"]


def chunk_noise(
  keys: Array, chunk: Array, *, shape: tuple[int, ...], sampler: Sampler
) -> Noise:
  """Noise of one chunk from the keys alone: no chunk depends on the length.

  Args:
    keys: One key per example, so a video does not depend on its batch.
    chunk: Index of the chunk.
    shape: T, H, W, C of the chunk.
    sampler: Sets how often noise is added again.
  """
  count = len(sampler.sigmas) if sampler.renoise else 1

  def draw(key):
    key = jax.random.fold_in(key, chunk)
    return jax.random.normal(key, (count, *shape), jnp.float32)

  noise = jax.vmap(draw, out_axes=1)(keys)
  return Noise(noise[0], noise[1:])
