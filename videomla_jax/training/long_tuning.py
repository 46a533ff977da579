"""Streaming long tuning: stage 3 on videos that go on from step to step.

docs/method.md, section 12.7 (arXiv:2509.22622). A video is rolled out segment
by segment, one a step, up to `rollout.stream_frames`; then a new one begins
with the prompts of that step. The first segment is a clip; later ones are a
clip less a chunk and are judged as the last frames of a clip that begins with
known ones. What a step leaves to the next one is the cache, the last clip and
the prompts (`Carry`), and is saved like everything else. The critic's updates
roll the same segment out again with noise of their own.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videomla_jax.diffusion import rollout
from videomla_jax.models import cache as cache_lib
from videomla_jax.training import inputs

BEGINS, GOES_ON = 0, 1  # the two programs of a step


class Carry(NamedTuple):
  """What a step leaves to the next one.

  Attributes:
    cache: The student's cache after the last segment.
    clip: The last frames of the video.
    batch: Its prompts.
  """

  cache: cache_lib.Cache
  clip: Float[Array, "B K H W C"]
  batch: inputs.Batch


class Segment(NamedTuple):
  """What one step rolls out.

  Attributes:
    cache: The student's cache before the segment.
    previous: Frames before it; None if it is the first.
    frames: New latent frames.
  """

  cache: cache_lib.Cache
  previous: Float[Array, "B K H W C"] | None
  frames: int

  def video(self, new: Float[Array, "B T H W C"]) -> Float[Array, "B t H W C"]:
    """Returns the frames before the segment and its new ones."""
    if self.previous is None:
      return new
    return jnp.concatenate([self.previous, new], axis=1)


def check(*, clip: int, rolled: int, longest: int, accumulate: int) -> None:
  """Refuses lengths that cannot be rolled out segment by segment.

  Args:
    clip: Latent frames of a clip, `data.num_frames`.
    rolled: Latent frames of a rollout, `rollout.num_frames`.
    longest: Latent frames of the longest video, `rollout.stream_frames`.
    accumulate: Microbatches of an update.

  Raises:
    ValueError: With the way out.
  """
  if longest < clip or rolled != clip:
    raise ValueError(
      f"rollout.stream_frames={longest} must be at least"
      f" data.num_frames={clip}, and rollout.num_frames={rolled} equal to it;"
      " use stream_frames=240, or 0 for videos that end with their step."
    )
  if accumulate != 1:
    raise ValueError(
      f"optim.accumulate={accumulate} must be 1 when videos go on"
      " from step to step; use a smaller batch or more devices."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongTuning:
  """How videos go on.

  Attributes:
    window: Which frames a chunk sees.
    frame: Rows, columns and channels of a latent frame.
    clip_frames: Latent frames of a clip, the first segment.
    max_frames: Latent frames that a video never exceeds.
  """

  window: cache_lib.Window
  frame: tuple[int, int, int]
  clip_frames: int
  max_frames: int

  @property
  def new_frames(self) -> int:
    """Latent frames of every segment but the first."""
    return self.clip_frames - self.window.chunk_frames

  @property
  def num_segments(self) -> int:
    """Steps of one video."""
    return 1 + (self.max_frames - self.clip_frames) // self.new_frames

  def program(self, step: int) -> int:
    """Returns whether a video begins in a step, counted from 1, or goes on."""
    return BEGINS if (step - 1) % self.num_segments == 0 else GOES_ON

  def empty(
    self, model: inputs.Network, prompts: dict[str, jax.ShapeDtypeStruct]
  ) -> Carry:
    """Returns what stands for the carry before the first step.

    Args:
      model: The student.
      prompts: Shapes of the prompts of a step.
    """
    size = inputs.num_examples(prompts)
    return Carry(
      self._empty_cache(model, size),
      jnp.zeros((size, self.clip_frames, *self.frame), jnp.float32),
      jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), prompts),
    )

  def prompts(
    self, carry: Carry, batch: inputs.Batch, program: int | None
  ) -> inputs.Batch:
    """Returns the prompts of a step: new ones, or those of the video."""
    return carry.batch if program == GOES_ON else batch

  def segment(
    self, carry: Carry, model: inputs.Network, size: int, program: int | None
  ) -> Segment:
    """Returns what a step rolls out.

    Args:
      carry: What the step before has left.
      model: The student.
      size: Videos.
      program: `BEGINS` or `GOES_ON`.
    """
    if program == GOES_ON:
      return Segment(carry.cache, carry.clip, self.new_frames)
    return Segment(self._empty_cache(model, size), None, self.clip_frames)

  def next_carry(
    self,
    carry: Carry,
    segment: Segment,
    latents: Float[Array, "B T H W C"],
    cache: cache_lib.Cache,
    batch: inputs.Batch,
    *,
    finite: Bool[Array, ""],
  ) -> Carry:
    """Returns what a step leaves to the next one.

    Args:
      carry: What the step before has left.
      segment: What this step rolled out from.
      latents: The new frames.
      cache: The student's cache after them.
      batch: The prompts.
      finite: Whether the step was finite; if not, nothing changes.
    """
    clip = segment.video(latents)[:, -self.clip_frames :]
    return jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      Carry(cache, clip, batch),
      carry,
    )

  def _empty_cache(self, model: inputs.Network, size: int) -> cache_lib.Cache:
    return rollout.empty_cache(
      inputs.dit(model),
      batch=size,
      frame=self.frame,
      window=self.window,
      max_frames=self.max_frames,
    )
