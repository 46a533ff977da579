"""Streaming long tuning: stage 3 on videos that go on from step to step.

spec/training.md section 4.4 (arXiv:2509.22622). A video is rolled out segment
by segment, one a step, up to `rollout.stream_frames`; then a new one begins
with the prompts of that step. The first segment is a clip; later ones are a
clip less a chunk and are judged as the last frames of a clip that begins with
known ones. The state between steps is the cache, the last clip and the prompts,
and is saved like everything else. The critic's updates roll the same segment
out again with noise of their own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from videomla_jax.diffusion import rollout
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import window as window_lib
from videomla_jax.training import inputs

BEGINS, GOES_ON = 0, 1  # variants of a step


class Stream(NamedTuple):
  """What a step leaves to the next one.

  Attributes:
    cache: Of the student after the last segment.
    clip: The last frames.
    batch: Prompts.
  """

  cache: cache_lib.Cache
  clip: Float[Array, "B K H W C"]
  batch: inputs.Batch


class Segment(NamedTuple):
  """What one step rolls out.

  Attributes:
    cache: Of the student before it.
    previous: Frames before it; None if it is the first.
    frames: How many are new.
  """

  cache: cache_lib.Cache
  previous: Float[Array, "B K H W C"] | None
  frames: int


def is_on(config: Any) -> bool:
  """Whether videos go on from step to step."""
  return config.rollout.stream_frames > 0


def num_segments(config: Any) -> int:
  """Steps of one video."""
  clip = config.data.num_frames
  new = clip - config.window.chunk_frames
  return 1 + (config.rollout.stream_frames - clip) // new


def check(config: Any) -> None:
  """Refuses lengths that cannot be streamed.

  Raises:
    ValueError: With the way out.
  """
  if not is_on(config):
    return
  clip, rolled = config.data.num_frames, config.rollout.num_frames
  if config.rollout.stream_frames < clip or rolled != clip:
    raise ValueError(
      f"rollout.stream_frames={config.rollout.stream_frames} must be at least"
      f" data.num_frames={clip}, and rollout.num_frames={rolled} equal to it;"
      " use stream_frames=240, or 0 for videos that end with their step."
    )
  if config.optim.accumulate != 1:
    raise ValueError(
      f"optim.accumulate={config.optim.accumulate} must be 1 when videos go on"
      " from step to step; use a smaller batch or more devices."
    )


def variant(config: Any, step: int) -> int:
  """Whether a video begins in a step (counted from 1) or goes on."""
  return BEGINS if (step - 1) % num_segments(config) == 0 else GOES_ON


def empty_cache(model: Any, batch: int, config: Any) -> cache_lib.Cache:
  """The cache of a new video."""
  frames = config.rollout.stream_frames or config.rollout.num_frames
  return rollout.empty_cache(
    inputs.dit(model),
    batch=batch,
    frame=tuple(config.data.latent_shape),
    window=window_lib.Window(**config.window),
    max_frames=frames,
  )


def empty(model: Any, batch: PyTree, config: Any) -> Stream:
  """The state before the first step, of the right shapes.

  Args:
    model: The student.
    batch: Prompts of a step, arrays or shapes.
    config: See configs/dmd.py.
  """
  size = inputs.num_examples(batch)
  shape = (size, config.data.num_frames, *config.data.latent_shape)
  return Stream(
    empty_cache(model, size, config),
    jnp.zeros(shape, jnp.float32),
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch),
  )


def segment(
  stream: Stream | None, model: Any, size: int, config: Any, step_variant: Any
) -> Segment:
  """What a step rolls out for `size` examples."""
  if is_on(config) and step_variant == GOES_ON:
    assert stream is not None
    new = config.data.num_frames - config.window.chunk_frames
    return Segment(stream.cache, stream.clip, new)
  cache = empty_cache(model, size, config)
  return Segment(cache, None, config.rollout.num_frames)


def video(part: Segment, new: Float[Array, "B T H W C"]) -> Array:
  """The known frames and the new ones."""
  if part.previous is None:
    return new
  return jnp.concatenate([part.previous, new], axis=1)
