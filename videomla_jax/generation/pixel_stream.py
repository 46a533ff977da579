"""Pixels of a causal model chunk by chunk, or of a whole clip in pieces.

The device never waits for the host. Of a causal model, in this order:

  denoise k, decode k, copy k    dispatched
  denoise k + 1, decode, copy    dispatched
  fetch k                        the host waits here, for the copy of k alone
"""

from collections.abc import Callable
from collections.abc import Iterator

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import stream
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.generation import pixels as pixels_lib
from videomla_jax.models import window as window_lib

Frames = UInt8[np.ndarray, "B t h w c"] | Float[np.ndarray, "B t h w c"]


class PixelStream(Iterator[Frames]):
  """Videos of a causal model, each chunk decoded as soon as it is made."""

  def __init__(
    self,
    pipeline: pipeline_lib.Pipeline,
    text: pipeline_lib.Text,
    key: Array,
    *,
    window: window_lib.Window,
    sampler: sampling.Sampler,
    num_frames: int | None,
    given: UInt8[np.ndarray, "T h w c"] | None = None,
    cache_dtype: str | None = None,
    as_bytes: bool = True,
  ) -> None:
    """Allocates the cache and commits the given frames.

    Args:
      pipeline: Network and codec.
      text: Embeddings; with guidance the unconditional rows come after the
        conditional ones.
      key: One key, or one per video.
      window: Which frames the cache keeps.
      sampler: How chunks are denoised.
      num_frames: Pixel frames, given ones included; None never ends.
      given: First frames of every video, as `usable_clip` cuts them; they are
        not handed out again.
      cache_dtype: Number format of cached entries; None is the model's own.
      as_bytes: Whether pixels are bytes 0..255; else they are in [0, 1].

    Raises:
      ValueError: If shapes do not fit the network.
    """
    batch = text.shape[0] // sampler.rows_per_video
    decoder = pipeline_lib.Decoder(pipeline, batch=batch, as_bytes=as_bytes)
    context, known = None, 0
    self._left, max_frames = num_frames, None
    if given is not None:
      context = pipeline_lib.encode(
        pipeline, np.repeat(given[None], batch, axis=0)
      )
      decoder(context)  # The pixels are known; the decoder's memory is not.
      known = context.shape[1]
    if num_frames is not None:
      self._left = num_frames - (0 if given is None else len(given))
      max_frames = pipeline.latents_for(num_frames) - known
    # `then` starts decoding and copying a chunk before the next one is
    # dispatched, so that its pixels do not wait behind the whole next chunk.
    self._chunks = stream.Stream(
      pipeline.dit,
      text,
      key,
      frame=pipeline.frame,
      window=window,
      sampler=sampler,
      max_frames=max_frames,
      context=context,
      cache_dtype=cache_dtype,
      then=lambda latents: pixels_lib.start_copy(decoder(latents)),
    )

  def __next__(self) -> Frames:
    """Gives the next frames, while those after them are computed."""
    # Whole chunks are made; the last one may be longer than the video. It is
    # cut on the host: on the device a cut would wait behind the next chunk.
    pixels = pixels_lib.fetch(next(self._chunks))[:, : self._left]
    if self._left is not None:
      self._left -= pixels.shape[1]
    return pixels

  def switch(
    self,
    text: pipeline_lib.Text,
    *,
    how: stream.Switch = "recache",
    jump_to: int | None = None,
  ) -> None:
    """Changes the prompts from the first chunk that is not under way yet.

    Args:
      text: New embeddings, in the layout of the constructor.
      how: What becomes of the cache: "keep", "flush" or "recache".
      jump_to: Temporal coordinate of the next chunk: a hard cut.

    Raises:
      ValueError: If the text has another shape or `how` is unknown.
    """
    self._chunks.switch(text, how=how, jump_to=jump_to)


def whole_clip(
  pipeline: pipeline_lib.Pipeline,
  text: pipeline_lib.Text,
  key: Array,
  *,
  sampler: sampling.Sampler,
  num_frames: int,
  on_step: Callable[[], object] = lambda: None,
  frames_at_once: int = 3,
) -> Iterator[Frames]:
  """Makes clips with a bidirectional model, then decodes them piece by piece.

  Args:
    pipeline: Network and codec.
    text: Embeddings; with guidance the unconditional rows come after the
      conditional ones.
    key: One key, or one per video.
    sampler: How the clip is denoised, by "euler" or "unipc".
    num_frames: Pixel frames.
    on_step: Called after every network call.
    frames_at_once: Latent frames that are decoded together.

  Yields:
    The next frames, 0..255.
  """
  batch = text.shape[0] // sampler.rows_per_video
  shape = (pipeline.latents_for(num_frames), *pipeline.frame)
  keys = sampling.split_keys(key, batch)
  noise = sampling.chunk_noise(keys, jnp.int32(0), shape=shape, sampler=sampler)
  latents = noise.start
  for latents in bidirectional.denoise(
    pipeline.dit, noise.start, text, sampler=sampler
  ):
    # Calls that nobody waits for are all dispatched at once: `on_step` would
    # tell nothing, and the clip could not be stopped.
    latents.block_until_ready()
    on_step()
  # A few frames at a time bound the memory of the decoder's activations.
  decoder, left = pipeline_lib.Decoder(pipeline, batch=batch), num_frames
  pieces = (
    pixels_lib.start_copy(decoder(latents[:, i : i + frames_at_once]))
    for i in range(0, shape[0], frames_at_once)
  )
  for piece in _one_ahead(pieces):
    pixels = pixels_lib.fetch(piece)[:, :left]
    yield pixels
    left -= pixels.shape[1]


def _one_ahead(pieces: Iterator[Array]) -> Iterator[Array]:
  """Yields each piece after the next one was dispatched."""
  before = None
  for piece in pieces:
    if before is not None:
      yield before
    before = piece
  if before is not None:
    yield before
