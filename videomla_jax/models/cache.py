"""The rolling cache: what attention stores of the frames in the window.

A pytree of fixed size. `Window` says which frame goes into which slot and what
happens to the frames that leave; nothing is ever shifted. The chunk that is
being denoised is not in the cache: only its clean entries are appended.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, PyTree, Shaped

from videomla_jax import sharding
from videomla_jax.models import window as window_lib
from videomla_jax.ops import device
from videomla_jax.ops import quantise

Layer = Int32[Array, ""] | int


class Cache(NamedTuple):
  """Entries of the frames in the window, row by row.

  Attributes:
    entries: What attention stores; leaves are `[layers, B, slots, P, ...]`.
    frame: Absolute latent frame of each slot, EMPTY (-1) if none.
    next_frame: Frames seen so far in each row.
  """

  entries: PyTree
  frame: Int32[Array, "B slots"]
  next_frame: Int32[Array, "B"]


def empty(
  entry: PyTree, *, window: window_lib.Window, max_frames: int
) -> Cache:
  """Allocates a cache without frames.

  Args:
    entry: Shapes and dtypes of one chunk's entries, leaves
      `[layers, B, T, P, ...]`; T is replaced by the slots.
    window: Which frames to keep.
    max_frames: Latent frames of the rollout; bounds the buffer.

  Returns:
    A cache of zeros in which every slot is empty.
  """
  # The cache begins with zeros, since hidden keys have weight 0 and 0 times NaN
  # would be NaN.
  slots = window.slots(max_frames)
  batch = jax.tree.leaves(entry)[0].shape[1]
  return Cache(
    entries=jax.tree.map(
      lambda x: jnp.zeros((*x.shape[:2], slots, *x.shape[3:]), x.dtype),
      entry,
    ),
    frame=jnp.full((batch, slots), window_lib.EMPTY, jnp.int32),
    next_frame=jnp.zeros((batch,), jnp.int32),
  )


def append(
  cache: Cache, entries: PyTree, *, window: window_lib.Window
) -> Cache:
  """Stores a finished chunk and forgets what leaves the window.

  Args:
    cache: The cache before the chunk.
    entries: The chunk's entries, leaves `[layers, B, T, P, ...]`, see `write`.
    window: The window that the cache was made for.

  Returns:
    The cache with every row advanced by T frames. Rows may be at different
    frames.
  """
  length = jax.tree.leaves(entries)[0].shape[2]
  update = window.update(cache.frame, cache.next_frame, length)
  return advance(cache, write(cache.entries, entries, update), update)


def write(
  stored: PyTree,
  entries: PyTree,
  update: window_lib.Update,
  layer: Layer | None = None,
) -> PyTree:
  """Writes a chunk's entries of all layers, or of one.

  Args:
    stored: Entries of the cache, leaves `[layers, B, slots, P, ...]`.
    entries: Entries of the chunk, leaves `[layers, B, T, P, ...]`, without the
      layer axis if a layer is named; they are cast, or quantised with a scale
      per token, to what the cache stores.
    update: Where they go, see `Window.update`.
    layer: Index of the only layer to write; None writes all of them.

  Returns:
    The entries of the cache after the chunk.
  """
  if not jax.tree.leaves(stored)[0].shape[2]:
    return stored  # Scatter into nothing has no gradient rule.
  # Entries are rounded first, so the scatter moves the bytes that are stored.
  new = quantise.store_like(entries, stored)
  written = _put(stored, new, update.slot, layer)
  if update.mixture is None:
    return written
  return _mix(written, stored, entries, update.mixture, layer)


def joined_frames(x: Shaped[Array, "B T P ..."]) -> Shaped[Array, "B S ..."]:
  """Joins the frames of entries and the tokens of a frame.

  A TPU would first copy the cache of all layers into a layout in which this is
  a reshape, 90 MB at 480p; a concatenation takes any layout.

  Args:
    x: Entries of one layer.
  """
  if device.current().platform != "tpu":
    return x.reshape(x.shape[0], -1, *x.shape[3:])
  frames = jax.lax.split(x, [1] * x.shape[1], axis=1)
  return jnp.concatenate([frame[:, 0] for frame in frames], axis=1)


def _put(
  stored: PyTree,
  new: PyTree,
  slot: Int32[Array, "B T"],
  layer: Layer | None = None,
) -> PyTree:
  """Writes every frame of `new` into its slot; others are dropped."""
  name = "cache" if layer is None else "batch"

  def put(buffer: Array, new: Array, slot: Array, layer: Layer | None) -> Array:
    # Rows may be at different frames and a chunk may wrap round the ring, so
    # this is a scatter: `dynamic_update_slice` has one start for all.
    row = jnp.arange(slot.shape[0])[:, None]
    where = (slice(None) if layer is None else layer, row, slot)
    if device.current().platform == "tpu" and layer is not None:
      return _select(buffer, new, slot, layer)
    # A frame that is not kept has a slot past the end. Clamped to the last slot
    # it would overwrite a frame that is.
    return buffer.at[where].set(new, mode="drop")

  def put_locally(buffer: Array, new: Array) -> Array:
    # A batch that is split over devices is written where it is.
    return sharding.per_device(
      put, ("cache", buffer), (name, new), ("batch", slot), ("whole", layer)
    )

  return jax.tree.map(put_locally, stored, new)


def _select(
  buffer: Shaped[Array, "layers B slots P ..."],
  new: Shaped[Array, "B T P ..."],
  slot: Int32[Array, "B T"],
  layer: Layer,
) -> Shaped[Array, "layers B slots P ..."]:
  """Does the same as the scatter, by choosing what every slot holds.

  A TPU's scatter wants the buffer in a layout of its own. The whole cache would
  be copied to it and back, 90 MB at 480p.
  """
  entries = jax.lax.dynamic_index_in_dim(buffer, layer, keepdims=False)
  # No slot has the number of a frame that is not kept.
  here = slot[:, None] == jnp.arange(buffer.shape[2])[:, None]  # B slots T
  for frame in range(new.shape[1]):
    hit = here[:, :, frame].reshape(*here.shape[:2], *[1] * (new.ndim - 2))
    entries = jnp.where(hit, new[:, frame, None], entries)
  return jax.lax.dynamic_update_index_in_dim(buffer, entries, layer, axis=0)


def _mix(
  written: PyTree,
  before: PyTree,
  entries: PyTree,
  mixture: window_lib.Mixture,
  layer: Layer | None,
) -> PyTree:
  """Replaces the first slots by their mixture.

  Args:
    written: Entries of the cache with the chunk in its slots.
    before: Entries of the cache before the chunk.
    entries: Entries of the chunk.
    mixture: Weights of the first slots.
    layer: Index of the only layer to change; None changes all of them.

  Returns:
    The entries of the cache with mixed first slots.
  """
  name = "cache" if layer is None else "batch"

  def mix_locally(written: PyTree, before: PyTree, new: Array) -> PyTree:
    return sharding.per_device(
      _mixed,
      ("cache", written),
      ("cache", before),
      (name, new),
      ("batch", mixture),
      ("whole", layer),
    )

  # Values and scales of eight bits stay together: neither can be mixed alone.
  return jax.tree.map(
    mix_locally,
    written,
    before,
    entries,
    is_leaf=lambda x: isinstance(x, quantise.Quantised),
  )


def _mixed(
  written: PyTree,
  before: PyTree,
  new: Array,
  mixture: window_lib.Mixture,
  layer: Layer | None,
) -> PyTree:
  """Mixes one kind of entries, see `_mix`."""
  where = slice(None) if layer is None else layer
  rows = mixture.keep.shape[1]
  # Weights near 1 need more digits than the cache has: float32 until the end.
  f32 = jnp.float32
  own, old = (
    quantise.dequantise(jax.tree.map(lambda leaf: leaf[where], x), f32)
    for x in (written, before)
  )
  seen = jnp.concatenate([old, new.astype(f32)], axis=-3)
  # `highest` keeps accelerators from rounding the factors to fewer bits.
  flow = jnp.einsum(
    "BRK,...BKPd->...BRPd", mixture.share, seen, precision="highest"
  )
  kept = mixture.keep[..., None, None] * own[..., :rows, :, :]
  return jax.tree.map(
    lambda leaf, x: leaf.at[where, :, :rows].set(x),
    written,
    quantise.store_like(kept + flow, written),
  )


def advance(cache: Cache, entries: PyTree, update: window_lib.Update) -> Cache:
  """Returns the cache after a chunk whose entries have been written.

  Args:
    cache: The cache before the chunk.
    entries: Entries of all layers after the chunk.
    update: Where the chunk went, see `Window.update`.
  """
  # Frame numbers are never mixed: an average stands for the first frames.
  length = update.slot.shape[1]
  frame = cache.next_frame[:, None] + jnp.arange(length, dtype=jnp.int32)
  label = cache.frame
  if label.shape[1]:
    label = _put(label[None], frame[None], update.slot)[0]
  return Cache(entries, label, cache.next_frame + length)


def flush(cache: Cache, *, window: window_lib.Window) -> Cache:
  """Keeps the sink and as many newest frames as fill up a chunk with it.

  This is the cheap context cut at a change of scene (Infinity-RoPE); no frame
  is computed again.
  """
  # Entries stay in memory; without a frame number nothing sees them.
  kept = window.kept_by_flush(cache.frame, cache.next_frame)
  return cache._replace(frame=jnp.where(kept, cache.frame, window_lib.EMPTY))


def valid(cache: Cache) -> Bool[Array, "B slots"]:
  """Returns True where a slot holds a frame."""
  return cache.frame != window_lib.EMPTY


def num_bytes(cache: Cache) -> int:
  """Returns the bytes of the stored entries, from shapes alone."""
  return sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.entries)
  )
