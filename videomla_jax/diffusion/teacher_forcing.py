"""Stage 1: every chunk denoised against its clean history, all at once.

spec/training.md section 1. Clean chunks and noisy chunks stand side by side.
Each sees what the rollout's cache would show it: sink frames, ring history and
its own tokens, at window-relative positions. History is gathered from the
entries of the clean chunks of the same layer, so cost is linear in length and
no mask of query x key size exists.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, PyTree
import numpy as np

from videomla_jax.diffusion import flow
from videomla_jax.models import cache
from videomla_jax.models import wan


class Plan(NamedTuple):
  """What each chunk of a clip sees; plain numpy, fixed before compilation.

  Attributes:
    history: Clip frame of each context slot, -1 where empty.
    place: Temporal coordinates of chunks and what they see.
    trained: False for padding in front of a short first chunk.
  """

  history: Int[np.ndarray, "G S"]
  place: wan.Place
  trained: Bool[np.ndarray, "G T"]


def plan(
  num_frames: int, *, window: cache.Window, first_chunk: int | None = None
) -> Plan:
  """Lists the frames that every chunk of a clip sees.

  Args:
    num_frames: Frames of the clip, a multiple of the chunk.
    window: Sink, local and chunk frames.
    first_chunk: Real frames of the first chunk, 1..chunk. Fewer than a chunk
      trains what a given first frame needs at rollout: the clip then starts
      with padding frames that nothing sees.

  Returns:
    The plan; coordinates count visible frames, oldest first.

  Raises:
    ValueError: If the clip is not made of whole chunks.
  """
  chunk, sink = window.chunk_frames, window.sink_frames
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
  history = np.full((chunks, slots), -1)
  for m in range(chunks):
    start = m * chunk
    local = window.local_frames
    oldest = 0 if local is None else start + chunk - local
    seen = [
      f for f in range(padding, start) if f < padding + sink or f >= oldest
    ]
    history[m, : len(seen)] = seen
  own = np.arange(num_frames).reshape(chunks, chunk)
  trained = own >= padding
  count = (history >= 0).sum(1, keepdims=True)
  position = count + np.cumsum(trained, axis=1) - 1
  place = wan.Place(
    query_frame=position[None],
    key_frame=np.concatenate(
      [np.broadcast_to(np.arange(slots), history.shape), position], 1
    )[None],
    key_valid=np.concatenate([history >= 0, trained], 1)[None],
  )
  return Plan(history, place, trained)


def _take(entry: Array, history: np.ndarray, chunk: int) -> Array:
  """Frames of the clean chunks that each chunk sees: `[B, G, S, P, ...]`.

  Frames are static, so this is slices and a stack; a gather would turn into a
  scatter in the backward pass.
  """
  rows = []
  for frames in history:
    taken = [entry[:, max(f, 0) // chunk, max(f, 0) % chunk] for f in frames]
    rows.append(jnp.stack(taken, axis=1))
  return jnp.stack(rows, axis=1)


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

  def join(entry):
    if not slots:
      return entry
    past = _take(entry, plan.history, entry.shape[2])
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
  window: cache.Window,
  first_chunk: int | None = None,
) -> Float32[Array, "B T H W C"]:
  """Velocity of every noisy chunk given its clean history.

  Args:
    model: The network.
    clean: Clean latents.
    noisy: Latents at the noise level of `timestep`.
    timestep: 0..1000, equal within a chunk.
    text: Text embeddings.
    window: What chunks see.
    first_chunk: See `plan`.

  Returns:
    Predicted velocity, equal to what the cached rollout computes at each chunk
    after committing the clean chunks before it.
  """
  batch, num_frames = clean.shape[:2]
  chunk = window.chunk_frames
  steps = plan(num_frames, window=window, first_chunk=first_chunk)
  chunks = num_frames // chunk

  def split(x, count):
    return x[:, : count * chunk].reshape(batch, count, chunk, *x.shape[2:])

  latents = jnp.concatenate([split(clean, chunks - 1), split(noisy, chunks)], 1)
  times = split(timestep, chunks)
  times = jnp.concatenate([jnp.zeros_like(times[:, 1:]), times], 1)
  place = jax.tree.map(
    lambda x: np.concatenate([x[:, :-1], x], axis=1), steps.place
  )
  out, _ = model(
    latents,
    times,
    text,
    place,
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
  window: cache.Window,
  first_chunk: int | None = None,
  weight: Float32[Array, "B T"] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, "B T"]]:
  """Stage-1 loss, spec/training.md Eq. (1), in float32.

  Args:
    model: The network.
    clean: Clean latents x0.
    noise: Gaussian noise.
    sigma: Noise level of each frame, equal within a chunk.
    text: Text embeddings.
    window: What chunks see.
    first_chunk: See `plan`.
    weight: Loss weight of each frame, 1 by default.

  Returns:
    The mean over trained frames and the unweighted loss of each frame.
  """
  noisy = flow.add_noise(clean, noise, sigma)
  out = velocity(
    model,
    clean,
    noisy,
    sigma * flow.MAX_TIMESTEP,
    text,
    window=window,
    first_chunk=first_chunk,
  )
  error = (out - flow.velocity_target(clean, noise)) ** 2
  per_frame = error.mean(axis=(2, 3, 4))
  steps = plan(clean.shape[1], window=window, first_chunk=first_chunk)
  trained = steps.trained.reshape(1, -1)
  scaled = per_frame if weight is None else per_frame * weight
  total = jnp.where(trained, scaled, 0.0).sum()
  return total / (trained.sum() * clean.shape[0]), per_frame


def sample_sigma(
  key: Array, *, batch: int, chunks: int, chunk_frames: int, s: float
) -> Float32[Array, "B T"]:
  """Noise levels S(u), u uniform in (0, 1], drawn per example and chunk."""
  u = 1 - jax.random.uniform(key, (batch, chunks), jnp.float32)
  return jnp.repeat(flow.shift(u, s), chunk_frames, axis=1)
