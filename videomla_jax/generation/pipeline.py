"""From text to pixels: what stands around the DiT, for small models and Wan.

Text encoder, DiT and codec are used one after the other, so the encoder's
memory is free before the DiT is loaded:

  source = sources.open_source(...)      checks files, loads nothing big
  text = source.embed(prompts, ...)      the text encoder comes and goes
  parts = source.load()                  DiT and codec
  for pixels in roll_out(parts, text, key, ...)
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from videomla_jax import shapes
from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import stream
from videomla_jax.models import codec as codec_lib
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib

Pixels = Float[Array, "B t h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
  """A network and what turns its latents into pixels.

  Attributes:
    dit: The network.
    codec: Latents to pixels and back.
    frame: H, W, C of a latent frame.
    fps: Pixel frames per second.
  """

  dit: wan.WanDiT
  codec: codec_lib.Codec
  frame: tuple[int, int, int]
  fps: float | int

  def latents_for(self, pixel_frames: int) -> int:
    """Latent frames that decode to at least so many pixel frames."""
    stride = self.codec.temporal_stride
    return shapes.covering_latents(pixel_frames, stride=stride)


@functools.partial(jax.jit, donate_argnames="state")
def _decode(codec, latents, state):
  return codec.decode_chunk(latents, state)


@jax.jit
def _encode(codec, video):
  return codec.encode(video)


def encode(parts: Parts, video: UInt8[np.ndarray, "B t h w c"]) -> Array:
  """Latents `[B, T, H, W, C]` of whole clips, see `usable_clip`."""
  return _encode(parts.codec, jnp.asarray(video))


class Decoder:
  """Decodes chunk after chunk, carrying the codec's memory."""

  def __init__(self, parts: Parts, *, batch: int):
    self._codec = parts.codec
    self._state = parts.codec.start(batch, *parts.frame[:2])

  def __call__(self, latents: sampling.Latents) -> Pixels:
    """The next frames in [0, 1], dispatched and not waited for."""
    pixels, self._state = _decode(self._codec, latents, self._state)
    return pixels


def usable_clip(
  given: UInt8[np.ndarray, "T h w c"], parts: Parts, *, num_frames: int
) -> UInt8[np.ndarray, "t h w c"]:
  """Frames of a given clip that a codec can encode: its end, at most a video.

  Args:
    given: First frames of a video.
    parts: Whose codec takes one frame, then `temporal_stride` at a time.
    num_frames: Length of the video.
  """
  given = given[:num_frames]
  return given[(len(given) - 1) % parts.codec.temporal_stride :]


def roll_out(
  parts: Parts,
  text: Float[Array, "R M E"],
  key: Array,
  *,
  window: window_lib.Window,
  sampler: sampling.Sampler,
  num_frames: int,
  given: UInt8[np.ndarray, "T h w c"] | None = None,
  cache_dtype: str | None = None,
) -> Iterator[Pixels]:
  """Streams videos from a causal model, each chunk decoded as it appears.

  Args:
    parts: Network and codec.
    text: Embeddings, with guidance the unconditional ones after the
      conditional ones.
    key: One key, or one per video.
    window: Which frames the cache keeps.
    sampler: How chunks are denoised.
    num_frames: Pixel frames, given ones included.
    given: First frames of every video, see `usable_clip`.
    cache_dtype: Of the stored entries; the model's own by default.

  Yields:
    New frames in [0, 1]; given frames are not handed out again.
  """
  batch = text.shape[0] // sampler.rows_per_video
  decoder = Decoder(parts, batch=batch)
  context, left = None, num_frames
  if given is not None:
    context = encode(parts, np.repeat(given[None], batch, axis=0))
    decoder(context)  # The pixels are known; the decoder's memory is not.
    left -= len(given)
  known = 0 if context is None else context.shape[1]
  chunks = stream.Stream(
    parts.dit,
    text,
    key,
    frame=parts.frame,
    window=window,
    sampler=sampler,
    max_frames=parts.latents_for(num_frames) - known,
    context=context,
    cache_dtype=cache_dtype,
    then=decoder,
  )
  for pixels in chunks:
    yield pixels[:, :left]
    left -= min(left, pixels.shape[1])


def whole_clip(
  parts: Parts,
  text: Float[Array, "R M E"],
  key: Array,
  *,
  sampler: sampling.Sampler,
  num_frames: int,
  on_step: Callable[[], Any] = lambda: None,
  frames_at_once: int = 3,
) -> Iterator[Pixels]:
  """Makes clips with a bidirectional model, then decodes them piece by piece.

  Args:
    parts: Network and codec.
    text: As in `roll_out`.
    key: One key, or one per video.
    sampler: "euler" or "unipc".
    num_frames: Pixel frames.
    on_step: Called after every network call.
    frames_at_once: Latent frames per decoded piece.

  Yields:
    Frames in [0, 1].
  """
  batch = text.shape[0] // sampler.rows_per_video
  shape = (parts.latents_for(num_frames), *parts.frame)
  keys = rollout.split_keys(key, batch)
  noise = sampling.chunk_noise(keys, jnp.int32(0), shape=shape, sampler=sampler)
  latents = noise.start
  for latents in bidirectional.denoise(
    parts.dit, noise.start, text, sampler=sampler
  ):
    latents.block_until_ready()
    on_step()
  decoder, left = Decoder(parts, batch=batch), num_frames
  for i in range(0, shape[0], frames_at_once):
    pixels = decoder(latents[:, i : i + frames_at_once])
    yield pixels[:, :left]
    left -= min(left, pixels.shape[1])
