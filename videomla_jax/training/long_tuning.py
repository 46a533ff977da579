"""Streaming long tuning: stage 3 on videos that go on from step to step.

A video is rolled out segment by segment, one in each step, up to
`rollout.stream_frames`; then a new video begins with the prompts of that step
(arXiv:2509.22622; docs/method.md, section 12.7). The first segment is a clip.
Later ones are a clip less a chunk, and are judged as the last frames of a clip
that begins with known ones. A step leaves the cache, the last clip and the
prompts to the next one (`Carry`); they are saved with the training state.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videomla_jax.diffusion import rollout
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import window as window_lib
from videomla_jax.training import inputs

# Two programs of a step: the frames before a segment change its shapes.
BEGINS, GOES_ON = 0, 1


class Carry(NamedTuple):
  """What a step leaves to the next one.

  Attributes:
    cache: The student's cache after the last segment.
    clip: The last frames of the video, which begin the next clip.
    batch: The prompts of the video.
  """

  cache: cache_lib.Cache
  clip: Float[Array, "B K H W C"]
  batch: inputs.Batch


class Segment(NamedTuple):
  """What one step rolls out.

  Attributes:
    cache: The student's cache before the segment.
    previous: The last frames before it; None if it is the first segment.
    frames: Number of new latent frames.
  """

  cache: cache_lib.Cache
  previous: Float[Array, "B K H W C"] | None
  frames: int

  def video(self, new: Float[Array, "B T H W C"]) -> Float[Array, "B t H W C"]:
    """Returns the frames before the segment, followed by its new ones."""
    if self.previous is None:
      return new
    return jnp.concatenate([self.previous, new], axis=1)


def check(*, clip: int, rolled: int, longest: int, accumulate: int) -> None:
  """Refuses lengths that cannot be rolled out segment by segment.

  Args:
    clip: `data.num_frames`, latent frames of a clip.
    rolled: `rollout.num_frames`, latent frames of a rollout.
    longest: `rollout.stream_frames`, latent frames that no video exceeds.
    accumulate: `optim.accumulate`, microbatches of an update.

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
  """How videos go on from step to step.

  Attributes:
    window: Which frames a chunk sees.
    frame: Rows, columns and channels of a latent frame.
    clip_frames: Latent frames of a clip, which is the first segment.
    max_frames: Latent frames that no video exceeds.
  """

  window: window_lib.Window
  frame: tuple[int, int, int]
  clip_frames: int
  max_frames: int

  @property
  def new_frames(self) -> int:
    """Number of latent frames of every segment but the first."""
    return self.clip_frames - self.window.chunk_frames

  @property
  def num_segments(self) -> int:
    """Number of segments, and of steps, of one video, Eq. (12.6)."""
    return 1 + (self.max_frames - self.clip_frames) // self.new_frames

  def program(self, step: int) -> int:
    """Returns the program of a step, `BEGINS` or `GOES_ON`.

    All videos of a batch have the same length, so they begin in the same steps.

    Args:
      step: The step, counted from 1.
    """
    return BEGINS if (step - 1) % self.num_segments == 0 else GOES_ON

  def empty(
    self, model: inputs.Network, prompts: dict[str, jax.ShapeDtypeStruct]
  ) -> Carry:
    """Returns zeros in the shape of a carry, for before the first step.

    Nobody reads them, since the first step begins a video; but the state has
    one structure from the start.

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
    """Returns the prompts of a step.

    Args:
      carry: What the step before has left.
      batch: Prompts that were read for this step; a video that goes on keeps
        its own.
      program: `BEGINS` or `GOES_ON`.
    """
    return carry.batch if program == GOES_ON else batch

  def segment(
    self, carry: Carry, model: inputs.Network, size: int, program: int | None
  ) -> Segment:
    """Returns what a step rolls out.

    Args:
      carry: What the step before has left.
      model: The student.
      size: Number of videos.
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
      finite: Whether the loss was finite. If not, the videos stay as they were,
        so that one bad rollout does not spoil all that follow.
    """
    # Known and new frames together are at least a clip.
    clip = segment.video(latents)[:, -self.clip_frames :]
    return jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      Carry(cache, clip, batch),
      carry,
    )

  def _empty_cache(self, model: inputs.Network, size: int) -> cache_lib.Cache:
    """Returns the cache of videos that begin."""
    return rollout.empty_cache(
      inputs.dit(model),
      batch=size,
      frame=self.frame,
      window=self.window,
      max_frames=self.max_frames,
    )
