"""Video as a stream: chunk after chunk, for as long as someone watches.

  for latents in stream.Stream(model.dit, text, key, ...): ...

Chunk k + 1 is dispatched before chunk k is handed out, so the device computes
while the caller decodes, shows or writes. One program serves every length.
Between chunks the prompt can change, docs/method.md, section 9.3.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from videomla_jax import shapes
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib
from videomla_jax.ops import device

Switch = Literal["keep", "flush", "recache"]
Frame = tuple[int, Float[Array, "b H W C"]]  # its number and its latents

_ENDLESS = 2**30  # more frames than any window stores


@functools.partial(
  jax.jit,
  static_argnames=("window", "sampler", "frame", "jump_to"),
  donate_argnames="state",
  compiler_options=device.PRODUCTS_BY_CUBLAS,
)
def _next_chunk(
  model: wan.WanDiT,
  state: rollout.Rollout,
  text: Float[Array, "R M E"],
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  frame: tuple[int, int, int],
  jump_to: int | None,
) -> tuple[sampling.Latents, rollout.Rollout]:
  """Generates one chunk; the state is donated."""
  noise = sampling.chunk_noise(
    state.keys,
    state.chunk,
    shape=(window.chunk_frames, *frame),
    sampler=sampler,
  )
  latents, cache = chunk_pass.chunk_step(
    model,
    state.cache,
    noise,
    text,
    window=window,
    sampler=sampler,
    jump_to=jump_to,
  )
  return latents, rollout.Rollout(cache, state.keys, state.chunk + 1)


class Stream(Iterator[Any]):
  """An endless video, one chunk of latents `[B, T, H, W, C]` at a time."""

  def __init__(
    self,
    model: wan.WanDiT,
    text: Float[Array, "R M E"],
    key: Shaped[Array, "..."],
    *,
    frame: tuple[int, int, int],
    window: window_lib.Window,
    sampler: sampling.Sampler,
    max_frames: int | None = None,
    context: Float[Array, "b T H W C"] | None = None,
    cache_dtype: DTypeLike | None = None,
    then: Callable[[sampling.Latents], Any] | None = None,
  ) -> None:
    """Allocates the cache and commits given frames.

    Args:
      model: The network.
      text: Text embeddings, with guidance the unconditional rows after the
        conditional ones.
      key: One random key for all videos, or one per video.
      frame: H, W, C of a latent frame.
      window: Which frames the cache keeps.
      sampler: How chunks are denoised.
      max_frames: Latent frames to come, rounded up to chunks; None never ends
        and needs a window that forgets frames.
      context: First frames that are given; they are not handed out again.
      cache_dtype: Dtype of the stored entries; the model's own by default.
      then: Function, such as a decoder, that is applied to each chunk before
        the next one is dispatched; its result is handed out instead.

    Raises:
      ValueError: If shapes do not fit, or an endless stream keeps all frames.
    """
    self._call = dict(window=window, sampler=sampler, frame=tuple(frame))
    self._model, self._text, self._then = model, text, then
    self._end = 0 if context is None else context.shape[1]
    self._left = max_frames
    bound = _frames_to_come(max_frames, window=window)
    self._state = rollout.start(
      model,
      text,
      sampling.split_keys(key, text.shape[0] // sampler.rows_per_video),
      frame=frame,
      window=window,
      sampler=sampler,
      max_frames=self._end + bound,
      context=context,
      cache_dtype=cache_dtype,
    )
    self._jump_to: int | None = None
    self._ahead: Any = None
    # Given frames that do not fill a chunk come before the first whole one.
    self._first = self._end % window.chunk_frames
    # Only latents can be computed again under another prompt; entries cannot.
    self._recent = [] if context is None else self._frames_of(context, 0)
    self._trim()

  def __next__(self) -> Any:
    """Hands out the next chunk, with the one after it already under way."""
    # JAX returns before the device is done, so the next chunk is computed while
    # the caller decodes this one.
    current = self._dispatch() if self._ahead is None else self._ahead
    if current is None:
      raise StopIteration
    self._ahead = self._dispatch()
    return current

  @property
  def state(self) -> rollout.Rollout:
    """State after all dispatched chunks, one chunk ahead of the caller."""
    return self._state

  def switch(
    self,
    text: Float[Array, "R M E"],
    *,
    how: Switch = "recache",
    jump_to: int | None = None,
  ) -> None:
    """Changes the prompt from the first chunk that is not under way yet.

    Args:
      text: New text embeddings, in the layout of the constructor.
      how: "keep" leaves the cache (smooth, slow to follow), "flush" keeps the
        sink and the newest frames, "recache" runs the frames of the window
        again under the new prompt, in order.
      jump_to: Temporal coordinate of the next chunk, for a hard cut.

    Raises:
      ValueError: If the text has another shape or `how` is unknown.
    """
    if text.shape != self._text.shape:
      raise ValueError(
        f"text has shape {text.shape} but the stream runs with "
        f"{self._text.shape}; give as many prompts as before."
      )
    window = self._call["window"]
    if how == "flush":
      cache = cache_lib.flush(self._state.cache, window=window)
      self._state = self._state._replace(cache=cache)
    elif how == "recache":
      self._state = self._state._replace(cache=self._recached(text))
    elif how != "keep":
      raise ValueError(
        f"how={how!r} is unknown; use 'keep', 'flush' or 'recache'."
      )
    self._text, self._jump_to = text, jump_to

  def _dispatch(self) -> Any:
    """Starts one chunk on the device without waiting for it."""
    if self._left is not None and self._left <= 0:
      return None
    chunk = self._call["window"].chunk_frames
    latents, self._state = _next_chunk(
      self._model,
      self._state,
      self._text,
      # A jump is static: it is rare, and each target compiles once.
      jump_to=self._jump_to,
      **self._call,
    )
    self._jump_to = None  # a jump moves one chunk only
    if self._left is not None:
      self._left -= chunk
    self._recent += self._frames_of(latents, self._end)
    self._end += chunk
    self._trim()
    return latents if self._then is None else self._then(latents)

  def _frames_of(self, latents: sampling.Latents, first: int) -> list[Frame]:
    """Splits latents into frames and their numbers."""
    return [(first + i, latents[:, i]) for i in range(latents.shape[1])]

  def _trim(self) -> None:
    """Forgets the latents of frames that left the window."""
    # Asked like the cache, so `recache` finds the frames that the cache shows.
    window = self._call["window"]
    end = self._recent[-1][0] + 1 if self._recent else 0
    self._recent = [
      (frame, x)
      for frame, x in self._recent
      if window.visible(frame, next_frame=end)
    ]

  def _recached(self, text: Float[Array, "R M E"]) -> cache_lib.Cache:
    """Computes the window again under another prompt, oldest frame first.

    An averaging sink begins anew with the first frames, whose latents are the
    only ones that are still known.
    """
    window, sampler = self._call["window"], self._call["sampler"]
    cache = self._state.cache
    end = cache.next_frame
    # Old entries stay where they are and are overwritten or never visible.
    cache = cache._replace(frame=jnp.full_like(cache.frame, window_lib.EMPTY))
    # Frames keep their numbers, from which their slots follow.
    for run in _runs(self._recent, window.chunk_frames, first=self._first):
      first = jnp.full_like(end, run[0][0])
      latents = jnp.stack([x for _, x in run], axis=1)
      cache = rollout.prefill(
        self._model,
        cache._replace(next_frame=first),
        chunk_pass.repeat(latents, sampler),
        text,
        window=window,
      )
    return cache._replace(next_frame=end)


def _frames_to_come(
  max_frames: int | None, *, window: window_lib.Window
) -> int:
  """Returns how many frames the cache must be made for."""
  if max_frames is not None:
    return shapes.round_up(max_frames, window.chunk_frames)
  if window.local_frames is None:
    raise ValueError(
      "max_frames=None needs a bounded window: set window.local_frames, or say "
      "how long the video is."
    )
  return _ENDLESS


def _runs(frames: list[Frame], chunk: int, *, first: int) -> list[list[Frame]]:
  """Splits frames into what is left of the chunks they were generated in.

  Args:
    frames: Numbers and latents in order.
    chunk: Frames of a chunk.
    first: Number of a frame that begins a chunk.
  """
  runs: list[list[Frame]] = []
  for index, latents in frames:
    # A run may neither cross a chunk nor skip a frame: frames of a run see each
    # other, as they did when they were generated.
    new_chunk = (index - first) % chunk == 0
    if not runs or new_chunk or runs[-1][-1][0] + 1 != index:
      runs.append([])
    runs[-1].append((index, latents))
  return runs
