"""Videos from Python: what `import videomla_jax` offers.

  model = videomla_jax.load("shipped:small_student")
  video = videomla_jax.generate(model, "a slow three moving horizontally")
  print(videomla_jax.save(video, "out"))

Arguments have the names and the meaning of the keys in `configs/sample.py`, and
the same seed gives the same bytes as `python -m videomla_jax.sample`.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import os
from typing import TypedDict, Unpack

import numpy as np

from videomla_jax.diffusion import stream as stream_lib
from videomla_jax.generation import job as job_lib
from videomla_jax.generation import networks as networks_lib
from videomla_jax.generation import pipeline as pipeline_lib
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import sources
from videomla_jax.generation import video as video_lib
from videomla_jax.models import window as window_lib
from videomla_jax.runtime import config_reader


class Options(TypedDict, total=False):
  """What may be said about a generation beside prompts and length.

  Attributes:
    seed: Seed of the noise; 0 by default.
    negative_prompt: Text that guidance steers away from; empty by default.
    image: Picture file of the first frame: PNG, JPEG, WebP or GIF.
    clip: File of a clip to continue, such as an MP4.
    sampler: Any of `kind`, `num_steps`, `guidance` and `shift`; the model's own
      by default.
    window: Any of the fields of `Window`; that of training by default.
    cache_dtype: Number format of cached entries; the model's own by default.
  """

  seed: int
  negative_prompt: str
  image: str
  clip: str
  sampler: Mapping[str, object]
  window: Mapping[str, object]
  cache_dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A model whose files were checked; its networks are loaded at first use.

  Attributes:
    networks: What was opened.
    source: Embeds prompts and loads networks.
  """

  networks: networks_lib.Networks
  source: sources.Source

  @functools.cached_property
  def pipeline(self) -> pipeline_lib.Pipeline:
    """Network and codec, which stay in memory as long as the model does."""
    # `load` does not do this: the first generation embeds its prompts before,
    # so the text encoder and the network need not fit into memory together.
    return self.source.load()

  def __repr__(self) -> str:
    height, width = self.source.pixels
    return (
      f"Model({self.networks.checkpoint!r}, {height} x {width} pixels, "
      f"{self.source.fps:g} frames per second)"
    )


class VideoStream(Iterator[video_lib.Pixels]):
  """Chunks of frames `[B, t, h, w, c]`, 0..255, as they are made.

  The next chunk is computed while the caller shows this one.

  Attributes:
    fps: Frames per second.
  """

  def __init__(
    self, job: job_lib.Job, pipeline: pipeline_lib.Pipeline, *, endless: bool
  ) -> None:
    """Embeds the prompts and allocates the cache.

    Args:
      job: What to make.
      pipeline: Network and codec.
      endless: Whether frames come for ever.
    """
    self.fps = job.source.fps
    self._job = job
    text = job.embed(job.request.prompts)
    # Given frames come out once, so that the chunks are the whole video.
    self._first: video_lib.Pixels | None = job.first_frames(pipeline)
    self._chunks = job.stream(pipeline, text, endless=endless)

  def __next__(self) -> video_lib.Pixels:
    first, self._first = self._first, None
    if first is not None and first.shape[1]:
      return first
    # A caller may draw on its frames, and what is fetched is read-only.
    return np.array(next(self._chunks))

  def switch(
    self,
    prompts: str | Sequence[str],
    *,
    how: stream_lib.Switch = "recache",
    jump_to: int | None = None,
  ) -> None:
    """Changes the prompts from the first chunk that is not under way yet.

    Args:
      prompts: New texts, in the number that the stream was opened with.
      how: "keep" leaves the cache (smooth, slow to follow), "flush" keeps the
        sink and the newest frames, "recache" runs the frames of the window
        again under the new prompts.
      jump_to: Temporal coordinate of the next chunk: a hard cut.

    Raises:
      ValueError: If the model cannot take the prompts, their number changed, or
        `how` is unknown.
    """
    prompts = _as_tuple(prompts)
    if len(prompts) != len(self._job.request.prompts):
      raise ValueError(
        f"prompts are {len(prompts)} but the stream shows "
        f"{len(self._job.request.prompts)} videos; give one for each."
      )
    self._job.source.check(prompts)
    self._chunks.switch(self._job.embed(prompts), how=how, jump_to=jump_to)


def load(
  checkpoint: str | os.PathLike[str],
  *,
  parts: Mapping[str, object] | None = None,
  embeddings: str = "",
  height: int = 0,
  width: int = 0,
  half_weights: bool = False,
  spare_memory: bool = False,
  layers_apart: bool = False,
  products: str = "",
  vae_tile: int = 0,
  vae_dtype: str = "float32",
  decoder: str = "",
  seed: int = 0,
) -> Model:
  """Opens a model and checks its files; networks are loaded at first use.

  Args:
    checkpoint: `shipped:NAME`, a folder of `train` or of `convert`, or
      `random:NAME`.
    parts: Folders of a converted release that lie elsewhere, by "dit", "vae",
      "umt5", "tokenizer" and "tiny_decoder".
    embeddings: File of `embed`, in place of the text encoder.
    height: Pixel rows of Wan's videos; 0 is the usual size of the release.
    width: Pixel columns, likewise.
    half_weights: Whether kernels are held in bfloat16 only: half the memory.
    spare_memory: Whether a released network takes less memory and more time.
    layers_apart: Whether each layer of a released network has arrays of its
      own: no large weights are copied, and programs take longer to compile.
    products: A name in `quantise.PRODUCTS`; those of float8 hold the network's
      blocks in float8 and multiply in it; empty is as the model is stored.
    vae_tile: Side of a decoder's tile in latent pixels; 0 is the whole frame.
    vae_dtype: Number format in which the VAE and the tiny decoder compute.
    decoder: What turns Wan's latents into pixels: "wan" (its VAE) or "tiny";
      empty is the model's own.
    seed: Seed of the weights of `random:NAME`.

  Returns:
    The model, for `generate` and `stream`.

  Raises:
    ValueError: If it is no model, or files of it are missing or damaged.
  """
  values = dict(
    checkpoint=os.fspath(checkpoint),
    parts=parts or {},
    embeddings=os.fspath(embeddings),
    height=height,
    width=width,
    half_weights=half_weights,
    spare_memory=spare_memory,
    layers_apart=layers_apart,
    products=products,
    vae_tile=vae_tile,
    vae_dtype=vae_dtype,
    decoder=decoder,
    weights_seed=seed,
  )
  networks = config_reader.read(networks_lib.Networks, values)
  return Model(networks, sources.open_source(networks))


def generate(
  model: Model,
  prompts: str | Sequence[str],
  *,
  seconds: float | int = 10.0,
  mode: str = "causal",
  **options: Unpack[Options],
) -> video_lib.Video:
  """Makes one video per prompt.

  Args:
    model: What `load` opened.
    prompts: What to show: one text, or one per video.
    seconds: Length of every video, given frames included.
    mode: "causal" makes a video chunk by chunk, "bidirectional" makes a whole
      clip at once, for models such as Wan2.1 itself.
    **options: Seed, sampler, window and so on, see `Options`.

  Returns:
    The videos, in the order of the prompts.

  Raises:
    ValueError: If a name is unknown, or the model cannot take a value.
  """
  job = _job(model, prompts, seconds=seconds, mode=mode, options=options)
  # The encoder is freed before the networks are loaded for the first time.
  text = job.embed(job.request.prompts)
  first = job.first_frames(model.pipeline)
  chunks = [first, *job.chunks(model.pipeline, text)]
  return video_lib.Video(
    pixels=np.concatenate(chunks, axis=1),
    fps=model.source.fps,
    prompts=job.request.prompts,
    given=tuple(job.describe_given(model.pipeline)),
  )


def stream(
  model: Model,
  prompts: str | Sequence[str],
  *,
  seconds: float | int | None = None,
  **options: Unpack[Options],
) -> VideoStream:
  """Makes videos chunk by chunk, for as long as someone watches.

  Args:
    model: What `load` opened, a causal model.
    prompts: What to show: one text, or one per video.
    seconds: Length of every video, given frames included; None never ends.
    **options: Seed, sampler, window and so on, see `Options`.

  Returns:
    An iterator over chunks of frames, whose prompts may be switched.

  Raises:
    ValueError: If a name is unknown, or the model cannot take a value.
  """
  endless = seconds is None
  # Any length will do for an endless video: nothing is cut to it.
  length = 1.0 if seconds is None else seconds
  job = _job(
    model,
    prompts,
    seconds=length,
    mode="causal",
    options=options,
    endless=endless,
  )
  return VideoStream(job, model.pipeline, endless=endless)


def _as_tuple(prompts: str | Sequence[str]) -> tuple[str, ...]:
  """Makes one prompt a list of one; semicolons stay part of a prompt."""
  return (prompts,) if isinstance(prompts, str) else tuple(prompts)


def _job(
  model: Model,
  prompts: str | Sequence[str],
  *,
  seconds: float | int,
  mode: str,
  options: Options,
  endless: bool = False,
) -> job_lib.Job:
  """Reads arguments as a config is read, and checks them against the model."""
  # Names of `load` are known to a request, too, but come too late here.
  unknown = sorted(options.keys() - Options.__annotations__.keys())
  if unknown:
    raise ValueError(
      f"{unknown[0]} is unknown; use one of "
      f"{', '.join(Options.__annotations__)}."
    )
  # A clip that is made at once has no window, and refuses one.
  causal = mode == "causal"
  window = dataclasses.asdict(model.source.window) if causal else {}
  values = dict(options) | dict(
    checkpoint=model.networks.checkpoint,
    prompts=_as_tuple(prompts),
    seconds=seconds,
    mode=mode,
    window=config_reader.read(
      window_lib.Window, window | dict(options.get("window", {})), at="window."
    ),
  )
  request = config_reader.read(request_lib.Request, values)
  # Only the name went through the reader; the model was opened with more.
  request = dataclasses.replace(request, networks=model.networks)
  return job_lib.prepare(request, model.source, endless=endless)
