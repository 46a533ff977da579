"""Records of measurements: JSON lines, one file per kind of device.

A line is one number: what was measured (`name`, `shape` and the other fields of
`FIELDS`), the `value` and its `unit`, and where it comes from (`device`,
`versions`, `date`, `commit`). A measurement that failed has an `error` in place
of a value. Lines are only added, so a run that was stopped goes on behind the
last one.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import platform
import re
import subprocess
from typing import Any

import jax

from videomla_jax.data import locks
from videomla_jax.storage import atomic
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import output_folder

type Line = dict[str, Any]

# What tells measurements apart, in the order in which a label names them. A
# field that does not apply is absent or null.
FIELDS = (
  *("name", "shape", "attention", "form", "implementation", "direction"),
  "tiles",
)
_PACKAGES = ("jax", "jaxlib", "flax", "jax-cuda13-plugin", "nvidia-cudnn-cu13")
_MAX_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
  """Where and when numbers are measured.

  Attributes:
    device: Name that the platform gives the device.
    commit: Short hash of the commit, with "+" behind it if files were changed;
      the version of the package where there is no repository.
    versions: Version of each package that decides about speed.
    date: Day of the measurement.
  """

  device: str
  commit: str
  versions: Mapping[str, str]
  date: str

  @classmethod
  def here(cls) -> "Session":
    """Describes this process."""
    return cls(
      device=jax.local_devices()[0].device_kind,
      commit=_commit() or importlib.metadata.version("videomla_jax"),
      versions=_versions(),
      date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )

  def made(self, line: Line) -> bool:
    """Whether a line comes from the same device, code and versions."""
    same = (self.device, self.commit, dict(self.versions))
    return same == tuple(line.get(k) for k in ("device", "commit", "versions"))


def _commit() -> str:
  folder = pathlib.Path(__file__).parent
  found = []
  # Only this package's own repository counts, not one that contains an
  # installation by chance, hence the question whether git knows this file.
  for command in (
    ("ls-files", "--error-unmatch", __file__),
    ("rev-parse", "--short", "HEAD"),
    ("status", "--porcelain", "--untracked-files=no"),
  ):
    try:
      done = subprocess.run(
        ("git", *command),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
      )
    except (OSError, subprocess.TimeoutExpired):
      return ""
    if done.returncode:
      return ""
    found.append(done.stdout.strip())
  return found[1] + ("+" if found[2] else "")


def _versions() -> dict[str, str]:
  versions = {"python": platform.python_version()}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return versions


@contextlib.contextmanager
def written_alone(path: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from adding to a record meanwhile.

  Args:
    path: The record; its folder exists.

  Raises:
    ValueError: If another process has it.
  """
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locks.alone(path, wait=False))
    except BlockingIOError as error:
      raise ValueError(
        f"another process measures into {str(path)!r}; wait for it, since both "
        "would be slower, or name another place."
      ) from error
    yield


def check_pattern(rows: str) -> None:
  """Raises `ValueError` if what selects rows is no regular expression.

  Args:
    rows: What the user wrote.
  """
  try:
    re.compile(rows)
  except re.error as error:
    raise ValueError(
      f"rows={rows!r} is no regular expression ({error})."
    ) from error


def gather[Row](
  rows: Sequence[Row],
  lines_of: Callable[[Row, pathlib.Path], Iterable[Line]],
  *,
  record: str,
  json_file: str,
  pattern: str,
) -> list[Line]:
  """Goes through rows whose lines a record has or is to get.

  Args:
    rows: What is asked for.
    lines_of: Returns the lines of a row, taken out of the record or added to
      it.
    record: File of the record.
    json_file: File to which the lines are written as well; empty for none.
    pattern: What the user selected rows by, for the error.

  Returns:
    The lines of all rows.

  Raises:
    ValueError: If no row is asked for, or the record cannot be written or is
      another process's.
  """
  if not rows:
    raise ValueError(
      f"rows={pattern!r} matches nothing; leave it empty for all rows."
    )
  path = output_folder.check_file(record)
  with written_alone(path):
    found = [line for row in rows for line in lines_of(row, path)]
  if json_file:
    atomic.write_text(json_file, text_of(found))
  return found


def check_names(
  field: str,
  given: Iterable[str],
  known: Iterable[str],
  *,
  may_be_empty: bool = False,
) -> None:
  """Raises `ValueError` if a list is empty or has a name that is unknown.

  Args:
    field: Name of the list in the config.
    given: What the user wrote.
    known: What there is.
    may_be_empty: Whether nothing is a choice, too.
  """
  given, known = [*given], [*known]
  if not given and not may_be_empty:
    raise ValueError(f"{field} is empty; use some of {known}.")
  if unknown := sorted({*given} - {*known}):
    raise ValueError(f"{field}={unknown} are unknown; use some of {known}.")


def label(line: Mapping[str, Any]) -> str:
  """Names a measurement in one line, such as "latent_attention/480p/cudnn"."""
  parts = [str(line[f]) for f in FIELDS if line.get(f) is not None]
  if line.get("holes") is not None:
    parts.append("holes" if line["holes"] else "full")
  return "/".join(parts)


def file_name(device: str) -> str:
  """Returns the file of a device's records: its name in plain letters."""
  return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".jsonl"


def read(path: pathlib.Path) -> list[Line]:
  """Reads a record; a file that does not exist has no lines.

  Args:
    path: File of JSON lines.

  Raises:
    ValueError: If a line is no record, with its number.
  """
  if not path.exists():
    return []
  try:
    text = ordinary_files.read_text(path, limit=_MAX_BYTES)
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"record {str(path)!r} {error}; restore it from git, or move it away."
    ) from error
  return [
    _parsed(path, number, line)
    for number, line in enumerate(text.splitlines(), 1)
  ]


def _parsed(path: pathlib.Path, number: int, text: str) -> Line:
  """Reads one line of a record."""
  try:
    line = ordinary_files.parse_json(text.encode())
    if not isinstance(line.get("name"), str):
      raise ordinary_files.BadFile("has no name")
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"record {str(path)!r} has a line {number} that {error}; mend or remove "
      "the line."
    ) from error
  return line


def add(path: pathlib.Path, session: Session, lines: Iterable[Line]) -> None:
  """Adds lines to a record, all or none of them.

  Args:
    path: File of JSON lines; its folder exists.
    session: Where the numbers come from.
    lines: What was measured.
  """
  old = path.read_text("utf-8") if path.exists() else ""
  about = dataclasses.asdict(session)
  atomic.write_text(path, old + text_of(about | line for line in lines))


def text_of(lines: Iterable[Line]) -> str:
  """Returns lines as the text of a record."""
  return "".join(json.dumps(line) + "\n" for line in lines)
