"""Opens the records of a data set, and names the file that is bad.

TFDS reads shards and what is written about them. It imports the Python class
that `features.json` names, and it opens whatever file `dataset_info.json` leads
to. So both are looked through first (`check_description`). It also raises many
kinds of errors for damaged files, none of which names one.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import operator
import os
import pathlib
from typing import Any, SupportsIndex

import tensorflow_datasets as tfds

from videomla_jax.data import dataset
from videomla_jax.data import record_files
from videomla_jax.storage import ordinary_files

_CLASSES = {
  f"tensorflow_datasets.core.features.{name}"
  for name in (
    "features_dict.FeaturesDict",
    "scalar.Scalar",
    "tensor_feature.Tensor",
    "text_feature.Text",
  )
}
_ENCODINGS = ("none", "bytes")  # others are packed, without a bound
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_MOST_FEATURES, _MOST_SHARDS = 100, 100_000
_SCANNED = 64 * ordinary_files.MIB  # bytes of shards that are looked through
_AGAIN = "copy the data set again, or make it again with videomla_jax.prepare"


def open_builder(folder: pathlib.Path) -> tfds.core.DatasetBuilder:
  """Opens what is written about the records of a data set.

  Args:
    folder: The data set's own folder.

  Raises:
    ValueError: If it is damaged.
  """
  found = {}
  for name in dataset.TFDS_FILES:
    with _explained(folder / name):
      found[name] = ordinary_files.parse_json(dataset.read_file(folder, name))
  check_description(folder, *found.values(), name=dataset.NAME)
  with _named(folder, " or ".join(dataset.TFDS_FILES)):
    return tfds.builder_from_directory(folder)


def check_description(
  folder: pathlib.Path,
  info: dict[str, Any],
  features: dict[str, Any],
  *,
  name: str,
) -> None:
  """Refuses what would lead TFDS out of a folder, or to endless work.

  Args:
    folder: The data set's own folder.
    info: What `dataset_info.json` holds.
    features: What `features.json` holds.
    name: Name of the data set.

  Raises:
    ValueError: If they are not as `prepare` and TFDS write them, or a shard is
      no ordinary file, or unpacks to far more than it is.
  """
  with _explained(folder / "features.json"):
    _check_features(features)
  with _explained(folder / "dataset_info.json"):
    shards = _shards(info, name)
  for shard in shards:
    with _explained(folder / shard):
      with ordinary_files.open_file(folder / shard) as file:
        size = os.fstat(file.fileno()).st_size
      # Reading all of a large data set would take minutes at every start.
      if size <= _SCANNED:
        record_files.check_growth(folder / shard)


def _shards(info: dict[str, Any], name: str) -> list[str]:
  """Returns the names of all shards that TFDS will look for."""
  splits = info.get("splits", [])
  if info.get("name") != name or info.get("fileFormat") != "array_record":
    raise ordinary_files.BadFile(f"is not about {name!r} in array_record")
  if not isinstance(splits, list) or len(splits) > len(dataset.SPLITS):
    raise ordinary_files.BadFile("lists splits in another form")
  shards = []
  # TFDS also takes names of fields with underscores, which it never writes.
  keys = [*info]
  for about in splits:
    split, lengths = about["name"], about.get("shardLengths", [])
    keys += about
    if split not in dataset.SPLITS or (
      about.get("filepathTemplate", _TEMPLATE) not in ("", _TEMPLATE)
    ):
      raise ordinary_files.BadFile("names shards in another form")
    if not isinstance(lengths, list) or len(lengths) > _MOST_SHARDS:
      raise ordinary_files.BadFile(f"has more than {_MOST_SHARDS} shards")
    count = len(lengths)
    shards += [
      record_files.file_name(split, index, count, dataset=name)
      for index in range(count)
    ]
  if any("_" in key for key in keys):
    raise ordinary_files.BadFile("has fields that TFDS does not write")
  return shards


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


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
  """Words what is wrong with a file before TFDS sees it."""
  try:
    yield
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"{str(path)!r} cannot be read: it {error}; {_AGAIN}."
    ) from error
  except (AttributeError, KeyError, RecursionError, TypeError) as error:
    raise ValueError(
      f"{str(path)!r} cannot be read: it has another form; {_AGAIN}."
    ) from error


def _check_features(about: Any) -> None:
  """Refuses classes and encodings that no data set of ours has."""
  if isinstance(about, list):
    about = dict(enumerate(about))
  if not isinstance(about, dict):
    return
  if len(about) > _MOST_FEATURES:
    raise ordinary_files.BadFile(f"has more than {_MOST_FEATURES} features")
  for name, value in about.items():
    if name in ("pythonClassName", "python_class_name") and (
      value not in _CLASSES
    ):
      raise ordinary_files.BadFile("names a class that no record of ours has")
    if name == "encoding" and value not in _ENCODINGS:
      raise ordinary_files.BadFile("has features that are compressed")
    _check_features(value)
