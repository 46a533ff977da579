"""Reads the cells of CSV and Parquet files that anybody may have written.

Nothing here knows what the columns mean. A row that is broken is told from the
others, so that one of a million does not spoil the table; memory depends on one
row and not on what a file says of itself.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import csv
import io
import itertools
import os
import pathlib
from typing import Any, Protocol, runtime_checkable

import pyarrow
from pyarrow import parquet

from videomla_jax.storage import ordinary_files

# A text in CSV; in Parquet, whatever a stranger has put there.
type Cell = Any
# Cells of the wanted columns, or the reason why the row cannot be used.
type Row = tuple[Cell, ...] | str

MAX_ROWS = 10**7
_MAX_COLUMNS = 10_000
_MAX_LINE = 16 * ordinary_files.MIB  # characters, captions of quoted lines too
_DELIMITERS = (",", ";", "\t", "|")
# A table that grows more than this when it is unpacked was made to fill the
# memory; columns are packed to a tenth, and repeated words reach 20.
_MAX_GROWTH = 50
_FREE_BYTES = 128 * ordinary_files.MIB  # never too many
_BATCH = 64  # rows of Parquet at a time, each of perhaps a megabyte


@runtime_checkable
class TableFile(Protocol):
  """An open table.

  Attributes:
    names: Names of its columns, in order.
  """

  names: list[str]

  def rows(self, columns: Sequence[int]) -> Iterator[Row]:
    """Yields the cells of some columns, row by row.

    Args:
      columns: Numbers of the columns.

    Raises:
      BadFile: If the file is damaged from some row on.
    """

  def close(self) -> None:
    """Closes the file, after which no row can be read."""


def open_table(
  path: pathlib.Path, *, is_header: Callable[[list[str]], bool]
) -> TableFile:
  """Opens a table by the end of its name.

  Args:
    path: File ending in .csv or .parquet.
    is_header: Says whether names of columns are those of a table; a CSV file
      whose header has none under one separator is tried with the others.

  Raises:
    BadFile: If it cannot be read.
  """
  if path.suffix.lower() == ".parquet":
    return _Parquet(path)
  return _Csv(path, is_header)


class _Csv:
  """A CSV file; lines that are not in UTF-8 are bad rows."""

  def __init__(
    self, path: pathlib.Path, is_header: Callable[[list[str]], bool]
  ) -> None:
    self._file = ordinary_files.open_file(path)
    # Spreadsheets write a byte order mark, which plain UTF-8 would keep.
    self._text = io.TextIOWrapper(
      self._file, "utf-8-sig", errors="surrogateescape", newline=""
    )
    self._ended = False
    # Captions may be longer than the 128 kB that the module allows by default.
    csv.field_size_limit(_MAX_LINE)
    try:
      if ordinary_files.is_utf_16(self._file.peek(2)[:2]):
        raise ordinary_files.BadFile("is in UTF-16 and not in UTF-8")
      self._open(is_header)
    except BaseException:
      self.close()
      raise

  def _open(self, is_header: Callable[[list[str]], bool]) -> None:
    """Reads the header, and finds out what separates its names."""
    lines = self._lines()
    first = next(lines, "")
    if not first:
      raise ordinary_files.BadFile("is empty")
    separated = {d: self._parse([first], d) for d in _DELIMITERS}
    found = [d for d, rows in separated.items() if is_header(next(rows, []))]
    delimiter = found[0] if found else ","
    # The header may go on in the second line, inside quotes.
    self._rows = self._parse(itertools.chain([first], lines), delimiter)
    self.names: list[str] = next(self._rows, [])
    if len(self.names) > _MAX_COLUMNS:
      raise ordinary_files.BadFile(f"has more than {_MAX_COLUMNS} columns")

  def rows(self, columns: Sequence[int]) -> Iterator[Row]:
    width = len(self.names)
    for row in self._rows:
      if not row:  # an empty line
        continue
      if any(row[width:]):
        yield "has more cells than the header"
      else:
        # Cells that are missing at the end of a row are unknown.
        yield tuple(row[c] if c < len(row) else None for c in columns)

  def close(self) -> None:
    self._text.close()

  def _lines(self) -> Iterator[str]:
    while line := self._text.readline(_MAX_LINE):
      if len(line) == _MAX_LINE:
        raise ordinary_files.BadFile(f"has a line of {_MAX_LINE} letters")
      yield line
    self._ended = True

  def _parse(self, lines: Iterator[str] | list[str], by: str) -> Iterator:
    reader = csv.reader(lines, delimiter=by)
    while True:
      start = reader.line_num + 1
      try:
        row = next(reader)
      except StopIteration:
        return
      except csv.Error as error:
        raise ordinary_files.BadFile(
          f"cannot be read from line {start} on ({error})"
        ) from error
      # Inside quotes the reader asks for more lines than there are, and then
      # takes the rest of the file for one cell.
      if self._ended:
        raise ordinary_files.BadFile(
          f"has a quote in line {start} that is never closed"
        )
      yield row


class _Parquet:
  """Reads a Parquet file row group by row group."""

  def __init__(self, path: pathlib.Path) -> None:
    # Only what is an ordinary file is given to the library.
    self._file = ordinary_files.open_file(path)
    try:
      with _one_sentence():
        self._table = parquet.ParquetFile(self._file)
        self.names = list(self._table.schema_arrow.names)
        self._size = os.fstat(self._file.fileno()).st_size
        self._check()
    except BaseException:
      self._file.close()
      raise

  def _check(self) -> None:
    """Refuses sizes that no table has, before anything is unpacked."""
    about = self._table.metadata
    if about.num_rows > MAX_ROWS:
      raise ordinary_files.BadFile(f"has more than {MAX_ROWS} rows")
    if about.num_columns > _MAX_COLUMNS:
      raise ordinary_files.BadFile(f"has more than {_MAX_COLUMNS} columns")
    for index in range(about.num_row_groups):
      # What a file says of single columns may end the process: the library
      # does not catch its own errors there.
      self._check_growth(about.row_group(index).total_byte_size)

  def _check_growth(self, unpacked: int) -> None:
    """Refuses a file that gets much larger than it is."""
    if unpacked > max(_FREE_BYTES, _MAX_GROWTH * self._size):
      raise ordinary_files.BadFile(
        f"unpacks from {self._size} to {unpacked} bytes and more"
      )

  def rows(self, columns: Sequence[int]) -> Iterator[Row]:
    names = [self.names[c] for c in columns]
    unpacked = 0
    with _one_sentence():
      for batch in self._table.iter_batches(_BATCH, columns=names):
        # Columns come in the order of the file.
        cells = [_cells(batch.column(name)) for name in names]
        # A text that all rows share is stored once, and a file does not say how
        # much they are together.
        unpacked += sum(
          len(cell)
          for column in cells
          for cell in column
          if isinstance(cell, (str, bytes))
        )
        self._check_growth(unpacked)
        yield from zip(*cells, strict=True)

  def close(self) -> None:
    self._table.close(force=True)
    self._file.close()


class _one_sentence:
  """Turns what the library raises into a `BadFile`."""

  def __enter__(self) -> None:
    pass

  def __exit__(
    self, kind: object, error: BaseException | None, trace: object
  ) -> None:
    if isinstance(error, (ordinary_files.BadFile, GeneratorExit)):
      return
    # The library checks little of what a file says of itself, and any of these
    # may follow.
    if isinstance(
      error,
      (
        pyarrow.ArrowException,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
      ),
    ):
      raise ordinary_files.BadFile("is damaged or no Parquet file") from error


def _cells(column: pyarrow.Array) -> list[Cell]:
  """Returns a column as plain values; texts that are not in UTF-8 as bytes."""
  kind = column.type
  if pyarrow.types.is_dictionary(kind):
    column = column.dictionary_decode()
    kind = column.type
  if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
    wide = pyarrow.types.is_large_string(kind)
    raw = column.cast(pyarrow.large_binary() if wide else pyarrow.binary())
    return [_decoded(cell) for cell in raw.to_pylist()]
  return column.to_pylist()


def _decoded(cell: bytes | None) -> str | None:
  # As in a CSV file, what is not in UTF-8 becomes half of a surrogate pair,
  # which no text has.
  return None if cell is None else cell.decode("utf-8", "surrogateescape")
