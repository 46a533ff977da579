"""The folder of one run of VBench's protocol, which many processes fill.

  settings.json   what all videos are made with; another run is refused
  videos/         PROMPT-INDEX.mp4, and nothing else: VBench takes the ending of
                  whatever file comes first
  measures/       numbers of each video, by the digest of its file
  vbench/         scores of each dimension, as the package gave them

Every file is complete or absent, so whatever is there need not be made again.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from videomla_jax.data import locks
from videomla_jax.quality import measures as measures_lib
from videomla_jax.quality import plan
from videomla_jax.storage import atomic
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import output_folder
from videomla_jax.storage import state_digests

type Settings = dict[str, Any]

# What is measured in a folder that somebody names.
ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
_MOST_VIDEOS = 100_000


@dataclasses.dataclass(frozen=True)
class Folder:
  """Where one run keeps what it has.

  Attributes:
    root: The folder of the run.
  """

  root: pathlib.Path

  @property
  def videos(self) -> pathlib.Path:
    """Folder of the videos, which VBench is given."""
    return self.root / "videos"

  @property
  def measures(self) -> pathlib.Path:
    """Folder of the numbers of each video."""
    return self.root / "measures"

  @property
  def judged(self) -> pathlib.Path:
    """Folder of what the package `vbench` gave."""
    return self.root / "vbench"

  def claim(
    self, settings: Mapping[str, object], *, needs_case: bool = False
  ) -> None:
    """Writes what the videos are made with, or compares it.

    Args:
      settings: All that decides about the frames, but prompts and indices.
      needs_case: Whether names of videos differ in capital letters only.

    Raises:
      ValueError: If the folder cannot be written or does not tell names apart,
        or its videos were made with other settings.
    """
    output_folder.check(self.videos)
    asked: Settings = json.loads(json.dumps(settings))
    path = self.root / "settings.json"
    with locks.alone(path, wait=True):
      if path.exists():
        self._compare(path, asked)
      elif any(self.videos.iterdir()):
        raise ValueError(
          f"folder {str(self.videos)!r} holds files, and nothing says what they"
          " were made with; choose another output.name, or measure them with"
          " configs/evaluate.py:videos."
        )
      else:
        atomic.write_text(path, json.dumps(asked, indent=1) + "\n")
    if needs_case and path.with_name(path.name.upper()).exists():
      raise ValueError(
        f"the disk of {str(self.root)!r} does not tell capital letters from"
        " small ones, in which prompts of the list differ; choose an"
        " output.folder on another disk."
      )

  def _compare(self, path: pathlib.Path, asked: Settings) -> None:
    """Refuses settings that differ from those of a file."""
    try:
      stated = ordinary_files.read_json(path)
    except ordinary_files.BadFile as error:
      raise ValueError(
        f"{str(path)!r} {error}, so nothing says what the videos beside it were"
        " made with; restore it, or choose another output.name."
      ) from error
    for name in sorted({*stated, *asked}):
      old, new = stated.get(name), asked.get(name)
      if old != new:
        raise ValueError(
          f"folder {str(self.root)!r} holds videos of {name}={_short(old)}, and"
          f" {_short(new)} is asked; choose another output.name, or move the"
          " folder away."
        )

  def missing(self, videos: Sequence[plan.Video]) -> list[plan.Video]:
    """Returns the videos that are not there.

    Args:
      videos: Part of a plan.

    Raises:
      ValueError: If something that is no file has the name of a video.
    """
    for video in videos:
      atomic.check_replaceable(self.videos / video.file)
    there = {x.name for x in self.videos.iterdir()}
    return [x for x in videos if x.file not in there]

  def others(self, videos: Sequence[plan.Video]) -> list[str]:
    """Returns the names of files that no plan asks for, hidden ones included.

    VBench takes the ending of all videos from the first file that it meets.

    Args:
      videos: The whole plan.
    """
    planned = {x.file for x in videos}
    found = (x for x in self.videos.iterdir() if not x.is_dir())
    return sorted(x.name for x in found if x.name not in planned)

  @contextlib.contextmanager
  def held(self, share: plan.Share) -> Iterator[None]:
    """Keeps another process from making the same share meanwhile.

    Args:
      share: What this process makes.

    Raises:
      ValueError: If another one has it.
    """
    name = f"share {share.number}/{share.count}"
    path = self.root / name.replace(" ", "-").replace("/", "-of-")
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(locks.alone(path, wait=False))
      except BlockingIOError as error:
        raise ValueError(
          f"another process makes {name} of {str(self.root)!r}; wait for it, or"
          " give this one another share."
        ) from error
      yield

  def measured(
    self,
    path: pathlib.Path,
    *,
    chunks: measures_lib.Chunks | None,
    drift_seconds: float | int,
  ) -> Settings:
    """Measures a video, or reads what was measured of the same bytes.

    Args:
      path: The video.
      chunks: Where its chunks begin; None if it has none.
      drift_seconds: Seconds of its beginning and end that are compared.

    Returns:
      `sha256`, `frames`, `fps` and `measures` of the video.

    Raises:
      ValueError: If it cannot be read to its end.
    """
    about = dict(
      format=measures_lib.FORMAT,
      chunks=None if chunks is None else dataclasses.asdict(chunks),
      drift_seconds=float(drift_seconds),
      sha256=digest(path),
    )
    # A digest, since the name of a video may fill all that a name may have.
    key = hashlib.sha256(path.name.encode()).hexdigest()[:32]
    file = self.measures / f"{key}.json"
    with contextlib.suppress(ordinary_files.BadFile):
      old = ordinary_files.read_json(file, limit=ordinary_files.MIB)
      if old.get("about") == about and {"frames", "fps", "measures"} <= {*old}:
        return dict(old, sha256=about["sha256"])
    series = measures_lib.read_series(path)
    found = dict(
      video=path.name,
      about=about,
      frames=series.num_frames,
      fps=series.fps,
      measures=measures_lib.measure(
        series, chunks=chunks, drift_seconds=drift_seconds
      ),
    )
    self.measures.mkdir(parents=True, exist_ok=True)
    atomic.write_text(file, json.dumps(found, indent=1) + "\n")
    return dict(found, sha256=about["sha256"])


def digest(path: pathlib.Path) -> str:
  """Returns the SHA-256 of an ordinary file.

  Args:
    path: The file.

  Raises:
    ValueError: If it cannot be read.
  """
  try:
    ordinary_files.open_file(path).close()
    return state_digests.sha256(path)
  except ordinary_files.BadFile as error:
    raise ValueError(f"video {str(path)!r} {error}; move it away.") from error


def videos_in(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists the videos of a folder by name; what lies deeper does not count.

  Args:
    folder: The folder.

  Raises:
    ValueError: If there is no such folder, or it has too many.
  """
  try:
    found = [
      x
      for x in folder.iterdir()
      if x.suffix.lower() in ENDINGS and not x.name.startswith(".")
    ]
  except OSError as error:
    raise ValueError(
      f"videos={str(folder)!r} is no folder that can be read"
      f" ({error.strerror}); give a folder of videos."
    ) from error
  if len(found) > _MOST_VIDEOS:
    raise ValueError(
      f"videos={str(folder)!r} has {len(found)} videos; give a folder of at"
      f" most {_MOST_VIDEOS}."
    )
  return sorted(found, key=lambda x: x.name)


def _short(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 120 else f"{text[:117]}..."
