"""What a rollout refuses before anything compiles."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from videomla_jax import shapes
from videomla_jax.diffusion import sampling
from videomla_jax.models import wan


def check_length(num_frames: int) -> None:
  """Refuses a video without frames.

  Raises:
    ValueError: If there is no frame.
  """
  if num_frames < 1:
    raise ValueError(f"num_frames={num_frames} must be at least 1.")


def check(
  model: wan.WanDiT,
  text: Shaped[Array, "..."],
  context: Float[Array, "b K H W C"] | None,
  *,
  frame: tuple[int, int, int],
  sampler: sampling.Sampler,
  videos: int,
  num_frames: int,
) -> None:
  """Refuses what does not fit the network, the sampler or each other.

  Args:
    model: The network.
    text: Text embeddings, `[rows, M, Et]`.
    context: First frames that are given, clean latents.
    frame: H, W, C of a latent frame.
    sampler: Sets the number of rows per video.
    videos: Number of videos.
    num_frames: Latent frames of a video.

  Raises:
    ValueError: With the way out.
  """
  rows = videos * sampler.rows_per_video
  if text.shape[0] != rows:
    raise ValueError(
      f"text has {text.shape[0]} rows for {videos} examples; give {rows}: "
      "conditional rows, and with guidance as many unconditional ones after "
      "them."
    )
  check_length(num_frames)
  # Without given frames only the size is checked, and nothing is allocated.
  probe = jax.ShapeDtypeStruct((videos, 1, *frame), jnp.float32)
  _check_latents(model, probe if context is None else context)
  if text.ndim != 3 or text.shape[2] != model.config.text_dim:
    raise ValueError(
      f"text has shape {text.shape} but must be [batch, tokens, "
      f"{model.config.text_dim}]; encode the prompts first."
    )
  if context is not None:
    _check_context(context, frame=frame, videos=videos)


def _check_latents(
  model: wan.WanDiT, latents: Float[Array, "..."] | jax.ShapeDtypeStruct
) -> None:
  """Refuses latents that the network was not trained on."""
  config = model.config
  grid = shapes.token_grid(*latents.shape[-3:-1], patch=config.patch)
  channels = latents.shape[-1]
  if channels != config.channels:
    raise ValueError(
      f"latents have {channels} channels but the model takes "
      f"{config.channels}; use the codec the model was trained with."
    )
  expected = config.learned_grid
  if expected is not None and (grid.rows, grid.columns) != expected:
    raise ValueError(
      f"latents have a token grid of {grid.rows} x {grid.columns} but the "
      f"model was trained on {expected[0]} x {expected[1]}; resize the video."
    )


def _check_context(
  context: Float[Array, "b K H W C"],
  *,
  frame: tuple[int, int, int],
  videos: int,
) -> None:
  """Refuses given frames of another size or another number of clips."""
  if context.shape[0] != videos:
    raise ValueError(
      f"context has {context.shape[0]} examples for {videos} prompts; give "
      "one clip per prompt."
    )
  if context.shape[2:] != tuple(frame):
    raise ValueError(
      f"context frames have shape {context.shape[2:]} but the video has "
      f"{tuple(frame)}; resize the context."
    )
