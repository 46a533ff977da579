"""Records of measurements: JSON lines, one file per kind of device.

A line is one number: what was measured (`name`, `shape` and the other fields of
`FIELDS`), the `value` and its `unit`, and where it comes from (`device`,
`versions`, `date`, `commit`). A measurement that failed has an `error` in place
of a value. Lines are only added, so a run that was stopped goes on behind the
last one.
"""

from collections.abc import Iterable
from collections.abc import Mapping
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

from videomla_jax.storage import atomic
from videomla_jax.storage import foreign_files

type Line = dict[str, Any]

# What tells measurements apart, in the order in which a label names them. A
# field that does not apply is absent or null.
FIELDS = ("name", "shape", "attention", "form", "implementation", "direction")
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
  with foreign_files.reading(
    path, way_out="mend or remove the line", field="record"
  ):
    if path.stat().st_size > _MAX_BYTES:
      raise ValueError(f"is larger than {_MAX_BYTES} bytes")
    lines = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
      line = json.loads(text)
      if not isinstance(line, dict) or not isinstance(line.get("name"), str):
        raise ValueError(f"line {number} is no measurement")
      lines.append(line)
  return lines


def add(path: pathlib.Path, session: Session, lines: Iterable[Line]) -> None:
  """Adds lines to a record, all or none of them.

  Args:
    path: File of JSON lines; its folder exists.
    session: Where the numbers come from.
    lines: What was measured.
  """
  old = path.read_text("utf-8") if path.exists() else ""
  about = dataclasses.asdict(session)
  new = "".join(json.dumps(about | line) + "\n" for line in lines)
  atomic.write_text(path, old + new)
