"""Keeps prompt embeddings on disk, so that the text encoder runs only once.

They are one safetensors file. A tensor holds the real tokens of one prompt;
padding is put back when it is read. Keys are digests of the cleaned prompt and
of the encoder, so neither can be mistaken for another. The file's metadata name
the encoder and, for every key, the prompt, the digest of the tensor, and the
tokens of a prompt that was cut.

Any number of processes may add prompts to one file: each takes a lock, reads
what the others wrote, and replaces the file.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import hashlib
import json
import os
import pathlib

from jaxtyping import Float32
import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from videomla_jax.data import disk
from videomla_jax.data import locks
from videomla_jax.models import tokenizer
from videomla_jax.storage import atomic
from videomla_jax.storage import model_folder
from videomla_jax.storage import ordinary_files

_AGAIN = "write it again with python -m videomla_jax.embed"
_MAX_LIST = 64 * ordinary_files.MIB  # of digests of a model
_MAX_WIDTH = 2**16  # channels; rows are padded to 512 tokens of so many
_DIGEST, _PROMPT, _TOKENS = "sha256/", "prompt/", "tokens/"  # then the key

Embedding = Float32[np.ndarray, "m E"]


def key_of(prompt: str, *, encoder: str) -> str:
  """Returns the key of a prompt: a digest of it and of its encoder.

  Args:
    prompt: Text in any spelling that cleans to the same text.
    encoder: Identity of the encoder, see `encoder_identity`.
  """
  # JSON keeps the two apart: plain concatenation could give one text for two
  # different pairs.
  text = json.dumps([encoder, tokenizer.clean(prompt)])
  return hashlib.sha256(text.encode()).hexdigest()


def encoder_identity(folder: str | os.PathLike[str]) -> str:
  """Returns a digest of an encoder: that of its folder's list of digests.

  Args:
    folder: Model folder of the encoder.
  """
  # The list has a digest of every file, so this is one of all weights.
  listed = pathlib.Path(folder) / model_folder.DIGESTS
  try:
    content = ordinary_files.read_bytes(listed, limit=_MAX_LIST)
  except ordinary_files.BadFile as error:
    raise ValueError(
      f"{str(listed)!r} {error}; give the folder that convert wrote."
    ) from error
  return hashlib.sha256(content).hexdigest()


class _File:
  """An open file of embeddings; a tensor is read and checked when asked for.

  Attributes:
    keys: Keys of the tensors.
    about: Metadata of the file.
  """

  def __init__(self, path: pathlib.Path, file: "safetensors.safe_open") -> None:
    """Checks what the file says about itself.

    Args:
      path: The file, for messages.
      file: The open file.

    Raises:
      ValueError: If tensors and their digests do not belong together.
    """
    self.keys = set(file.keys())
    self.about = dict(file.metadata() or {})
    self._path, self._file = path, file
    listed = {
      name.removeprefix(_DIGEST)
      for name in self.about
      if name.startswith(_DIGEST)
    }
    # Files of older versions have no digests at all.
    if listed and listed != self.keys:
      raise _bad(path, "its digests are those of other prompts")
    for key in self.keys:
      sizes = file.get_slice(key).get_shape()
      if len(sizes) != 2 or not 0 < sizes[0] <= tokenizer.MAX_TOKENS:
        raise _bad(path, f"a tensor of shape {sizes[:8]} is no prompt's")
    widths = {file.get_slice(key).get_shape()[1] for key in self.keys}
    if len(widths) > 1 or max(widths, default=0) > _MAX_WIDTH:
      raise _bad(path, "prompts have different numbers of channels")

  @property
  def width(self) -> int:
    """Channels of the embeddings, 0 if there are none."""
    for key in self.keys:
      return int(self._file.get_slice(key).get_shape()[1])
    return 0

  def tensor(self, key: str) -> np.ndarray:
    """Returns the embedding of a key.

    Args:
      key: One of the keys.

    Raises:
      ValueError: If it is not as it was written, or no row of numbers.
    """
    x = self._file.get_tensor(key)
    expected = self.about.get(_DIGEST + key)
    if expected is not None and expected != _digest(x):
      raise _bad(self._path, f"the embedding {key[:16]!r} was changed")
    finite = x.dtype in _DTYPES and np.isfinite(x.astype(np.float32)).all()
    if not finite:
      raise _bad(
        self._path, f"the embedding {key[:16]!r} has no finite numbers"
      )
    return x


# Wan's encoder computes in the first; others may have been written elsewhere.
_DTYPES = tuple(map(np.dtype, (ml_dtypes.bfloat16, np.float16, np.float32)))


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[_File]:
  """Opens a file for the `with` block, and words what goes wrong there."""
  if not os.path.lexists(path):
    raise ValueError(
      f"embeddings={str(path)!r} does not exist; write it with python -m "
      "videomla_jax.embed."
    )
  try:
    # The library opens by path and would wait at a pipe.
    ordinary_files.open_file(path).close()
    with safetensors.safe_open(path, framework="numpy") as file:
      yield _File(path, file)
  except ordinary_files.BadFile as error:
    raise _bad(path, f"it {error}") from error
  # The library knows every damage, but for types that NumPy lacks.
  except (
    safetensors.SafetensorError,
    OSError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    MemoryError,
  ) as error:
    raise _bad(path, " ".join(ascii(str(error))[1:200].split())) from error


def _bad(path: pathlib.Path, reason: str) -> ValueError:
  return ValueError(
    f"embeddings={str(path)!r} cannot be read ({reason}); {_AGAIN}."
  )


def _digest(x: np.ndarray) -> str:
  """Returns a digest of the type, the shape and the numbers of an array."""
  digest = hashlib.sha256(f"{x.dtype} {x.shape} ".encode())
  # NumPy has no buffers of bfloat16.
  digest.update(np.ascontiguousarray(x).view(np.uint8))
  return digest.hexdigest()


def encoder_of(path: str | os.PathLike[str]) -> str:
  """Returns the identity of the encoder that wrote a file, empty if unknown.

  Args:
    path: File of `add`.
  """
  with _opened(pathlib.Path(path)) as file:
    return file.about.get("encoder", "")


def width(path: str | os.PathLike[str]) -> int:
  """Returns the channels of the embeddings in a file, 0 if it has none.

  Args:
    path: File of `add`.
  """
  with _opened(pathlib.Path(path)) as file:
    return file.width


def known(path: str | os.PathLike[str], *, encoder: str) -> set[str]:
  """Returns the keys that a file holds already; a missing file holds none.

  Args:
    path: File of `add`.
    encoder: Identity of the encoder that must have written it.

  Raises:
    ValueError: If it is damaged or another encoder wrote it.
  """
  path = pathlib.Path(path)
  if not os.path.lexists(path):
    return set()
  with _opened(path) as file:
    _require_encoder(file, path, encoder)
    return file.keys


def num_cut(path: str | os.PathLike[str], prompts: Iterable[str]) -> int:
  """Returns how many of some prompts had more tokens than are stored.

  Args:
    path: File of `add`.
    prompts: Texts in any spelling that cleans to the same text.
  """
  with _opened(pathlib.Path(path)) as file:
    encoder = file.about.get("encoder", "")
    keys = [key_of(prompt, encoder=encoder) for prompt in prompts]
    return sum(_TOKENS + key in file.about for key in keys)


def check(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
  """Reads a whole file and lists what is wrong with it.

  Args:
    path: File of `add`.

  Returns:
    Path and reason, at most once; nothing if all is well.
  """
  try:
    with _opened(pathlib.Path(path)) as file:
      for key in sorted(file.keys):
        file.tensor(key)
  except ValueError as error:
    return [(os.fspath(path), str(error))]
  return []


def _require_encoder(file: _File, path: pathlib.Path, encoder: str) -> None:
  if file.about.get("encoder") != encoder:
    raise ValueError(
      f"embeddings={str(path)!r} is of another text encoder; write to another "
      "file."
    )


def add(
  path: str | os.PathLike[str],
  embeddings: Mapping[str, Embedding],
  *,
  encoder: str,
  cut: Mapping[str, int] | None = None,
) -> None:
  """Adds prompts to a file, complete or not at all.

  Another process may do the same at the same time: nothing of either is lost.

  Args:
    path: File to write or extend.
    embeddings: Embeddings of the real tokens by prompt.
    encoder: Identity of the encoder.
    cut: Tokens of those prompts that had too many, which lost their ends.

  Raises:
    ValueError: If the file is damaged, another encoder wrote it, or the disk
      takes no more.
  """
  path = pathlib.Path(path)
  way_out = "change that and start the same command again; what is there stays"
  with disk.explained(path, way_out):
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.alone(path, wait=True):
      _merge(path, embeddings, encoder, cut or {})


def _merge(
  path: pathlib.Path,
  embeddings: Mapping[str, Embedding],
  encoder: str,
  cut: Mapping[str, int],
) -> None:
  """Writes a file anew with more prompts; nobody else may write it."""
  tensors: dict[str, np.ndarray] = {}
  about = {"encoder": encoder}
  if os.path.lexists(path):
    with _opened(path) as file:
      _require_encoder(file, path, encoder)
      tensors = {key: file.tensor(key) for key in file.keys}
      about = file.about
  for prompt, embedding in embeddings.items():
    key = key_of(prompt, encoder=encoder)
    # Wan's encoder computes in this type, and the DiT rounds to it anyway.
    tensors[key] = np.asarray(embedding, ml_dtypes.bfloat16)
    # This is for people who look into the file; no code reads it.
    about[_PROMPT + key] = tokenizer.clean(prompt)
    if prompt in cut:
      about[_TOKENS + key] = str(cut[prompt])
  for key, x in tensors.items():
    if _DIGEST + key not in about:
      about[_DIGEST + key] = _digest(x)
  with atomic.replacing(path) as temporary:
    try:
      safetensors_numpy.save_file(tensors, temporary, metadata=about)
    except safetensors.SafetensorError as error:
      raise disk.error_of(str(error)) from error


def read(
  path: str | os.PathLike[str],
  prompts: list[str],
  *,
  max_tokens: int = tokenizer.MAX_TOKENS,
) -> Float32[np.ndarray, "B M E"]:
  """Returns the embeddings of prompts, padded with zeros.

  Args:
    path: File of `add`.
    prompts: Texts in any spelling that cleans to the same text.
    max_tokens: Tokens M after padding.

  Raises:
    ValueError: If the file is damaged or prompts are absent; the first of them
      are listed.
  """
  path = pathlib.Path(path)
  with _opened(path) as file:
    encoder = file.about.get("encoder", "")
    keys = [key_of(prompt, encoder=encoder) for prompt in prompts]
    absent = [
      prompt
      for prompt, key in zip(prompts, keys, strict=True)
      if key not in file.keys
    ]
    if absent:
      raise ValueError(
        f"embeddings={str(path)!r} lacks the prompts {_shown(absent)}; add them"
        f" with python -m videomla_jax.embed --config.output={path}."
      )
    rows = np.zeros((len(prompts), max_tokens, file.width), np.float32)
    for row, key in zip(rows, keys, strict=True):
      x = file.tensor(key)[:max_tokens]
      row[: len(x)] = x
  return rows


def _shown(prompts: list[str]) -> str:
  """Returns the first few prompts for a message, and how many more."""
  first = [x if len(x) <= 60 else f"{x[:57]}..." for x in prompts[:5]]
  more = len(prompts) - len(first)
  return f"{first} and {more} more" if more else str(first)
