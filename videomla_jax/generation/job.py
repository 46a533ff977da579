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
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8
import numpy as np

from videomla_jax import shapes
from videomla_jax.costs import attention_choice
from videomla_jax.costs import memory
from videomla_jax.diffusion import sampling
from videomla_jax.generation import given_frames
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.generation import pixel_stream
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import sampler_choice
from videomla_jax.generation import sources
from videomla_jax.generation import unused
from videomla_jax.media import fitting
from videomla_jax.models import window as window_lib
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values

Videos = UInt8[np.ndarray, "B t h w c"]
Text = Float[Array, "R M E"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A generation whose request was checked against its model.

  Attributes:
    request: What is asked for.
    source: The model, not loaded yet.
    sampler: How chunks are denoised.
    choice: The same in the words of a config, nothing left open.
    num_frames: Pixel frames of every video, given ones included.
    given: The given picture, or the newest frames of the given clip, in the
      form of the model's; None if there is neither.
    given_changes: What was done to the given file, in sentences.
    video_seeds: Seed of each video, where they do not follow each other.
  """

  request: request_lib.Request
  source: sources.Source
  sampler: sampling.Sampler
  choice: sampler_choice.SamplerChoice
  num_frames: int
  given: UInt8[np.ndarray, "t h w c"] | None
  given_changes: tuple[str, ...] = ()
  video_seeds: tuple[int, ...] | None = None

  def embed(self, prompts: Sequence[str]) -> Text:
    """Embeds prompts, and with guidance as many negative ones after them."""
    guided = self.sampler.guidance is not None
    negative = self.request.negative_prompt if guided else None
    return self.source.embed(prompts, negative=negative)

  @functools.cached_property
  def cut(self) -> dict[str, int]:
    """Tokens of prompts of which the model sees the beginning only."""
    guided = self.sampler.guidance is not None
    negative = [self.request.negative_prompt] if guided else []
    return self.source.cut([*self.request.prompts, *negative])

  @property
  def seeds(self) -> tuple[int, ...]:
    """Seed of each video: that of the request, then the numbers after it."""
    if self.video_seeds is not None:
      return self.video_seeds
    first = self.request.seed
    # A prompt alone, with its own seed, gives its video again.
    return tuple(
      (first + i) % (config_values.MAX_SEED + 1)
      for i in range(len(self.request.prompts))
    )

  def keys(self) -> Key[Array, "B"]:
    """Returns the random key of each video, made of its own seed alone."""
    return keys_of(self.seeds)

  def described(self) -> dict[str, object]:
    """Returns what makes the videos, as a report states it: what was used."""
    request, causal = self.request, self.request.mode == "causal"
    guided = self.sampler.guidance is not None
    sampler = config_reader.to_dict(self.choice)
    return dict(
      checkpoint=request.networks.checkpoint,
      networks=config_reader.to_dict(request.networks),
      prompts=[*request.prompts],
      # What was not used is null: a report never states it.
      negative_prompt=request.negative_prompt if guided else None,
      tokens_of_cut_prompts=self.cut,
      mode=request.mode,
      seed=request.seed,
      seeds=[*self.seeds],
      sampler=sampler | dict(sigmas=[*self.sampler.sigmas]),
      window=config_reader.to_dict(request.window) if causal else None,
      cache_dtype=request.cache_dtype or None,
      image=request.image or None,
      clip=request.clip or None,
      seconds=request.seconds,
      scale=request.output.scale,
    )

  def needs(self, pipeline: pipeline_lib.Pipeline) -> memory.Needs:
    """Computes what the generation needs, before anything compiles.

    Args:
      pipeline: Network and codec.
    """
    window, max_frames = self._extent(pipeline)
    videos = len(self.request.prompts)
    return memory.needs(
      pipeline.dit,
      rows=videos * self.sampler.rows_per_video,
      frame=pipeline.frame,
      window=window,
      max_frames=max_frames,
      cache_dtype=self.request.cache_dtype or None,
      codec=pipeline.codec,
      codec_name=self.source.decoder,
      other_decoders=self.source.other_decoders(),
      videos=videos,
    )

  def attention(
    self, pipeline: pipeline_lib.Pipeline
  ) -> attention_choice.Choices:
    """Says which attention the network takes, before anything compiles.

    Args:
      pipeline: Network and codec.
    """
    window, max_frames = self._extent(pipeline)
    config = pipeline.dit.config
    return attention_choice.of_rollout(
      config,
      rows=len(self.request.prompts) * self.sampler.rows_per_video,
      tokens=shapes.token_grid(*pipeline.frame[:2], patch=config.patch).tokens,
      window=window,
      max_frames=max_frames,
      cache_dtype=self.request.cache_dtype or None,
    )

  def _extent(
    self, pipeline: pipeline_lib.Pipeline
  ) -> tuple[window_lib.Window, int]:
    """Returns what a chunk sees, and the latent frames of all chunks."""
    window, usable = self.request.window, self._usable(pipeline)
    frames = pipeline.latents_for(self.num_frames)
    if self.request.mode == "bidirectional":
      # Every frame sees every frame: nothing is left for a cache to keep.
      window = window_lib.Window(
        chunk_frames=frames, sink_frames=0, local_frames=frames
      )
    # Given frames are cached, too, but they need not fill a chunk.
    known = 0 if usable is None else pipeline.latents_for(len(usable))
    new = shapes.round_up(frames - known, window.chunk_frames)
    return window, known + new

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
    """Opens the stream of new pixels, 0..255, of a causal model.

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
      self.keys(),
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

    Returns:
      The next frames of every video, each piece when it is asked for.

    Raises:
      ValueError: If the text or the frames do not fit the network.
    """
    if self.request.mode == "causal":
      return self.stream(pipeline, text)
    return pixel_stream.whole_clip(
      pipeline,
      text,
      self.keys(),
      sampler=self.sampler,
      num_frames=self.num_frames,
      on_step=on_step,
    )

  def _usable(
    self, pipeline: pipeline_lib.Pipeline
  ) -> UInt8[np.ndarray, "t h w c"] | None:
    """Cuts the given frames to what the codec can encode."""
    if self.given is None:
      return None
    most, window = len(self.given), self.request.window
    if most >= self.num_frames:
      # The clip is at least as long as the video. What the window sees of it is
      # kept, and room is left for a chunk, so that new frames follow its end.
      stride = pipeline.codec.temporal_stride
      visible = given_frames.visible_frames(window, stride=stride)
      room = self.num_frames - window.chunk_frames * stride
      most = max(1, room if visible is None else min(visible, room))
    return pipeline_lib.usable_clip(self.given, pipeline, most=most)

  def describe_given(self, pipeline: pipeline_lib.Pipeline) -> list[str]:
    """Says what was done to the given picture or clip.

    Args:
      pipeline: Gives the codec, which can encode some lengths only.

    Returns:
      One sentence per change, without a full stop.
    """
    frames = self._usable(pipeline)
    if self.given is None or frames is None:
      return []
    sentences = [*self.given_changes]
    if self.request.clip:
      # A longer clip was cut while it was read, to as many frames as the video.
      whole = len(self.given) < self.num_frames
      of = f" of {len(self.given)}" if whole else ""
      why = "" if whole else ", which is as long as the video or longer,"
      sentences.append(
        f"the last {len(frames)}{of} frames of the clip{why} are continued by "
        f"{self.num_frames - len(frames)} new ones"
      )
    return sentences


def keys_of(seeds: Sequence[int]) -> Key[Array, "B"]:
  """Returns the random key of each video.

  Args:
    seeds: Their seeds, as a report states them.
  """
  # A video has the key of the first one of a request with its seed.
  keys = [jax.random.fold_in(jax.random.key(x), 0) for x in seeds]
  return jnp.stack(keys)


def _check_sampler(
  request: request_lib.Request, sampler: sampling.Sampler
) -> None:
  """Refuses a sampler that cannot be, or cannot use what is asked.

  Raises:
    ValueError: If a few-step sampler makes a whole clip, or a negative prompt
      has no guidance.
  """
  if request.mode == "bidirectional" and sampler.step_rule.adds_noise:
    raise ValueError(
      "sampler.kind='few_step' is for causal students; use 'unipc' or 'euler' "
      "with mode='bidirectional'."
    )
  if request.mode == "bidirectional":
    unused.refuse(
      {"sampler.commit": request.sampler.commit.removeprefix("clean")},
      why="with mode='bidirectional', which caches nothing",
    )
  if sampler.guidance is None:
    unused.refuse(
      dict(negative_prompt=request.negative_prompt),
      why="without guidance",
    )


def prepare(
  request: request_lib.Request,
  source: sources.Source,
  *,
  endless: bool = False,
) -> Job:
  """Checks a request against its model and reads the given frames.

  Args:
    request: What is asked for.
    source: The model that `request.networks` names.
    endless: Whether frames come for ever, whatever `request.seconds` says.

  Returns:
    The generation, ready to run.

  Raises:
    ValueError: If prompts, sampler, length or given frames cannot work.
  """
  # The cheapest checks come first: a wrong word is told at once.
  source.check(request.prompts)
  source.check_negative(request.negative_prompt)
  request.output.check_scale(source.pixels)
  choice = request.sampler.settle(
    shift=source.shift, distilled=source.distilled
  )
  # What is settled is resolved to itself.
  sampler = choice.resolve(shift=source.shift, distilled=source.distilled)
  _check_sampler(request, sampler)
  num_frames = request_lib.count_frames(request.seconds, source.fps)
  height, width = source.pixels
  given = given_frames.read_given(
    image=request.image,
    clip=request.clip,
    shape=fitting.FrameShape(
      height=height, width=width, channels=source.pixel_channels
    ),
    fps=source.fps,
    most=None if endless else num_frames,
  )
  if given is not None and endless:
    num_frames = len(given.frames) + 1  # Nothing is cut to a length.
  if given is not None and num_frames < 2:
    raise ValueError(
      f"seconds={request.seconds} is one frame, and that one is given; ask for "
      "more."
    )
  return Job(
    request=request,
    source=source,
    sampler=sampler,
    choice=choice,
    num_frames=num_frames,
    given=None if given is None else given.frames,
    given_changes=() if given is None else given.changes,
  )
