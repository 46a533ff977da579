"""Measures the videos of a folder, wherever they come from."""

import dataclasses
import pathlib
from typing import Annotated, Any

from videomla_jax.generation import request as request_lib
from videomla_jax.quality import folder as folder_lib
from videomla_jax.quality import judging as judging_lib
from videomla_jax.quality import measures as measures_lib
from videomla_jax.quality import report
from videomla_jax.runtime import config_reader
from videomla_jax.runtime import config_values

DriftSeconds = Annotated[float | int, config_values.Range(0.01, 3600)]
_JUDGING = judging_lib.Judging()
_OUTPUT = request_lib.Output(name="videos")
_Frames = Annotated[int, config_values.Range(0, 1_000_000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkLengths:
  """How long the chunks of the videos are, as far as that is known.

  Attributes:
    first: Pixel frames of the first chunk; 0 says that there are no chunks.
    following: Pixel frames of every other chunk, likewise.
  """

  first: _Frames = 0
  following: _Frames = 0

  def __post_init__(self) -> None:
    if (self.first > 0) != (self.following > 0):
      raise ValueError(
        f"chunks.first={self.first} and chunks.following={self.following} must"
        " both be given, or both be 0; Wan with chunks of three has 9 and 12."
      )

  def chunks(self) -> measures_lib.Chunks | None:
    """Returns them for the measures; None if there are none."""
    if not self.first:
      return None
    return measures_lib.Chunks(first=self.first, following=self.following)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundVideos:
  """Which videos are measured, and judged if that is asked.

  Attributes:
    videos: Folder of the videos; what lies deeper does not count.
    chunks: How long their chunks are.
    drift_seconds: Seconds of beginning and end that are compared.
    judging: How VBench judges them; prompts are those of the file names.
    output: Where results go.
    record: File of JSON lines to which a line is added; empty for none.
  """

  videos: config_values.Path
  chunks: ChunkLengths = ChunkLengths()
  drift_seconds: DriftSeconds = 5.0
  judging: judging_lib.Judging = _JUDGING
  output: request_lib.Output = _OUTPUT
  record: config_values.Path = ""

  def __post_init__(self) -> None:
    if not self.videos:
      raise ValueError("videos is empty; name a folder of videos.")

  def run(self) -> report.Report:
    """Measures every video and returns the report.

    Raises:
      ValueError: If the folder has no videos, or one of them is damaged.
    """
    paths = folder_lib.videos_in(pathlib.Path(self.videos))
    if not paths:
      raise ValueError(
        f"videos={self.videos!r} has no videos; give a folder with files such"
        f" as {', '.join(folder_lib.ENDINGS)}."
      )
    self.judging.earlier()
    folder = report.open_folder(self.output)
    package = report.package_of(self.judging)
    measured = report.measure(
      paths,
      folder,
      chunks=self.chunks.chunks(),
      drift_seconds=self.drift_seconds,
    )
    judged = report.judge_all(
      self.judging,
      package,
      folder,
      videos=pathlib.Path(self.videos),
      measured=measured,
    )
    return report.write(
      self.output,
      judging=self.judging,
      videos=measured,
      judged=judged,
      folder=self.videos,
      chunks=config_reader.to_dict(self.chunks),
      drift_seconds=self.drift_seconds,
    )

  def lines(self, made: report.Report) -> list[dict[str, Any]]:
    """Returns the line of a record that says what was measured.

    Args:
      made: What `run` returned.
    """
    kept = ("sha256", "frames", "fps", "measures")
    return [
      dict(
        name="measures",
        kind="folder",
        folder=pathlib.Path(self.videos).absolute().name,
        chunks=made["chunks"],
        drift_seconds=made["drift_seconds"],
        num_videos=made["num_videos"],
        summary=made["summary"],
        videos={x["video"]: {k: x[k] for k in kept} for x in made["videos"]},
      )
    ]
