"""Stage 1: every chunk denoised against its clean history, all at once.

docs/method.md, section 10. Clean chunks and noisy chunks stand side by side.
Each sees what the rollout's cache would show it: sink, ring and its own tokens,
at window-relative positions. These frames are gathered from the entries of the
clean chunks of the same layer, so the cost is linear in the length of the clip
and no mask of query x key size exists.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key, PyTree
import numpy as np

from videomla_jax.diffusion import flow
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib


class Plan(NamedTuple):
  """What each chunk of a clip sees; plain NumPy, fixed before compilation.

  Attributes:
    history: Clip frame of each context slot, oldest first, -1 where empty.
    mixture: Weights of all clip frames in the first R slots, where the window
      mixes frames; None where each slot holds one frame as it is.
    positions: Temporal coordinates of chunks and what they see.
    trained: False for padding in front of a short first chunk.
  """

  history: Int[np.ndarray, "G S"]
  mixture: Float[np.ndarray, "G R F"] | None
  positions: window_lib.Positions
  trained: Bool[np.ndarray, "G T"]


def plan(
  num_frames: int,
  *,
  window: window_lib.Window,
  first_chunk: int | None = None,
) -> Plan:
  """Lists the frames that every chunk of a clip sees.

  Args:
    num_frames: Frames of the clip, a multiple of the chunk.
    window: Which frames a chunk sees, as in a rollout.
    first_chunk: Real frames of the first chunk, 1..chunk. Fewer than a chunk
      trains what a given first frame needs at rollout: the clip then starts
      with padding frames that nothing sees.

  Returns:
    The plan, whose coordinates count visible frames, oldest first.

  Raises:
    ValueError: If the clip is not made of whole chunks.
  """
  chunk = window.chunk_frames
  if num_frames < chunk or num_frames % chunk:
    raise ValueError(
      f"clip of {num_frames} frames must be a positive multiple of "
      f"chunk_frames={chunk}; crop the clip."
    )
  padding = chunk - (chunk if first_chunk is None else first_chunk)
  if not 0 <= padding < chunk:
    raise ValueError(
      f"first_chunk={first_chunk} must be between 1 and chunk_frames={chunk}."
    )
  chunks = num_frames // chunk
  slots = window.slots(num_frames - chunk)
  history = np.full((chunks, slots), window_lib.EMPTY)
  for m in range(chunks):
    start = m * chunk
    # A rollout counts frames from the first real one.
    past = np.arange(padding, start)
    seen = past[window.visible(past - padding, next_frame=start - padding)]
    history[m, : len(seen)] = seen
  trained = np.arange(num_frames).reshape(chunks, chunk) >= padding
  key, first = window.positions(history, np.arange(chunks) * chunk)
  # Padding is not counted: the first real frame is at 0, as in a rollout.
  query = first[:, None] + np.cumsum(trained, axis=1) - 1
  positions = window_lib.Positions(
    query=query[None],
    key=np.concatenate([key, query], 1)[None],
    visible=np.concatenate([history != window_lib.EMPTY, trained], 1)[None],
  )
  mixture = _mixture(num_frames, window=window, padding=padding)
  return Plan(history, mixture, positions, trained)


def _mixture(
  num_frames: int, *, window: window_lib.Window, padding: int
) -> Float[np.ndarray, "G R F"] | None:
  """Returns the weights of clip frames in slots that the window mixes.

  The rollout's updates are applied to frame numbers instead of entries: what a
  slot holds is a row of weights over the frames of the clip.
  """
  # A frame is a row of the unit matrix, an average a mixture of rows.
  chunk, frames = window.chunk_frames, np.eye(num_frames)
  slots = window.slots(num_frames - chunk)
  held = np.full((1, slots), window_lib.EMPTY)
  weights, rows, start = np.zeros((slots, num_frames)), 0, padding
  every_chunk = []
  for end in range(chunk, num_frames + 1, chunk):
    every_chunk.append(weights)
    update = window.update(held, np.asarray([start - padding]), end - start)
    seen = np.concatenate([weights, frames[start:end]])
    weights = update.matrix(slots)[0] @ seen
    for frame, slot in enumerate(update.slot[0], start - padding):
      if slot < slots:
        held[0, slot] = frame
    if update.mixture is not None:
      rows = update.mixture.keep.shape[1]
    start = end
  return np.stack(every_chunk)[:, :rows] if rows else None


def _take(entry: Array, history: np.ndarray, chunk: int) -> Array:
  """Gathers the clean frames that each chunk sees: `[B, G, S, P, ...]`."""
  # Frames are static, so slices and a stack do; a gather would turn into a
  # scatter in the backward pass.
  rows = []
  for frames in history:
    # An empty slot is filled with frame 0, which `visible` hides.
    taken = [entry[:, max(f, 0) // chunk, max(f, 0) % chunk] for f in frames]
    rows.append(jnp.stack(taken, axis=1))
  return jnp.stack(rows, axis=1)


def _mix(
  past: Array, entry: Array, mixture: Float[np.ndarray, "G R F"], chunk: int
) -> Array:
  """Replaces the first slots of each chunk by mixtures of clean frames."""
  chunks, rows, _ = mixture.shape
  clean = entry[:, : chunks - 1]
  clean = clean.reshape(clean.shape[0], -1, *clean.shape[3:])
  # As in the cache, this is float32: the weights are near 1 and near 0.
  weights = jnp.asarray(mixture[..., : clean.shape[1]], jnp.float32)
  mixed = jnp.einsum(
    "GRF,BF...->BGR...",
    weights,
    clean.astype(jnp.float32),
    precision="highest",
  )
  return past.at[:, :, :rows].set(mixed.astype(past.dtype))


def context(own: PyTree, plan: Plan) -> PyTree:
  """Joins the clean history and the own tokens of clean and noisy chunks.

  Args:
    own: Entries, leaves `[B, G, T, P, ...]`: all clean chunks but the last
      (no chunk sees that one), then all noisy chunks.
    plan: What each chunk sees.

  Returns:
    Entries that each chunk attends to, leaves `[B, G, S + T, P, ...]`.
  """
  chunks, slots = plan.history.shape

  def join(entry: Array) -> Array:
    if not slots:
      return entry
    past = _take(entry, plan.history, entry.shape[2])
    if plan.mixture is not None:
      past = _mix(past, entry, plan.mixture, entry.shape[2])
    # A noisy chunk sees what the clean chunk of the same number saw.
    past = jnp.concatenate([past[:, : chunks - 1], past], axis=1)
    return jnp.concatenate([past, entry], axis=2)

  return jax.tree.map(join, own)


def velocity(
  model: wan.WanDiT,
  clean: Float[Array, "B T H W C"],
  noisy: Float[Array, "B T H W C"],
  timestep: Float32[Array, "B T"],
  text: Float[Array, "B M E"],
  *,
  window: window_lib.Window,
  first_chunk: int | None = None,
) -> Float32[Array, "B T H W C"]:
  """Predicts the velocity of every noisy chunk given its clean history.

  Args:
    model: The network.
    clean: Clean latents.
    noisy: Latents at the noise level of `timestep`.
    timestep: Timestep of each frame, 0..1000, equal within a chunk.
    text: Text embeddings.
    window: Which frames a chunk sees.
    first_chunk: Real frames of the first chunk, see `plan`.

  Returns:
    Predicted velocity, equal to what the cached rollout computes at each chunk
    after committing the clean chunks before it.
  """
  batch, num_frames = clean.shape[:2]
  chunk = window.chunk_frames
  steps = plan(num_frames, window=window, first_chunk=first_chunk)
  chunks = num_frames // chunk

  def split(x: Array, count: int) -> Array:
    """Returns the first `count` chunks, side by side."""
    return x[:, : count * chunk].reshape(batch, count, chunk, *x.shape[2:])

  # No chunk sees the last clean one, so it is left out.
  latents = jnp.concatenate([split(clean, chunks - 1), split(noisy, chunks)], 1)
  times = split(timestep, chunks)
  times = jnp.concatenate([jnp.zeros_like(times[:, 1:]), times], 1)
  positions = jax.tree.map(
    lambda x: np.concatenate([x[:, :-1], x], axis=1), steps.positions
  )
  out, _ = model.velocity_and_entries(
    latents,
    times,
    text,
    positions,
    context_of=lambda own, _: [context(own, steps)],
    keep=slice(chunks - 1, None),
  )
  return out.reshape(clean.shape)


def loss(
  model: wan.WanDiT,
  clean: Float[Array, "B T H W C"],
  noise: Float[Array, "B T H W C"],
  sigma: Float32[Array, "B T"],
  text: Float[Array, "B M E"],
  *,
  window: window_lib.Window,
  first_chunk: int | None = None,
  weight: Float32[Array, "B T"] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, "B T"]]:
  """Returns the loss of stage 1, docs/method.md, Eq. (10.2), in float32.

  Args:
    model: The network.
    clean: Clean latents x0.
    noise: Gaussian noise.
    sigma: Noise level of each frame, equal within a chunk.
    text: Text embeddings.
    window: Which frames a chunk sees.
    first_chunk: Real frames of the first chunk, see `plan`.
    weight: Weight of each frame in the loss, 1 by default.

  Returns:
    The mean over trained frames and the unweighted loss of each frame.
  """
  noisy = flow.add_noise(clean, noise, sigma)
  out = velocity(
    model,
    clean,
    noisy,
    sigma * wan_config.MAX_TIMESTEP,
    text,
    window=window,
    first_chunk=first_chunk,
  )
  error = (out - flow.velocity_target(clean, noise)) ** 2
  per_frame = error.mean(axis=(2, 3, 4))
  steps = plan(clean.shape[1], window=window, first_chunk=first_chunk)
  # Padding frames hold whatever the clip held there and count for nothing.
  trained = steps.trained.reshape(1, -1)
  scaled = per_frame if weight is None else per_frame * weight
  total = jnp.where(trained, scaled, 0.0).sum()
  return total / (trained.sum() * clean.shape[0]), per_frame


def sample_sigma(
  key: Key[Array, ""], *, batch: int, chunks: int, chunk_frames: int, s: float
) -> Float32[Array, "B T"]:
  """Draws a noise level S(u), u uniform in (0, 1], per row and chunk.

  Args:
    key: Random key.
    batch: Rows.
    chunks: Chunks of a clip.
    chunk_frames: Frames of a chunk, which share a level.
    s: Warp of the levels.
  """
  # 1 - u keeps 0 out: the loss weight and x0 mean nothing without noise.
  u = 1 - jax.random.uniform(key, (batch, chunks), jnp.float32)
  return jnp.repeat(flow.shift(u, s), chunk_frames, axis=1)
