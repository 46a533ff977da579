"""What the tests of rollouts share: a tiny network, its text, keys, samplers."""

from typing import Any

import jax
import numpy as np

from tests import tiny_model
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib

B, FRAME = 2, tiny_model.FRAME
WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=5)
SAMPLERS = {
  "few_step": sampling.few_step((1000, 500)),
  "euler": sampling.euler(2, shift=3.0, guidance=None),
  "guided": sampling.euler(2, shift=3.0, guidance=2.5),
}


def setup(
  seed: int, name: str = "few_step", kind: str = "latent", **kwargs: Any
) -> tuple[wan.WanDiT, jax.Array, jax.Array, sampling.Sampler]:
  """Returns model, text of all rows, one key per video, sampler."""
  rng = np.random.default_rng(seed)
  model = tiny_model.build(kind, rng, **kwargs)
  sampler = SAMPLERS[name]
  text = tiny_model.normal(rng, B * sampler.rows_per_video, *tiny_model.TEXT)
  return model, text, jax.random.split(jax.random.key(seed), B), sampler


def generate(
  model: wan.WanDiT,
  text: jax.Array,
  keys: jax.Array,
  sampler: sampling.Sampler,
  num_frames: int,
  **kwargs: Any,
) -> jax.Array:
  """Returns the latents of whole videos; other arguments by name."""
  values = dict(frame=FRAME, window=WINDOW) | kwargs
  return rollout.generate(
    model, text, keys, num_frames=num_frames, sampler=sampler, **values
  )
