"""Opens the records of a data set, and names the file that is bad.

TFDS reads shards and what is written about them. It imports the Python class
that `features.json` names, so that file is looked through first, and it raises
many kinds of errors for damaged files, none of which names one.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import operator
import pathlib
from typing import Any, SupportsIndex

import tensorflow_datasets as tfds

from videomla_jax.data import dataset
from videomla_jax.data import ordinary_files

_CLASSES = "tensorflow_datasets.core.features."
_AGAIN = "copy the data set again, or make it again with videomla_jax.prepare"


def open_builder(folder: pathlib.Path) -> tfds.core.DatasetBuilder:
  """Opens what is written about the records of a data set.

  Args:
    folder: The data set's own folder.

  Raises:
    ValueError: If it is damaged.
  """
  for name in dataset.TFDS_FILES:
    try:
      about = ordinary_files.parse_json(dataset.read_file(folder, name))
      _check_classes(about)
    except (ordinary_files.BadFile, RecursionError) as error:
      raise ValueError(
        f"{str(folder / name)!r} cannot be read: it {error}; {_AGAIN}."
      ) from error
  with _named(folder, " or ".join(dataset.TFDS_FILES)):
    return tfds.builder_from_directory(folder)


# It is no `Sequence`, since checkers of types would read records of those.
@dataclasses.dataclass(frozen=True)
class Records:
  """Records of a split; a damaged one raises a sentence with its number.

  Attributes:
    source: Data source of TFDS.
    folder: The data set's own folder.
    split: The split.
  """

  source: Any
  folder: pathlib.Path
  split: str

  def __len__(self) -> int:
    """Returns the number of records."""
    return len(self.source)

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    """Returns one record.

    Args:
      index: Its number.

    Raises:
      IndexError: If there is none of that number.
      ValueError: If it is damaged.
    """
    number = operator.index(index)
    # Python's own loops over a sequence end by this error.
    if not -len(self) <= number < len(self):
      raise IndexError(number)
    with _named(self.folder, f"record {number} of split {self.split!r}"):
      return self.source[number]


def open_split(
  folder: pathlib.Path, split: str, *, skipped: set[str]
) -> Records:
  """Opens a split and leaves some fields as they lie.

  Args:
    folder: The data set's own folder.
    split: A split that it has.
    skipped: Fields that nobody wants; latents are megabytes.

  Raises:
    ValueError: If the data set is damaged, here or when a record is read.
  """
  builder = open_builder(folder)
  with _named(folder, split):
    decoders = {
      name: tfds.decode.SkipDecoding()
      for name in skipped & set(builder.info.features)
    }
    source = builder.as_data_source(split, decoders=decoders)
    return Records(source, folder, split)


@contextlib.contextmanager
def _named(folder: pathlib.Path, what: str) -> Iterator[None]:
  """Says which part of a data set is damaged, whatever was raised."""
  try:
    yield
  # Records are bytes of strangers for three libraries, which promise nothing
  # about what they raise.
  except Exception as error:
    text = ascii(" ".join(str(error).split())[:160])
    raise ValueError(
      f"data set {str(folder)!r} is damaged ({what}: {type(error).__name__}"
      f" {text}); {_AGAIN}."
    ) from error


def _check_classes(about: Any) -> None:
  """Refuses names of classes that no data set of ours has."""
  if isinstance(about, list):
    for value in about:
      _check_classes(value)
  if not isinstance(about, dict):
    return
  for name, value in about.items():
    if name == "pythonClassName" and not str(value).startswith(_CLASSES):
      raise ordinary_files.BadFile("names a class that is no feature of TFDS")
    _check_classes(value)
