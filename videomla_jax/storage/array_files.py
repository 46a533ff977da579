"""Arrays in NumPy's files, .npy and .npz: bounded, and never unpickled.

NumPy's own reader asks for as much memory as a header says, and unpacks members
of an archive whatever their size.
"""

from collections.abc import Iterator
import io
import math
import os
import pathlib
import zipfile

import numpy as np

from videomla_jax.storage import foreign_files
from videomla_jax.storage import ordinary_files

# Weights hardly get smaller when they are compressed, but masks do.
_MOST_GROWTH = 16
_FREE_BYTES = 64 * ordinary_files.MIB
_MOST_MEMBERS = 2**16


def read(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the arrays of a file by name; that of .npy has an empty one.

  Args:
    path: The file.

  Raises:
    BadFile: If it is damaged, or holds more than fits into a file of its size.
  """
  with ordinary_files.open_file(path) as file:
    size = os.fstat(file.fileno()).st_size
    try:
      if not file.peek(2).startswith(b"PK"):
        yield "", _parse(file.read())
        return
      with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_sizes(members, size)
        for member in members:
          content = archive.read(member)
          yield member.filename.removesuffix(".npy"), _parse(content)
    except ordinary_files.BadFile:
      raise
    except foreign_files.ERRORS as error:
      raise ordinary_files.BadFile("is no file of arrays") from error


def _check_sizes(members: list[zipfile.ZipInfo], size: int) -> None:
  """Refuses an archive that gets much larger when it is unpacked."""
  if len(members) > _MOST_MEMBERS:
    raise ordinary_files.BadFile(f"has more than {_MOST_MEMBERS} arrays")
  unpacked = sum(member.file_size for member in members)
  if unpacked > _MOST_GROWTH * size + _FREE_BYTES:
    raise ordinary_files.BadFile(f"unpacks from {size} to {unpacked} bytes")


def _parse(content: bytes) -> np.ndarray:
  """Returns the array of an .npy file, whose sizes are compared first."""
  file = io.BytesIO(content)
  version = np.lib.format.read_magic(file)
  headers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if version not in headers:
    raise ordinary_files.BadFile(f"has arrays of version {version}")
  shape, is_fortran, dtype = headers[version](file)
  data = memoryview(content)[file.tell() :]
  if dtype.hasobject:
    raise ordinary_files.BadFile("has objects of Python, which are not read")
  if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(
    data
  ):
    raise ordinary_files.BadFile("has an array that is shorter or longer")
  flat = np.frombuffer(data, dtype, math.prod(shape))
  return flat.reshape(shape, order="F" if is_fortran else "C")
