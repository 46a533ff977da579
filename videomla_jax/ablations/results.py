"""The record of an ablation: one line for each row and seed.

A line holds what was asked (`recipe`), what came out, and where it comes from.
Several processes may work on one record: each claims a row before it starts,
and adds its lines while it alone has the file. Lines of another recipe, device
or version are no results of this command; they are refused and stay as they
are.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import pathlib
from typing import Any

from videomla_jax.data import locks
from videomla_jax.measuring import record

# Raised when lines of equal recipes no longer mean the same.
FORMAT = 1

Recipe = Mapping[str, Any]
Key = tuple[str, int]  # name of the row, seed


def key_of(line: record.Line) -> Key:
  """Returns what tells the lines of a record apart.

  Args:
    line: A line of the record.
  """
  return str(line.get("setting")), int(line.get("seed", -1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
  """A record and the session that adds to it.

  Attributes:
    path: File of JSON lines; its folder exists.
    session: Where the numbers come from.
  """

  path: pathlib.Path
  session: record.Session

  def known(self, recipes: Mapping[Key, Recipe]) -> dict[Key, record.Line]:
    """Returns the lines of what is asked for, as far as there are any.

    Args:
      recipes: What is asked for, by row and seed.

    Raises:
      ValueError: If the record cannot be read, or has a line of another recipe,
        device or version in the place of one that is asked for.
    """
    found = {}
    for number, line in enumerate(record.read(self.path), 1):
      key = key_of(line)
      if key in recipes:
        self._check(number, line, recipes[key])
        found[key] = line
    return found

  def _check(self, number: int, line: record.Line, recipe: Recipe) -> None:
    """Refuses a line that is no result of this command."""
    wanted = {
      "format": FORMAT,
      "device": self.session.device,
      **{f"versions.{k}": v for k, v in self.session.versions.items()},
      **recipe,
    }
    versions = line.get("versions") or {}
    given = {
      **{k: line.get(k) for k in ("format", "device")},
      **{f"versions.{k}": v for k, v in versions.items()},
      **(line.get("recipe") or {}),
    }
    for name in {**wanted, **given}:
      if wanted.get(name) != given.get(name):
        raise ValueError(
          f"record {str(self.path)!r} has a line {number} of row "
          f"{line.get('setting')!r} with {name}={given.get(name)!r} where this "
          f"command has {wanted.get(name)!r}; name another file as record, or "
          "give the command the values of the record."
        )

  @contextlib.contextmanager
  def claimed(self, names: Iterable[str]) -> Iterator[bool]:
    """Keeps other processes from working on the same rows meanwhile.

    A process that dies gives its claims back.

    Args:
      names: Names of the rows.

    Yields:
      Whether the rows are this process's own; False if another one has any.
    """
    with contextlib.ExitStack() as stack:
      try:
        for name in sorted(names):
          # It is the name of a lock, never of a file with content.
          claim = self.path.with_name(f"{self.path.name}: {name}")
          stack.enter_context(locks.alone(claim, wait=False))
      except BlockingIOError:
        yield False
        return
      yield True

  def add(self, lines: Iterable[record.Line]) -> None:
    """Adds lines to the record, behind those of other processes.

    Args:
      lines: What came out of rows.
    """
    with locks.alone(self.path, wait=True):
      record.add(
        self.path,
        self.session,
        (dict(name="ablation", format=FORMAT) | line for line in lines),
      )
