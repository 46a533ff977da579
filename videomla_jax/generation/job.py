"""A request together with its model: what `sample` and Python callers share.

`prepare` finds every mistake that shows before networks are loaded. The methods
of `Job` are the steps after it, in the order in which they are taken:

  job = prepare(request, source)
  text = job.embed(request.prompts)      the text encoder comes and goes
  pipeline = source.load()               DiT and codec
  job.needs(pipeline)                    sizes, before anything compiles
  job.first_frames(pipeline)             given pixels
  job.chunks(pipeline, text)             new pixels
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses

import jax
from jaxtyping import Array, Float, UInt8
import numpy as np

from videomla_jax import shapes
from videomla_jax.costs import memory
from videomla_jax.diffusion import sampling
from videomla_jax.generation import given_frames
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.generation import pixel_stream
from videomla_jax.generation import pixels as pixels_lib
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import sources
from videomla_jax.models import window as window_lib

Videos = UInt8[np.ndarray, "B t h w c"]
Text = Float[Array, "R M E"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A generation whose request was checked against its model.

  Attributes:
    request: What is asked for.
    source: The model, not loaded yet.
    sampler: How chunks are denoised.
    num_frames: Pixel frames of every video, given ones included.
    given: All frames of the given picture or clip, resized; None if there is
      neither.
  """

  request: request_lib.Request
  source: sources.Source
  sampler: sampling.Sampler
  num_frames: int
  given: UInt8[np.ndarray, "t h w c"] | None

  def embed(self, prompts: Sequence[str]) -> Text:
    """Embeds prompts, and with guidance as many negative ones after them."""
    guided = self.sampler.guidance is not None
    negative = self.request.negative_prompt if guided else None
    return self.source.embed(prompts, negative=negative)

  def needs(self, pipeline: pipeline_lib.Pipeline) -> memory.Needs:
    """Computes what the generation needs, before anything compiles.

    Args:
      pipeline: Network and codec.
    """
    request, videos = self.request, len(self.request.prompts)
    window, usable = request.window, self._usable(pipeline)
    frames = pipeline.latents_for(self.num_frames)
    if request.mode == "bidirectional":
      # Every frame sees every frame: nothing is left for a cache to keep.
      window = window_lib.Window(
        chunk_frames=frames, sink_frames=0, local_frames=frames
      )
    # Given frames are cached, too, but they need not fill a chunk.
    known = 0 if usable is None else pipeline.latents_for(len(usable))
    return memory.needs(
      pipeline.dit,
      rows=videos * self.sampler.rows_per_video,
      frame=pipeline.frame,
      window=window,
      max_frames=known + shapes.round_up(frames - known, window.chunk_frames),
      cache_dtype=request.cache_dtype or None,
      codec=pipeline.codec,
      videos=videos,
    )

  def first_frames(self, pipeline: pipeline_lib.Pipeline) -> Videos:
    """Gives the pixels with which every video starts.

    Args:
      pipeline: Gives the codec, which can encode some lengths only.

    Returns:
      The given frames once per video; no frames if none are given.
    """
    frames = self._usable(pipeline)
    if frames is None:
      shape = (0, *self.source.pixels, self.source.pixel_channels)
      frames = np.zeros(shape, np.uint8)
    return np.repeat(frames[None], len(self.request.prompts), axis=0)

  def stream(
    self, pipeline: pipeline_lib.Pipeline, text: Text, *, endless: bool = False
  ) -> pixel_stream.PixelStream:
    """Opens the stream of new pixels, in [0, 1], of a causal model.

    Args:
      pipeline: Network and codec.
      text: Embeddings from `embed`.
      endless: Whether frames come for ever, whatever `num_frames` says.

    Raises:
      ValueError: If the text or the frames do not fit the network.
    """
    return pixel_stream.PixelStream(
      pipeline,
      text,
      jax.random.key(self.request.seed),
      window=self.request.window,
      sampler=self.sampler,
      num_frames=None if endless else self.num_frames,
      given=self._usable(pipeline),
      cache_dtype=self.request.cache_dtype or None,
    )

  def chunks(
    self,
    pipeline: pipeline_lib.Pipeline,
    text: Text,
    *,
    on_step: Callable[[], object] = lambda: None,
  ) -> Iterator[Videos]:
    """Makes the frames that follow the first ones, piece by piece.

    Args:
      pipeline: Network and codec.
      text: Embeddings from `embed`.
      on_step: Called after every network call of a bidirectional model, whose
        first piece comes late.

    Yields:
      The next frames of every video.

    Raises:
      ValueError: If the text or the frames do not fit the network.
    """
    pieces: Iterator[pipeline_lib.Pixels]
    if self.request.mode == "causal":
      pieces = self.stream(pipeline, text)
    else:
      pieces = pixel_stream.whole_clip(
        pipeline,
        text,
        jax.random.key(self.request.seed),
        sampler=self.sampler,
        num_frames=self.num_frames,
        on_step=on_step,
      )
    for piece in pieces:
      # Fetching a piece is what waits for the device.
      yield pixels_lib.to_uint8(np.asarray(piece))

  def _usable(
    self, pipeline: pipeline_lib.Pipeline
  ) -> UInt8[np.ndarray, "t h w c"] | None:
    """Cuts the given frames to what the codec can encode."""
    if self.given is None:
      return None
    return pipeline_lib.usable_clip(
      self.given, pipeline, num_frames=self.num_frames
    )


def prepare(request: request_lib.Request, source: sources.Source) -> Job:
  """Checks a request against its model and reads the given frames.

  Args:
    request: What is asked for.
    source: The model that `request.networks` names.

  Returns:
    The generation, ready to run.

  Raises:
    ValueError: If prompts, sampler, length or given frames cannot work.
  """
  # The cheapest checks come first: a wrong word is told at once.
  source.check(request.prompts)
  sampler = request.sampler.resolve(
    shift=source.shift, distilled=source.distilled
  )
  height, width = source.pixels
  given = given_frames.read_given(
    image=request.image,
    clip=request.clip,
    height=height,
    width=width,
    channels=source.pixel_channels,
  )
  return Job(
    request=request,
    source=source,
    sampler=sampler,
    num_frames=request_lib.count_frames(request.seconds, source.fps),
    given=given,
  )
