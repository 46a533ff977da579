"""Rows of a record that are counted once, and taken from it afterwards."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
import re
from typing import Any

from videomla_jax.measuring import record as record_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """Something whose work is counted.

  Attributes:
    about: Fields of its line that tell it from others, "name" among them.
    count: Returns the other fields.
  """

  about: Mapping[str, Any]
  count: Callable[[], Mapping[str, Any]]

  @property
  def label(self) -> str:
    """The row in one line; `rows` of a config selects by it."""
    words = (f"{k} {v}" for k, v in self.about.items() if k != "name" and v)
    return ", ".join([self.about["name"], *words])

  def known(self, lines: list[record_lib.Line]) -> record_lib.Line | None:
    """Returns the newest line of this row, if there is one.

    Args:
      lines: Lines of a record.
    """
    mine = [
      x for x in lines if all(x.get(k) == v for k, v in self.about.items())
    ]
    return mine[-1] if mine else None


def gather(
  rows: Sequence[Row],
  *,
  pattern: str,
  again: bool,
  record: str,
  json_file: str,
) -> list[record_lib.Line]:
  """Counts what a record does not have, and prints all that was asked for.

  Args:
    rows: What can be asked for.
    pattern: Regular expression that the label of a row must contain.
    again: Whether rows that the record has are counted again.
    record: File of the record, which is added to row by row.
    json_file: File to which the lines are written as well; empty for none.

  Returns:
    The lines of what was asked for.

  Raises:
    ValueError: If no row matches, or the record cannot be read or written.
  """

  def line_of(row: Row, path: pathlib.Path) -> list[record_lib.Line]:
    line = row.known(record_lib.read(path))
    if again or line is None:
      made = {**row.about, **row.count()}
      record_lib.add(path, record_lib.Session.here(), [made])
      line = row.known(record_lib.read(path))
      assert line is not None
    figures = (
      f"{k} {line[k]:.4g}"
      for k in line
      if k not in row.about and isinstance(line[k], int | float)
    )
    print(f"{row.label}: {', '.join(figures)}", flush=True)
    return [line]

  return record_lib.gather(
    [row for row in rows if re.search(pattern, row.label)],
    line_of,
    record=record,
    json_file=json_file,
    pattern=pattern,
  )
