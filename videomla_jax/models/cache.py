"""The rolling cache: a functional ring buffer of latent frames.

Slots 0..sink-1 hold the first frames for ever, the others the newest frames in
a ring. Nothing is shifted: frame f lives at slot

  f                                  if f < sink
  sink + (f - sink) mod history      otherwise

`local_frames` COUNTS the chunk that is being denoised, whose own keys are
never stored while it is noisy, so history = local_frames - chunk_frames.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, PyTree

from videomla_jax import sharding
from videomla_jax.ops import quantise

EMPTY = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  """Which latent frames a chunk sees.

  Attributes:
    chunk_frames: Frames denoised together.
    sink_frames: First frames of the video, kept for ever.
    local_frames: Newest frames, counting the chunk itself; None keeps every
      frame of a rollout of bounded length.
  """

  chunk_frames: int = 3
  sink_frames: int = 1
  local_frames: int | None = 6

  def __post_init__(self):
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

  def history(self, max_frames: int) -> int:
    """Ring slots of a rollout of `max_frames` latent frames."""
    bounded = max(0, max_frames - self.sink_frames)
    if self.local_frames is None:
      return bounded
    return min(self.local_frames - self.chunk_frames, bounded)

  def slots(self, max_frames: int) -> int:
    """Frames the cache stores: sink and history."""
    return min(self.sink_frames, max_frames) + self.history(max_frames)


class Cache(NamedTuple):
  """State of a rollout.

  Attributes:
    entries: What attention stores; leaves are `[layers, B, slots, P, ...]`.
    frame: Absolute latent frame of each slot, EMPTY (-1) if none.
    next_frame: Frames seen so far by each stream.
  """

  entries: PyTree
  frame: Int32[Array, "B slots"]
  next_frame: Int32[Array, "B"]


def empty(entry: PyTree, *, window: Window, max_frames: int) -> Cache:
  """Allocates a cache.

  Args:
    entry: Shapes and dtypes of one chunk's entries, leaves
      `[layers, B, T, P, ...]`; T is replaced by the slots.
    window: Which frames to keep.
    max_frames: Latent frames of the rollout; bounds the buffer.

  Returns:
    A cache without frames.
  """
  slots = window.slots(max_frames)
  batch = jax.tree.leaves(entry)[0].shape[1]
  return Cache(
    entries=jax.tree.map(
      lambda x: jnp.zeros((*x.shape[:2], slots, *x.shape[3:]), x.dtype),
      entry,
    ),
    frame=jnp.full((batch, slots), EMPTY, jnp.int32),
    next_frame=jnp.zeros((batch,), jnp.int32),
  )


def commit(cache: Cache, entries: PyTree, *, window: Window) -> Cache:
  """Stores a finished chunk and forgets what leaves the window.

  Args:
    cache: The cache before the chunk.
    entries: The chunk's entries, leaves `[layers, B, T, P, ...]`, see `write`.
    window: The window the cache was made for.

  Returns:
    The cache with every stream advanced by T frames. Streams may be at
    different frames.
  """
  length = jax.tree.leaves(entries)[0].shape[2]
  slot = slots_of(cache, length, window=window)
  return advance(cache, write(cache.entries, entries, slot), slot)


def slots_of(
  cache: Cache, length: int, *, window: Window
) -> Int32[Array, "B {length}"]:
  """Slot of each of the next frames; past the end if it is not kept.

  Args:
    cache: The cache before them.
    length: Frames.
    window: The window the cache was made for.
  """
  slots = cache.frame.shape[1]
  frame = cache.next_frame[:, None] + jnp.arange(length, dtype=jnp.int32)
  end = cache.next_frame[:, None] + length
  sink = min(window.sink_frames, slots)
  history = slots - sink
  ring = sink + (frame - sink) % max(history, 1)
  # Frames that this very chunk pushes out again are not written: two writes to
  # one slot would have no order.
  stays = frame >= jnp.maximum(end - history, sink)
  return jnp.where(frame < sink, frame, jnp.where(stays, ring, slots))


def write(
  stored: PyTree,
  entries: PyTree,
  slot: Int32[Array, "B T"],
  layer: Int32[Array, ""] | int | None = None,
) -> PyTree:
  """Writes a chunk's entries of all layers, or of one.

  Args:
    stored: Entries of the cache, leaves `[layers, B, slots, P, ...]`.
    entries: Of the chunk, leaves `[layers, B, T, P, ...]`, without layers if
      one is named; they are cast, or quantised with a scale per token, to what
      the cache stores.
    slot: See `slots_of`.
    layer: Which one.
  """
  own = "cache" if layer is None else "batch"
  if not jax.tree.leaves(stored)[0].shape[2]:
    return stored  # Scatter into nothing has no gradient rule.

  def put(buffer, new, slot, layer):
    row = jnp.arange(slot.shape[0])[:, None]
    where = (slice(None) if layer is None else layer, row, slot)
    return buffer.at[where].set(new, mode="drop")

  def put_locally(buffer, new):
    # A batch that is split over devices is written where it is.
    return sharding.per_device(
      put, ("cache", buffer), (own, new), ("batch", slot), ("whole", layer)
    )

  return jax.tree.map(put_locally, stored, quantise.store_like(entries, stored))


def advance(cache: Cache, entries: PyTree, slot: Int32[Array, "B T"]) -> Cache:
  """The cache after a chunk whose entries have been written.

  Args:
    cache: The cache before the chunk.
    entries: Of all layers, after the chunk.
    slot: See `slots_of`.
  """
  length = slot.shape[1]
  frame = cache.next_frame[:, None] + jnp.arange(length, dtype=jnp.int32)
  return Cache(
    entries=entries,
    frame=write(cache.frame[None], frame[None], slot)[0],
    next_frame=cache.next_frame + length,
  )


def flush(cache: Cache, *, window: Window) -> Cache:
  """Keeps the sink and so many newest frames that a chunk is filled.

  The cheap context cut at a change of scene (Infinity-RoPE); no frame is
  computed again.
  """
  keep = max(window.chunk_frames - window.sink_frames, 1)
  newest = cache.frame >= cache.next_frame[:, None] - keep
  kept = newest | (cache.frame < window.sink_frames)
  return cache._replace(frame=jnp.where(kept, cache.frame, EMPTY))


def valid(cache: Cache) -> Bool[Array, "B slots"]:
  """True where a slot holds a frame."""
  return cache.frame != EMPTY


def rank(cache: Cache) -> Int32[Array, "B slots"]:
  """Window-relative temporal coordinate: older frames in the window."""
  older = cache.frame[:, None, :] < cache.frame[:, :, None]
  return (older & valid(cache)[:, None, :]).sum(-1, dtype=jnp.int32)


def num_bytes(cache: Cache | Any) -> int:
  """Bytes of the stored entries, from shapes alone."""
  return sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.entries)
  )
