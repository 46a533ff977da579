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
from collections.abc import Sequence
import dataclasses
import json
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from videomla_jax import shapes
from videomla_jax.conversion import calibration
from videomla_jax.conversion import moments
from videomla_jax.costs import attention_choice
from videomla_jax.data import prompt_files
from videomla_jax.diffusion import flow
from videomla_jax.generation import given_frames
from videomla_jax.generation import networks as networks_lib
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.generation import sources
from videomla_jax.generation import unused
from videomla_jax.media import fitting
from videomla_jax.models import released
from videomla_jax.runtime import cli
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values
from videomla_jax.runtime import progress_bar
from videomla_jax.storage import atomic
from videomla_jax.storage import output_folder

Clip = UInt8[np.ndarray, "t h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
  """What is calibrated on; the fields are the keys of `configs/calibrate.py`.

  Attributes:
    networks: The dense model.
    clips: Files of video.
    prompts: What each clip shows.
    prompts_file: Text file with one prompt per line, which takes the place of
      `prompts`; or empty.
    num_frames: Pixel frames of a clip that are used.
    levels: Noise levels per clip.
    shift: Warp of the noise levels, as in training.
    max_tokens: Tokens that are kept per layer, at most.
    seed: Seed of the noise and of the choice of tokens.
    compare: Folder of a converted network whose errors are measured; empty
      collects activations.
    output: File of the activations or of the errors.
  """

  networks: networks_lib.Networks = dataclasses.field(
    metadata=config_reader.INLINE
  )
  clips: tuple[config_values.Path, ...]
  prompts: tuple[str, ...]
  prompts_file: config_values.Path = ""
  num_frames: Annotated[int, config_values.Range(1, 10_000)]
  levels: Annotated[int, config_values.Range(1, 1000)]
  shift: Annotated[float | int, config_values.Range(0.01, 1000)]
  max_tokens: Annotated[int, config_values.Range(1, 10**9)]
  seed: config_values.Seed
  compare: config_values.Path
  output: config_values.Path

  def __post_init__(self) -> None:
    if self.prompts_file:
      listed = tuple(prompt_files.read_prompts(self.prompts_file))
      # A frozen dataclass is completed in its constructor only.
      object.__setattr__(self, "prompts", listed)
    if len(self.clips) != len(self.prompts):
      raise ValueError(
        f"clips are {len(self.clips)} and prompts {len(self.prompts)}; give "
        "one prompt per clip, separated by semicolons."
      )
    unused.refuse(
      dict(decoder=self.networks.decoder), why="here, where nothing is decoded"
    )
    unused.refuse(
      dict(
        products=self.networks.products,
        layers_apart=self.networks.layers_apart,
      ),
      why="here, where the given weights are measured",
    )


class NoisyClip(NamedTuple):
  """What the network is given of one clip at one noise level.

  Attributes:
    latents: Noisy latents.
    sigma: Noise level, 0..1.
    text: Embedding of the clip's prompt.
  """

  latents: Float[Array, "1 T H W C"]
  sigma: Float[Array, "1"]
  text: Float[Array, "1 M E"]


def calibrate(config: config_reader.Values) -> dict[str, object]:
  """Collects activations, or measures the errors of a converted network.

  Args:
    config: Values of the keys in `configs/calibrate.py`.

  Returns:
    The tokens kept per layer; with `compare`, the error of each layer.

  Raises:
    ValueError: If clips, prompts or checkpoint cannot work.
  """
  request = config_reader.read(Calibration, config)
  source = sources.open_source(request.networks)
  source.check(request.prompts)
  # What cannot be written would cost the whole work.
  output_folder.check_file(request.output)
  clips = _read_clips(request, source)
  # As in `sample`, the text encoder is gone before the network is loaded.
  text = source.embed(request.prompts, negative=None)
  pipeline = source.load()
  if pipeline.dit.config.attention.kind != "dense":
    raise ValueError(
      f"checkpoint={request.networks.checkpoint!r} has latent attention; give "
      "the dense model that is to be converted."
    )
  attention = _attention(pipeline, clips)
  print(*attention_choice.lines(attention), sep="\n", flush=True)
  noisy = _noisy_clips(request, pipeline, clips, text)
  if request.compare:
    errors = _compare(request, pipeline, noisy, attention)
    return dict(output_error=errors, attention=attention)
  return dict(tokens=_collect(request, pipeline, noisy), attention=attention)


def _attention(
  pipeline: pipeline_lib.Pipeline, clips: Sequence[Clip]
) -> attention_choice.Choices:
  """Says which attention the dense model takes for the longest clip."""
  config = pipeline.dit.config
  longest = max(clips, key=len)
  usable = pipeline_lib.usable_clip(longest, pipeline, most=len(longest))
  return attention_choice.of(
    config,
    rows=1,
    tokens=shapes.token_grid(*pipeline.frame[:2], patch=config.patch).tokens,
    chunk_frames=pipeline.latents_for(len(usable)),
  )


def _read_clips(request: Calibration, source: sources.Source) -> list[Clip]:
  """Reads the beginnings of all clips, in the form of the model's frames."""
  height, width = source.pixels
  shape = fitting.FrameShape(
    height=height, width=width, channels=source.pixel_channels
  )
  given = [
    given_frames.read_start(
      clip, shape=shape, fps=source.fps, most=request.num_frames
    )
    for clip in request.clips
  ]
  for one in given:
    print(*one.changes, sep="\n", end="\n" if one.changes else "", flush=True)
  return [one.frames for one in given]


def _noisy_clips(
  request: Calibration,
  pipeline: pipeline_lib.Pipeline,
  clips: Sequence[Clip],
  text: Float[Array, "R M E"],
) -> Iterator[NoisyClip]:
  """Yields every clip at several noise levels."""
  total = len(clips) * request.levels
  with progress_bar.Progress(total, "activations", unit="pass") as progress:
    for i, clip in enumerate(clips):
      clip = pipeline_lib.usable_clip(clip, pipeline, most=len(clip))
      clean = pipeline_lib.encode(pipeline, clip[None])
      for level in range(request.levels):
        # Every clip at every level has noise of its own.
        key = jax.random.fold_in(
          jax.random.key(request.seed), i * request.levels + level
        )
        # Levels are spread evenly, and warped as in training.
        # Levels lie in the middle of equal parts: 0 and 1 are none of them.
        sigma = flow.shift((level + 0.5) / request.levels, request.shift)
        sigma = jnp.full((1,), sigma, jnp.float32)
        noise = jax.random.normal(key, clean.shape)
        noisy = flow.add_noise(clean, noise, sigma[:, None])
        yield NoisyClip(noisy, sigma, text[i : i + 1])
        progress.update(1)


def _collect(
  request: Calibration,
  pipeline: pipeline_lib.Pipeline,
  noisy: Iterator[NoisyClip],
) -> int:
  """Writes tokens of all clips and levels, joined by layer.

  Returns:
    Tokens per layer.
  """
  # Every clip and level gives as many tokens, so that none dominates.
  each = -(-request.max_tokens // (len(request.clips) * request.levels))
  kept = [
    calibration.collect(pipeline.dit, *clip, max_tokens=each, seed=i)
    for i, clip in enumerate(noisy)
  ]
  tokens = [np.concatenate(layer) for layer in zip(*kept, strict=True)]
  moments.save(request.output, tokens)
  print(f"{len(tokens)} layers, {len(tokens[0])} tokens: {request.output}")
  return len(tokens[0])


def _compare(
  request: Calibration,
  pipeline: pipeline_lib.Pipeline,
  noisy: Iterator[NoisyClip],
  attention: attention_choice.Choices,
) -> list[float]:
  """Writes errors of a converted network's attention outputs.

  Returns:
    The error of each layer, a mean over all clips and levels.
  """
  latent = released.load(request.compare, "dit")
  # Errors are taken layer by layer, so the layers must correspond.
  if latent.config.num_layers != pipeline.dit.config.num_layers:
    raise ValueError(
      f"compare={request.compare!r} has {latent.config.num_layers} layers but "
      f"the dense model {pipeline.dit.config.num_layers}; give what was "
      "converted from it."
    )
  errors = [
    calibration.output_errors(pipeline.dit, latent, *clip) for clip in noisy
  ]
  means = np.mean(errors, axis=0).tolist()
  report = dict(output_error=means, attention=attention)
  text = json.dumps(report, indent=1) + "\n"
  atomic.write_text(request.output, text)
  print("attention-output error by layer:", [round(e, 3) for e in means])
  return means


if __name__ == "__main__":
  cli.run(calibrate)
