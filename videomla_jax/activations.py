"""Writes what attention layers of a dense Wan see, for its conversion.

  python -m videomla_jax.activations --config=configs/activations.py \
    --config.checkpoint=models/wan_1p3b --config.clips="a.mp4; b.mp4" \
    --config.prompts="what a shows; what b shows" \
    --config.output=activations.safetensors

`convert --to=latent --activations=activations.safetensors` then fits latent
attention to real latents at all noise levels.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax import cli
from videomla_jax import films
from videomla_jax import metrics
from videomla_jax import sample
from videomla_jax import sources
from videomla_jax import text_to_video
from videomla_jax.diffusion import flow
from videomla_jax.init import activations as activations_lib
from videomla_jax.init import statistics


def activations(config: Any) -> int:
  """Runs one config.

  Args:
    config: See configs/activations.py.

  Returns:
    Tokens kept per layer.

  Raises:
    ValueError: If clips, prompts or checkpoint cannot work.
  """
  clips, prompts = (
    sample.split_prompts(text) for text in (config.clips, config.prompts)
  )
  if len(clips) != len(prompts):
    raise ValueError(
      f"clips are {len(clips)} and prompts {len(prompts)}; give one prompt per "
      "clip, separated by semicolons."
    )
  source = sources.open_source(config)
  source.check(prompts)
  height, width = source.pixels
  frames = [
    films.read_clip(
      clip, height=height, width=width, channels=source.pixel_channels
    )
    for clip in clips
  ]
  text = source.embed(prompts, negative=None)
  parts = source.load()
  if parts.dit.config.attention.kind != "dense":
    raise ValueError(
      f"checkpoint={config.checkpoint!r} has latent attention; give the dense "
      "model that is to be converted."
    )
  tokens = _collect(config, parts, frames, text)
  statistics.save(config.output, tokens)
  print(f"{len(tokens)} layers, {len(tokens[0])} tokens: {config.output}")
  return len(tokens[0])


def _collect(config, parts, frames, text) -> list[np.ndarray]:
  """Tokens of all clips, each at several noise levels, joined by layer."""
  rounds, kept = config.levels, []
  each = -(-config.max_tokens // (len(frames) * rounds))
  total = len(frames) * rounds
  with metrics.Progress(total, "activations", unit="pass") as progress:
    for i, clip in enumerate(frames):
      clip = text_to_video.usable_clip(
        clip, parts, num_frames=config.num_frames
      )
      clean = text_to_video.encode(parts, clip[None])
      for level in range(rounds):
        key = jax.random.fold_in(
          jax.random.key(config.seed), i * rounds + level
        )
        # Levels are spread evenly, and warped as in training.
        sigma = flow.shift((level + 0.5) / rounds, config.shift)
        sigma = jnp.full((1,), sigma, jnp.float32)
        noise = jax.random.normal(key, clean.shape)
        noisy = flow.add_noise(clean, noise, sigma[:, None])
        kept.append(
          activations_lib.collect(
            parts.dit, noisy, sigma, text[i : i + 1], max_tokens=each, seed=i
          )
        )
        progress.update(1)
  return [np.concatenate(layer) for layer in zip(*kept, strict=True)]


if __name__ == "__main__":
  cli.run(activations)
