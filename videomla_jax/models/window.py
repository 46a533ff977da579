"""Which frames a chunk sees, in which slot and at which position.

This file is the only place that knows. The cache stores what it is told, the
plan of teacher forcing lists what it is told, the stream and the costs ask. All
questions go to a `Window`, which has the sizes and passes each question to its
policy, a row of `POLICIES` at the end of this file. A new policy is a class
that answers one of them in another way:

  slots      how many frames are stored
  visible    which of the frames so far the next chunk sees
  slot       where a frame is stored
  positions  the temporal coordinate of each stored frame
  mixture    what frames that leave the window add to those that stay
  in_sink    which frames stay at a change of scene, beside the newest ones

Every answer is arithmetic on frame numbers, for NumPy arrays (static plans) and
JAX arrays alike. Sizes are latent frames; frame numbers count from 0.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int
import numpy as np

EMPTY = -1  # the frame number of a slot that holds no frame

Array = jax.Array | np.ndarray
Scheme = Literal["window", "absolute"]


class Positions(NamedTuple):
  """Temporal coordinates of one pass and what it sees, in latent frames.

  Attributes:
    query: Coordinate of each frame that is computed.
    key: Coordinate of each frame that is seen, in the order of the context.
    visible: False for key frames that must not be seen.
  """

  query: Int[Array, "#B G T"]
  key: Int[Array, "#B G K"]
  visible: Bool[Array, "#B G K"]


class Mixture(NamedTuple):
  """A linear combination that the first R slots become after a chunk.

  Slot r turns into `keep[r]` times itself plus the sum over k of `share[r, k]`
  times entry k, where k counts the slots before the chunk, then the chunk.

  Attributes:
    keep: Weight of what the slot holds once the chunk is written.
    share: Weight of each slot before the chunk, and of each frame of it.
  """

  keep: Float[Array, "B R"]
  share: Float[Array, "B R K"]


class Update(NamedTuple):
  """How a finished chunk changes what is stored.

  Attributes:
    slot: Slot of each frame of the chunk; the number of slots if the frame is
      not kept.
    mixture: What happens to the first slots after that; None for nothing.
  """

  slot: Int[Array, "B T"]
  mixture: Mixture | None

  def matrix(self, slots: int) -> Float[np.ndarray, "B {slots} K"]:
    """The same change as one matrix, for static (NumPy) updates.

    Args:
      slots: Number of slots.

    Returns:
      Weights of what each slot holds after the chunk, over the slots before it
      and the frames of the chunk.
    """
    put = (self.slot[:, None, :] == np.arange(slots)[:, None]).astype(float)
    stay = np.eye(slots) * (1 - put.sum(-1, keepdims=True))
    weights = np.concatenate([stay, put], axis=-1)
    # First the chunk is written, then the first slots are mixed.
    if self.mixture is not None:
      rows = self.mixture.keep.shape[1]
      weights[:, :rows] *= self.mixture.keep[..., None]
      weights[:, :rows] += self.mixture.share
    return weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  """Sizes of the window that a chunk sees, and the policy that fills it.

  Attributes:
    chunk_frames: Frames denoised together.
    sink_frames: Slots in front of the ring, filled by the first frames.
    local_frames: Newest frames, counting the chunk itself; None keeps every
      frame of a rollout of bounded length.
    sink: Name in `POLICIES`: "first" keeps the first frames as they are,
      "average" lets frames that leave the window flow into them.
    sink_decay: Weight that an averaging sink keeps per chunk, 0 to 1.
  """

  chunk_frames: int = 3
  sink_frames: int = 1
  local_frames: int | None = 6
  sink: str = "first"
  sink_decay: float = 0.999

  def __post_init__(self) -> None:
    if self.chunk_frames < 1 or self.sink_frames < 0:
      raise ValueError(
        f"window.chunk_frames={self.chunk_frames} must be at least 1 and "
        f"window.sink_frames={self.sink_frames} at least 0."
      )
    if self.local_frames is not None and (
      self.local_frames < self.chunk_frames
    ):
      raise ValueError(
        f"window.local_frames={self.local_frames} must be at least "
        f"chunk_frames={self.chunk_frames}, since it counts the chunk "
        f"itself; use {self.chunk_frames} or more."
      )
    if self.sink not in POLICIES:
      raise ValueError(
        f"window.sink={self.sink!r} is unknown; use one of {sorted(POLICIES)}."
      )
    # A decay of 1 keeps the first frames, one of 0 the newest leaving ones.
    if not 0 <= self.sink_decay <= 1:
      raise ValueError(
        f"window.sink_decay={self.sink_decay} must be between 0 and 1; use "
        "0.999."
      )

  def history(self, max_frames: int) -> int:
    """Returns the ring slots of a rollout of `max_frames` latent frames."""
    bounded = max(0, max_frames - self.sink_frames)
    if self.local_frames is None:
      return bounded
    return min(self.local_frames - self.chunk_frames, bounded)

  def slots(self, max_frames: int) -> int:
    """Returns the slots of a rollout of `max_frames` latent frames."""
    return POLICIES[self.sink].slots(self, max_frames)

  def visible(
    self, frame: Int[Array, "*N"] | int, *, next_frame: int
  ) -> Bool[Array, "*N"] | bool:
    """Returns True for frames that the chunk at `next_frame` sees."""
    return POLICIES[self.sink].visible(self, frame, next_frame)

  def update(
    self,
    held: Int[Array, "B S"],
    next_frame: Int[Array, "B"],
    length: int,
  ) -> Update:
    """Returns how the next chunk changes what is stored.

    Args:
      held: Frame in each slot before the chunk, EMPTY if none.
      next_frame: First frame of the chunk; rows may be at different frames.
      length: Frames of the chunk.
    """
    # The cache and the plan of teacher forcing both ask here, so training and
    # rollout cannot disagree.
    policy = POLICIES[self.sink]
    xp = held.__array_namespace__()
    frame = next_frame[:, None] + xp.arange(length, dtype=held.dtype)
    end = next_frame[:, None] + length
    return Update(
      policy.slot(self, frame, end, held.shape[1]),
      policy.mixture(self, held, frame, end),
    )

  def positions(
    self,
    held: Int[Array, "B S"],
    next_frame: Int[Array, "B"],
    *,
    scheme: Scheme = "window",
  ) -> tuple[Int[Array, "B S"], Int[Array, "B"]]:
    """Returns coordinates of the stored frames and of the next chunk's first.

    Args:
      held: Frame in each slot, EMPTY if none.
      next_frame: First frame of the chunk.
      scheme: "window" counts visible frames, oldest first, so no coordinate
        ever leaves the range of training; "absolute" gives frame numbers, as
        the first implementations did.
    """
    if scheme == "absolute":
      return held, next_frame
    return POLICIES[self.sink].positions(held)

  def check_dtype(self, dtype: DTypeLike) -> None:
    """Refuses a cache whose dtype would lose what the policy stores.

    Args:
      dtype: Dtype of the stored entries.

    Raises:
      ValueError: If the policy would have no effect.
    """
    POLICIES[self.sink].check_dtype(self, dtype)

  def kept_by_flush(
    self, held: Int[Array, "B S"], next_frame: Int[Array, "B"]
  ) -> Bool[Array, "B S"]:
    """Returns True for slots that stay at a change of scene (Infinity-RoPE).

    These are the sink and the newest frames that fill up a chunk with it.
    """
    # At least one new frame stays, or the next chunk would follow on nothing.
    keep = max(self.chunk_frames - self.sink_frames, 1)
    sink = POLICIES[self.sink].in_sink(self, held)
    return (held >= next_frame[:, None] - keep) | sink


class FirstFrames:
  """The first frames stay for ever, the newest ones move through a ring.

  Nothing is shifted, docs/method.md, Eq. (8.2). Frame f lives at slot

    f                                  if f < sink
    sink + (f - sink) mod history      otherwise
  """

  def slots(self, window: Window, max_frames: int) -> int:
    """Returns the number of sink and ring slots."""
    return min(window.sink_frames, max_frames) + window.history(max_frames)

  def visible(
    self, window: Window, frame: Array | int, next_frame: Array | int
  ) -> Array | bool:
    """Returns True for the sink and the newest frames."""
    if window.local_frames is None:
      return frame >= 0
    # The chunk counts as local but is not among the frames before it.
    history = window.local_frames - window.chunk_frames
    return (frame < window.sink_frames) | (frame >= next_frame - history)

  def in_sink(
    self, window: Window, frame: Int[Array, "B S"]
  ) -> Bool[Array, "B S"]:
    """Returns True for frames that are stored in front of the ring."""
    return frame < window.sink_frames

  def slot(
    self,
    window: Window,
    frame: Int[Array, "B T"],
    end: Int[Array, "B 1"],
    slots: int,
  ) -> Int[Array, "B T"]:
    """Returns the slot of each frame of a chunk that ends before `end`.

    Frames that this very chunk pushes out again get slot `slots`, past the
    end: two writes to one slot would have no order.
    """
    xp = frame.__array_namespace__()
    sink = min(window.sink_frames, slots)
    history = slots - sink
    # A chunk may be longer than the ring: of its frames only the newest stay.
    # A ring without slots keeps nothing, but must not divide by zero.
    ring = sink + (frame - sink) % max(history, 1)
    stays = frame >= xp.maximum(end - history, sink)
    return xp.where(frame < sink, frame, xp.where(stays, ring, slots))

  def positions(self, held: Int[Array, "B S"]) -> tuple[Array, Array]:
    """Returns the rank of each stored frame, and how many there are."""
    # Counting needs no sort, and there are few slots: four by default.
    valid = held != EMPTY
    older = held[:, None, :] < held[:, :, None]
    rank = (older & valid[:, None, :]).sum(-1, dtype=np.int32)
    return rank, valid.sum(-1, dtype=np.int32)

  def mixture(
    self,
    window: Window,
    held: Int[Array, "B S"],
    frame: Int[Array, "B T"],
    end: Int[Array, "B 1"],
  ) -> Mixture | None:
    """Returns None: what leaves the window is forgotten."""
    del window, held, frame, end
    return None

  def check_dtype(self, window: Window, dtype: DTypeLike) -> None:
    """Accepts every dtype: entries are stored as they are."""
    del window, dtype


class AverageSink(FirstFrames):
  """Frames that leave the window flow into the sink (Reward Forcing).

  Per chunk, S <- decay S + (1 - decay) E, docs/method.md, Eq. (8.4). Frame f
  belongs to sink slot `f mod sink`, and E is the mean of the frames of a slot
  that leave with this chunk, among them frames of the chunk itself that are
  never stored. A slot to which no leaving frame belongs stays as it is. With a
  sink of one chunk, frame j of a chunk therefore flows into slot j; with one
  sink frame all of them flow into it. The average stands at the positions of
  the first frames.

  Keys and values are linear in entries, so an average of entries expands to the
  average of keys and values. The cache rounds it to its own dtype after each
  chunk. Steps of 0.001 would vanish in bfloat16 or eight bits unless entries
  differ by several times their size, so `check_dtype` refuses them.
  """

  def mixture(
    self,
    window: Window,
    held: Int[Array, "B S"],
    frame: Int[Array, "B T"],
    end: Int[Array, "B 1"],
  ) -> Mixture | None:
    """Returns the weights of the sink and of what leaves the window."""
    xp = held.__array_namespace__()
    sink = min(window.sink_frames, held.shape[1])
    if not sink or window.local_frames is None:
      return None  # There is nowhere to go, or nothing ever leaves.
    seen = xp.concatenate([held, frame], axis=1)
    leaves = (seen >= sink) & ~self.visible(window, seen, end)
    slot = xp.arange(sink)[:, None]
    flows = leaves[:, None] & ((seen % sink)[:, None] == slot)  # B R K
    # A slot that nothing flows into is multiplied by exactly 1 and keeps its
    # bits, whatever the decay.
    count = flows.sum(-1)
    part = (1 - window.sink_decay) / xp.maximum(count, 1)[..., None]
    # The plan of teacher forcing asks with NumPy arrays, which would give
    # float64: both must mix by the same numbers.
    return Mixture(
      xp.where(count > 0, window.sink_decay, 1.0).astype(np.float32),
      xp.where(flows, part, 0.0).astype(np.float32),
    )

  def check_dtype(self, window: Window, dtype: DTypeLike) -> None:
    """Refuses dtypes that round the step of one chunk away."""
    step, dtype = 1 - window.sink_decay, jnp.dtype(dtype)
    floating = jnp.issubdtype(dtype, jnp.floating)
    # Neighbours of a number differ by this share of it; of the largest number
    # of a token in eight bits.
    spacing = float(jnp.finfo(dtype).eps) if floating else 1 / 127
    if 0 < step < spacing:
      raise ValueError(
        f"window.sink_decay={window.sink_decay} has no effect on a cache in "
        f"{dtype.name}, which rounds its steps away; use "
        "cache_dtype='float32' or a smaller decay."
      )


POLICIES: dict[str, FirstFrames] = {
  "first": FirstFrames(),
  "average": AverageSink(),
}


def all_together(frames: int) -> Positions:
  """Returns positions of a pass in which every frame sees every frame."""
  # Frames are NumPy, so they are a constant of the program.
  frame = np.arange(frames)[None, None]
  return Positions(frame, frame, np.ones_like(frame, bool))
