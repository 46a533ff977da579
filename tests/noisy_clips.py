"""Noisy latents of the small world's clips: inputs to study a network with."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from videomla_jax.diffusion import flow
from videomla_jax.small_world import measures
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import prompts as prompts_lib


class NoisyClips(NamedTuple):
  """Clips, each at a noise level of its own, with their text.

  Attributes:
    latents: Noisy latents.
    sigma: Noise levels, uniform in 0..1.
    text: Embeddings of the prompts.
  """

  latents: Float[Array, "B T H W C"]
  sigma: Float[Array, "B"]
  text: Float[Array, "B M Et"]


def draw(
  model: model_lib.VideoModel, *, count: int, num_frames: int, seed: int
) -> NoisyClips:
  """Draws clips of moving digits for prompts that training never showed.

  Args:
    model: Encodes pixels and words.
    count: Clips.
    num_frames: Latent frames of each.
    seed: Of digits, motion, noise and levels.
  """
  rng = np.random.default_rng(seed)
  known = [*prompts_lib.held_out_prompts()]
  prompts = [known[i] for i in rng.integers(0, len(known), count)]
  videos = measures.real_videos(prompts, num_frames=num_frames, seed=seed)
  clean = model.codec.encode(jnp.asarray(np.asarray(videos) * 255, jnp.uint8))
  noise = jnp.asarray(rng.standard_normal(clean.shape), jnp.float32)
  sigma = jnp.asarray(rng.uniform(0, 1, count), jnp.float32)
  tokens = prompts_lib.tokenize_batch([p.text() for p in prompts])
  text = model.encode_text(jnp.asarray(tokens))
  return NoisyClips(flow.add_noise(clean, noise, sigma[:, None]), sigma, text)
