"""Writes what attention layers of a dense Wan see, for its conversion.

  python -m videomla_jax.calibrate --config=configs/calibrate.py \
    --config.checkpoint=models/wan_1p3b --config.clips="a.mp4; b.mp4" \
    --config.prompts="what a shows; what b shows" \
    --config.output=activations.safetensors

`convert --to=latent --activations=activations.safetensors` then fits latent
attention to real latents at all noise levels. With `--config.compare=FOLDER`, a
converted network, nothing is collected: the relative error of its attention
outputs on these clips is written to the output, layer by layer.
"""

from collections.abc import Iterator
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax import sample
from videomla_jax.conversion import calibration as activations_lib
from videomla_jax.conversion import moments
from videomla_jax.diffusion import flow
from videomla_jax.generation import given_frames
from videomla_jax.generation import pipeline
from videomla_jax.generation import sources
from videomla_jax.models import released
from videomla_jax.runtime import cli
from videomla_jax.runtime import metrics
from videomla_jax.storage import atomic


def activations(config: Any) -> int | list[float]:
  """Runs one config.

  Args:
    config: See configs/calibrate.py.

  Returns:
    Tokens kept per layer; with `compare`, the error of each layer.

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
    given_frames.read_clip(
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
  if config.compare:
    return _compare(config, parts, frames, text)
  tokens = _collect(config, parts, frames, text)
  moments.save(config.output, tokens)
  print(f"{len(tokens)} layers, {len(tokens[0])} tokens: {config.output}")
  return len(tokens[0])


def _noisy(config, parts, frames, text) -> Iterator[Any]:
  """Yields latents, level and text of every clip at several noise levels."""
  rounds = config.levels
  total = len(frames) * rounds
  with metrics.Progress(total, "activations", unit="pass") as progress:
    for i, clip in enumerate(frames):
      clip = pipeline.usable_clip(clip, parts, num_frames=config.num_frames)
      clean = pipeline.encode(parts, clip[None])
      for level in range(rounds):
        key = jax.random.fold_in(
          jax.random.key(config.seed), i * rounds + level
        )
        # Levels are spread evenly, and warped as in training.
        sigma = flow.shift((level + 0.5) / rounds, config.shift)
        sigma = jnp.full((1,), sigma, jnp.float32)
        noise = jax.random.normal(key, clean.shape)
        noisy = flow.add_noise(clean, noise, sigma[:, None])
        yield noisy, sigma, text[i : i + 1]
        progress.update(1)


def _collect(config, parts, frames, text) -> list[np.ndarray]:
  """Tokens of all clips and levels, joined by layer."""
  each = -(-config.max_tokens // (len(frames) * config.levels))
  kept = [
    activations_lib.collect(parts.dit, *clip, max_tokens=each, seed=i)
    for i, clip in enumerate(_noisy(config, parts, frames, text))
  ]
  return [np.concatenate(layer) for layer in zip(*kept, strict=True)]


def _compare(config, parts, frames, text) -> list[float]:
  """Attention-output errors of a converted network, mean over the clips."""
  latent = released.load(config.compare, "wan_dit")
  if latent.config.num_layers != parts.dit.config.num_layers:
    raise ValueError(
      f"compare={config.compare!r} has {latent.config.num_layers} layers but "
      f"the dense model {parts.dit.config.num_layers}; give what was converted "
      "from it."
    )
  errors = [
    activations_lib.output_errors(parts.dit, latent, *clip)
    for clip in _noisy(config, parts, frames, text)
  ]
  means = np.mean(errors, axis=0).tolist()
  text = json.dumps(dict(output_error=means), indent=1) + "\n"
  atomic.write_text(config.output, text)
  print("attention-output error by layer:", [round(e, 3) for e in means])
  return means


if __name__ == "__main__":
  cli.run(activations)
