"""Checks single files that commands write or read, of any kind.

Records and zip members have checksums of their own. Safetensors and .pth have
none: what is compared is that the header fits the file, that all tensors can be
read, and that their numbers are finite. Embeddings also have keys that are
digests of their prompts.
"""

from collections.abc import Callable
from collections.abc import Iterator
import hashlib
import json
import pathlib

from array_record.python import array_record_module
import numpy as np
import safetensors

from videomla_jax.data import embeddings
from videomla_jax.data import record_files
from videomla_jax.models import tokenizer
from videomla_jax.storage import array_files
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import safetensors_files
from videomla_jax.storage import tensor_files

_MOST_LINE = 64 * ordinary_files.MIB

# Takes a file; yields names of bad parts, empty for the file, and why.
Check = Callable[[pathlib.Path], Iterator[tuple[str, str]]]


def check_of(path: pathlib.Path) -> Check | None:
  """Returns the check of a file, or None for a kind that is not ours.

  Args:
    path: The file.
  """
  if path.name.endswith(safetensors_files.INDEX):
    return _tensors
  if ".array_record" in path.name:
    return _records
  if path.name == tokenizer.FILE:
    return _tokenizer
  if path.suffix == ".json" and _is_count(path):
    return _shard
  return _BY_SUFFIX.get(path.suffix)


def _tensors(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Reads all tensors of a checkpoint of any format."""
  with tensor_files.open_tensors(path) as tensors:
    for name, tensor in tensors.items():
      value = tensor.read()
      if not np.isfinite(value).all():
        yield "", f"has numbers in {name!r} that are not finite"


def _safetensors(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Reads all tensors of a file; those of embeddings have digests as keys."""
  with safetensors.safe_open(path, framework="numpy") as file:
    about = file.metadata() or {}
  encoder = about.get("encoder")
  if encoder is None:
    yield from _tensors(path)
    return
  reason = ""
  for name, tensor in safetensors_files.read_file(path).items():
    prompt = about.get(f"prompt/{name}")
    if not np.isfinite(tensor.read()).all():
      reason = f"has numbers in {name!r} that are not finite"
    elif prompt is None:
      reason = f"has no prompt for {name!r}"
    elif embeddings.key_of(prompt, encoder=encoder) != name:
      reason = f"has the embedding of another prompt than {prompt[:60]!r}"
    if reason:
      yield "", reason  # One is enough: a file may have a million.
      return
  # Each embedding has a digest, but in files of older versions.
  if not reason:
    yield from (("", reason) for _, reason in embeddings.check(path))


def _records(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Reads all records, each of which has a checksum."""
  try:
    record_files.check_growth(path)
  except ordinary_files.BadFile as error:
    yield "", str(error)
    return
  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    for _ in range(reader.num_records()):
      reader.read()
    reader.close()
  except (RuntimeError, IndexError) as error:
    yield "", f"cannot be read as records ({error})"


def _shard(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Compares a shard of an unfinished data set with its counts."""
  counts = ordinary_files.read_json(path)
  for suffix in ("array_record", "npy"):
    data = path.with_suffix(f".{suffix}")
    if data.exists():
      break
  else:
    yield "", "is there without its data"
    return
  with data.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if digest != counts["sha256"]:
    yield "", f"tells another checksum than that of {data.name!r}"


def _is_count(path: pathlib.Path) -> bool:
  """Tells whether a file of JSON says what a shard holds."""
  try:
    about = ordinary_files.read_json(path)
  except ordinary_files.BadFile:
    return False
  return {"sha256", "bytes"} <= about.keys()


def _arrays(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Reads all arrays of NumPy."""
  try:
    for _ in array_files.read(path):
      pass
  except ordinary_files.BadFile as error:
    yield "", str(error)


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Reads lines of JSON up to the first that is none."""
  with ordinary_files.open_file(path) as file:
    for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE), b"")):
      try:
        json.loads(line)
      except (ValueError, RecursionError):
        yield "", f"has no JSON in line {number + 1}"
        return


def _tokenizer(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Reads a vocabulary, which has no checksum."""
  tokenizer.Tokenizer.load(path)
  yield from ()


_BY_SUFFIX: dict[str, Check] = {
  ".safetensors": _safetensors,
  ".pth": _tensors,
  ".pt": _tensors,
  ".bin": _tensors,
  ".ckpt": _tensors,
  ".npz": _arrays,
  ".npy": _arrays,
  ".jsonl": _lines,
}
