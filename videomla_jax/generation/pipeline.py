"""From text embeddings to pixels: the pipeline around the DiT.

Text encoder, DiT and codec are used one after the other, so that the memory of
the encoder is free before the DiT is loaded:

  source = sources.open_source(...)      checks files, loads nothing big
  text = source.embed(prompts, ...)      the text encoder comes and goes
  pipeline = source.load()               DiT and codec
  for pixels in PixelStream(pipeline, text, key, ...)
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8
import numpy as np

from videomla_jax import shapes
from videomla_jax.diffusion import bidirectional
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import stream
from videomla_jax.models import codec as codec_lib
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib

Pixels = Float[Array, "B t h w c"]
Text = Float[Array, "R M E"]
Latents = Float[Array, "B T H W C"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """A network together with what turns its latents into pixels.

  Attributes:
    dit: The network.
    codec: Turns pixels into latents and latents into pixels.
    frame: H, W, C of a latent frame.
    fps: Pixel frames per second.
  """

  dit: wan.WanDiT
  codec: codec_lib.Codec
  frame: tuple[int, int, int]
  fps: float | int

  def latents_for(self, pixel_frames: int) -> int:
    """Counts the latent frames that decode to at least so many pixel frames."""
    stride = self.codec.temporal_stride
    return shapes.covering_latents(pixel_frames, stride=stride)


# The old state is donated: it would otherwise be held twice, and the memory of
# Wan's decoder is 3.6 GB at 480 x 832 in float32.
@functools.partial(jax.jit, donate_argnames="state")
def _decode(
  codec: codec_lib.Codec, latents: Latents, state: PyTree
) -> tuple[Pixels, PyTree]:
  return codec.decode_chunk(latents, state)


@jax.jit
def _encode(
  codec: codec_lib.Codec, video: UInt8[Array, "B t h w c"]
) -> Latents:
  return codec.encode(video)


def encode(
  pipeline: Pipeline, video: UInt8[np.ndarray, "B t h w c"]
) -> Latents:
  """Turns whole clips into latents.

  Args:
    pipeline: Gives the codec.
    video: Clips of a length that `usable_clip` gives, 0..255.
  """
  return _encode(pipeline.codec, jnp.asarray(video))


class Decoder:
  """Decodes chunk after chunk; carries what the codec remembers of the past."""

  def __init__(self, pipeline: Pipeline, *, batch: int) -> None:
    """Starts before the first frame.

    Args:
      pipeline: Gives the codec and the size of a frame.
      batch: Videos that are decoded side by side.
    """
    self._codec = pipeline.codec
    self._state = pipeline.codec.start(batch, *pipeline.frame[:2])

  def __call__(self, latents: Latents) -> Pixels:
    """Starts decoding the next frames, in [0, 1], and does not wait for it."""
    pixels, self._state = _decode(self._codec, latents, self._state)
    return pixels


def usable_clip(
  given: UInt8[np.ndarray, "T h w c"], pipeline: Pipeline, *, num_frames: int
) -> UInt8[np.ndarray, "t h w c"]:
  """Cuts a given clip to frames that the codec can encode.

  A codec takes one frame, then `temporal_stride` frames at a time. Frames are
  dropped at the start of the clip, so that the video continues its end.

  Args:
    given: First frames of a video.
    pipeline: Gives the codec.
    num_frames: Frames of the video, to which the clip is cut first.
  """
  given = given[:num_frames]
  # What is dropped is what one frame and whole strides leave over.
  return given[(len(given) - 1) % pipeline.codec.temporal_stride :]


class PixelStream(Iterator[Pixels]):
  """Videos of a causal model, each chunk decoded as soon as it is made."""

  def __init__(
    self,
    pipeline: Pipeline,
    text: Text,
    key: Array,
    *,
    window: window_lib.Window,
    sampler: sampling.Sampler,
    num_frames: int | None,
    given: UInt8[np.ndarray, "T h w c"] | None = None,
    cache_dtype: str | None = None,
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

    Raises:
      ValueError: If shapes do not fit the network.
    """
    batch = text.shape[0] // sampler.rows_per_video
    decoder = Decoder(pipeline, batch=batch)
    context, known = None, 0
    self._left, max_frames = num_frames, None
    if given is not None:
      context = encode(pipeline, np.repeat(given[None], batch, axis=0))
      decoder(context)  # The pixels are known; the decoder's memory is not.
      known = context.shape[1]
    if num_frames is not None:
      self._left = num_frames - (0 if given is None else len(given))
      max_frames = pipeline.latents_for(num_frames) - known
    # `then` starts decoding a chunk before the next one is dispatched, so that
    # its pixels do not wait behind the whole next chunk.
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
      then=decoder,
    )

  def __next__(self) -> Pixels:
    """Gives the next frames, while those after them are computed."""
    # Whole chunks are made; the last one may be longer than the video.
    pixels = next(self._chunks)[:, : self._left]
    if self._left is not None:
      self._left -= pixels.shape[1]
    return pixels

  def switch(
    self,
    text: Text,
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
  pipeline: Pipeline,
  text: Text,
  key: Array,
  *,
  sampler: sampling.Sampler,
  num_frames: int,
  on_step: Callable[[], object] = lambda: None,
  frames_at_once: int = 3,
) -> Iterator[Pixels]:
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
    The next frames, in [0, 1].
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
  decoder, left = Decoder(pipeline, batch=batch), num_frames
  for i in range(0, shape[0], frames_at_once):
    pixels = decoder(latents[:, i : i + frames_at_once])
    yield pixels[:, :left]
    left -= min(left, pixels.shape[1])
