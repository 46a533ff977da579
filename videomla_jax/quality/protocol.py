"""VBench's protocol: five videos of every prompt of a list, then scores."""

import dataclasses
import importlib.metadata
import pathlib
from typing import Annotated, Any

from videomla_jax import shapes
from videomla_jax.generation import job as job_lib
from videomla_jax.generation import networks as networks_lib
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import sampler_choice
from videomla_jax.generation import sources
from videomla_jax.generation import wan_source
from videomla_jax.models import tokenizer as tokenizer_lib
from videomla_jax.models import window as window_lib
from videomla_jax.quality import folder as folder_lib
from videomla_jax.quality import found_videos
from videomla_jax.quality import judging as judging_lib
from videomla_jax.quality import making
from videomla_jax.quality import measures as measures_lib
from videomla_jax.quality import plan
from videomla_jax.quality import prompt_lists
from videomla_jax.quality import report
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values
from videomla_jax.small_world import model as model_lib
from videomla_jax.storage import model_folder
from videomla_jax.storage import state_digests

_SAMPLER = sampler_choice.SamplerChoice()
# The window of training; a rollout may use another one.
_WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)
_JUDGING = judging_lib.Judging()
_OUTPUT = request_lib.VideoOutput(name="vbench")

_FORMAT = 1  # of settings.json
_Samples = Annotated[int, config_values.Range(1, 10_000)]
# What a request says of its own prompts and files, which are those of a plan.
_OF_PROMPTS = ("prompts", "seeds", "tokens_of_cut_prompts", "image", "clip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
  """Which videos are made, measured and judged.

  Attributes:
    networks: The model, and the size of its videos.
    prompts: What to show, where no list is named.
    prompts_file: File of the list: VBench_full_info.json, or text with a prompt
      per line.
    texts_file: Text file with what the model is given in place of each prompt
      of the list, line by line; empty gives it the prompts.
    samples: Videos of each prompt.
    still_samples: Videos of prompts for temporal flickering, at least those of
      the others.
    batch: Videos side by side.
    share: Which part of the videos this process makes, such as "3/8".
    negative_prompt: What guidance steers away from.
    seconds: Length of every video.
    seed: Seed of all videos, together with prompt and index.
    mode: "causal", or "bidirectional" for whole clips at once.
    sampler: How chunks are denoised.
    window: Which latent frames a chunk sees.
    cache_dtype: Number format of cached entries; empty is the model's own.
    drift_seconds: Seconds of beginning and end that are compared.
    judging: How VBench judges the videos when all are there.
    output: Where results go.
    record: File of JSON lines to which a line is added; empty for none.
  """

  networks: networks_lib.Networks = dataclasses.field(
    metadata=config_reader.INLINE
  )
  prompts: tuple[str, ...] = ()
  prompts_file: config_values.Path = ""
  texts_file: config_values.Path = ""
  samples: _Samples = 5
  still_samples: _Samples = 25
  batch: Annotated[int, config_values.Range(1, 1000)] = 1
  share: str = "1/1"
  negative_prompt: str = ""
  seconds: config_values.Seconds = 81 / 16
  seed: config_values.Seed = 0
  mode: str = "causal"
  sampler: sampler_choice.SamplerChoice = _SAMPLER
  window: window_lib.Window = _WINDOW
  cache_dtype: str = ""
  drift_seconds: found_videos.DriftSeconds = 5.0
  judging: judging_lib.Judging = _JUDGING
  output: request_lib.VideoOutput = _OUTPUT
  record: config_values.Path = ""

  def __post_init__(self) -> None:
    plan.Share.parse(self.share)
    given = tuple(x for x in self.prompts if x)
    object.__setattr__(self, "prompts", given)
    if bool(self.prompts_file) == bool(self.prompts):
      raise ValueError(
        "prompts_file and prompts are both given, or both empty; name a list,"
        " or write prompts."
      )
    if self.texts_file and not self.prompts_file:
      raise ValueError(
        f"texts_file={self.texts_file!r} has no effect without prompts_file;"
        " write the texts as prompts."
      )

  def listed(self) -> prompt_lists.PromptList:
    """Reads the list, as far as the dimensions need it.

    Raises:
      ValueError: If it cannot be read.
    """
    if self.prompts:
      return prompt_lists.of_texts(self.prompts)
    found = prompt_lists.read(self.prompts_file, texts=self.texts_file)
    return found.chosen(self.judging.dimensions)

  def prepare(self, texts: list[str]) -> job_lib.Job:
    """Opens the model and checks everything that all videos share.

    Args:
      texts: What the model is given.

    Raises:
      ValueError: If the model cannot take it.
    """
    request = request_lib.Request(
      networks=self.networks,
      prompts=tuple(texts[:1]),
      negative_prompt=self.negative_prompt,
      seconds=self.seconds,
      seed=self.seed,
      mode=self.mode,
      sampler=self.sampler,
      window=self.window,
      cache_dtype=self.cache_dtype,
      output=self.output,
    )
    source = sources.open_source(self.networks)
    source.check(texts)
    return job_lib.prepare(request, source)

  def run(self) -> report.Report:
    """Makes what is missing of this share, and measures what is there.

    Raises:
      ValueError: If the list, the model or the folder cannot work.
    """
    share = plan.Share.parse(self.share)
    prompts = self.listed()
    videos = plan.videos_of(
      prompts,
      samples=self.samples,
      still_samples=self.still_samples,
      seed=self.seed,
    )
    self.judging.earlier()
    job = self.prepare([*dict.fromkeys(x.text for x in videos)])
    folder = report.open_folder(self.output)
    package = report.package_of(self.judging)
    chunks = chunks_of(job)
    settings = settings_of(job, batch=self.batch, texts_file=self.texts_file)
    folder.claim(settings, needs_case=prompts.needs_case)
    self._make(videos, share, folder, job)
    missing = {x.file for x in folder.missing(videos)}
    there = [x for x in videos if x.file not in missing]
    others = folder.others(videos)
    # Processes that end together measure their own videos first.
    mine = {x.file for x in share.of(videos)}
    ordered = sorted(there, key=lambda x: x.file not in mine)
    found = report.measure(
      [folder.videos / x.file for x in ordered],
      folder,
      chunks=chunks,
      drift_seconds=self.drift_seconds,
      num_frames=job.num_frames,
    )
    by_file = {x["video"]: x for x in found}
    measured = [by_file[x.file] for x in there]
    judged = report.judge_all(
      self.judging,
      package,
      folder,
      videos=folder.videos,
      measured=measured,
      prompts_file=self.prompts_file if prompts.standard else "",
      samples=self.samples,
      why_not=_why_not(len(missing), len(videos), others),
    )
    return report.write(
      self.output,
      judging=self.judging,
      videos=[
        dict(dataclasses.asdict(video), **numbers)
        for video, numbers in zip(there, measured, strict=True)
      ],
      judged=judged,
      settings=settings,
      share=self.share,
      num_missing=len(missing),
      others=others,
      samples=self.samples,
      drift_seconds=self.drift_seconds,
      tokens_of_cut_prompts=job.source.cut([x.text for x in prompts.entries]),
    )

  def _make(
    self,
    videos: tuple[plan.Video, ...],
    share: plan.Share,
    folder: folder_lib.Folder,
    job: job_lib.Job,
  ) -> None:
    """Makes what is missing of a share, and says how much that is."""
    with folder.held(share):
      missing = folder.missing(share.of(videos))
      print(
        f"share {self.share}: {len(missing)} of {len(share.of(videos))} videos"
        f" are missing in {folder.videos}; {len(videos)} in all",
        flush=True,
      )
      making.make(missing, folder, job, size=self.batch)

  def lines(self, made: report.Report) -> list[dict[str, Any]]:
    """Returns the line of a record that says what was measured.

    Args:
      made: What `run` returned.
    """
    settings = made["settings"]
    line = {
      k: settings[k]
      for k in ("checkpoint", "weights", "sampler", "seconds", "seed", "chunks")
    }
    return [
      dict(
        name="measures",
        kind="model",
        **line,
        num_videos=made["num_videos"],
        drift_seconds=made["drift_seconds"],
        summary=made["summary"],
      )
    ]


def _why_not(missing: int, planned: int, others: list[str]) -> str:
  """Says why videos cannot be judged yet; empty if they can."""
  if missing:
    return (
      f"{missing} of {planned} videos are missing; the same command judges when"
      " all are there"
    )
  if others:
    return (
      f"{len(others)} files such as {others[0]!r} are no videos of the list,"
      " and VBench would take them for some; move them away"
    )
  return ""


def chunks_of(job: job_lib.Job) -> measures_lib.Chunks | None:
  """Returns where the chunks of a model's videos begin.

  Args:
    job: Model and window.

  Returns:
    Their lengths in pixel frames; None of whole clips.
  """
  if job.request.mode != "causal":
    return None
  frames = job.request.window.chunk_frames
  stride = temporal_stride(job.source)
  return measures_lib.Chunks(
    first=shapes.pixel_frames(frames, stride=stride),
    following=frames * stride,
  )


def temporal_stride(source: sources.Source) -> int:
  """Returns the pixel frames of a latent frame, without loading anything.

  Args:
    source: A model.
  """
  if isinstance(source, sources.SmallSource):
    return source.model.codec.temporal_stride
  assert isinstance(source, wan_source.WanSource)
  return source.vae_sizes.temporal_stride


def settings_of(
  job: job_lib.Job, *, batch: int, texts_file: str = ""
) -> folder_lib.Settings:
  """Returns all that decides about frames, but prompt and index.

  Args:
    job: What all videos share.
    batch: Videos side by side: another number makes another program, which may
      round differently.
    texts_file: What the model is given in place of prompts, if anything.
  """
  described = job.described()
  chunks = chunks_of(job)
  settings = {k: v for k, v in described.items() if k not in _OF_PROMPTS}
  settings |= dict(
    format=_FORMAT,
    version=importlib.metadata.version("videomla_jax"),
    weights=weights_of(job.request.networks),
    batch=batch,
    num_frames=job.num_frames,
    chunks=None if chunks is None else dataclasses.asdict(chunks),
    texts=folder_lib.digest(pathlib.Path(texts_file)) if texts_file else None,
  )
  return settings


def weights_of(networks: networks_lib.Networks) -> dict[str, str]:
  """Returns digests of the folders of weights, by the names of the parts.

  A folder of weights has a list of the digests of its files, and this is the
  digest of that list. A tokenizer has none, and stored embeddings are a file:
  theirs are digests of the file itself.

  Args:
    networks: What is opened.

  Raises:
    ValueError: If a folder of weights has no such list.
  """
  if networks.checkpoint.startswith("random:"):
    return {}
  root = model_lib.checkpoint_path(networks.checkpoint)
  folders = {"model": root} | {
    name: pathlib.Path(path) if path else root / name
    for name, path in dataclasses.asdict(networks.parts).items()
  }
  found: dict[str, str] = {}
  if networks.embeddings:
    # They take the place of the text encoder, which is not opened.
    del folders["umt5"], folders["tokenizer"]
    found["embeddings"] = state_digests.sha256(
      pathlib.Path(networks.embeddings)
    )
  for name, path in folders.items():
    is_file = name == "tokenizer"
    listed = path / (tokenizer_lib.FILE if is_file else model_folder.DIGESTS)
    if listed.is_file():
      found[name] = state_digests.sha256(listed)
    # The folder of a release has folders of parts, and no list of its own.
    elif name != "model" and path.is_dir():
      raise ValueError(
        f"folder {str(path)!r} of {name!r} has no file {listed.name!r}, without"
        " which other weights would go unnoticed; convert it again."
      )
  return found
