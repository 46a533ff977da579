"""Keeps prompt embeddings on disk, so that the text encoder runs only once.

They are one safetensors file. A tensor holds the real tokens of one prompt;
padding is put back when it is read. Keys are digests of the cleaned prompt and
of the encoder, so neither can be mistaken for another.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib

from jaxtyping import Float32
import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from videomla_jax.models import tokenizer
from videomla_jax.storage import atomic

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
  listed = pathlib.Path(folder) / "sha256.json"
  return hashlib.sha256(listed.read_bytes()).hexdigest()


def _read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the tensors of a file, and what it says about them."""
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
      return tensors, file.metadata() or {}
  except FileNotFoundError as error:
    raise ValueError(
      f"embeddings={str(path)!r} does not exist; write it with python -m "
      "videomla_jax.embed."
    ) from error
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(
      f"embeddings={str(path)!r} cannot be read ({error}); write it again with "
      "python -m videomla_jax.embed."
    ) from error


def encoder_of(path: str | os.PathLike[str]) -> str:
  """Returns the identity of the encoder that wrote a file, empty if unknown.

  Args:
    path: File of `add`.
  """
  return _read(pathlib.Path(path))[1].get("encoder", "")


def width(path: str | os.PathLike[str]) -> int:
  """Returns the channels of the embeddings in a file, 0 if it has none.

  Args:
    path: File of `add`.
  """
  return next((x.shape[1] for x in _read(pathlib.Path(path))[0].values()), 0)


def known(path: str | os.PathLike[str], *, encoder: str) -> set[str]:
  """Returns the keys that a file holds already; a missing file holds none.

  Args:
    path: File of `add`.
    encoder: Identity of the encoder that must have written it.

  Raises:
    ValueError: If it is damaged or another encoder wrote it.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return set()
  tensors, about = _read(path)
  if about.get("encoder") != encoder:
    raise ValueError(
      f"embeddings={str(path)!r} is of another text encoder; write to another "
      "file."
    )
  return set(tensors)


def add(
  path: str | os.PathLike[str],
  embeddings: Mapping[str, Embedding],
  *,
  encoder: str,
) -> None:
  """Adds prompts to a file, complete or not at all.

  Args:
    path: File to write or extend.
    embeddings: Embeddings of the real tokens by prompt.
    encoder: Identity of the encoder.

  Raises:
    ValueError: If the file is damaged or another encoder wrote it.
  """
  path = pathlib.Path(path)
  tensors: dict[str, np.ndarray] = {}
  about = {"encoder": encoder}
  if known(path, encoder=encoder):
    tensors, about = _read(path)
  for prompt, embedding in embeddings.items():
    key = key_of(prompt, encoder=encoder)
    # Wan's encoder computes in this type, and the DiT rounds to it anyway.
    tensors[key] = np.asarray(embedding, ml_dtypes.bfloat16)
    # This is for people who look into the file; no code reads it.
    about[f"prompt/{key}"] = tokenizer.clean(prompt)
  path.parent.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(path) as temporary:
    safetensors_numpy.save_file(tensors, temporary, metadata=about)


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
    ValueError: If the file is damaged or prompts are absent; all are listed.
  """
  tensors, about = _read(pathlib.Path(path))
  keys = [key_of(p, encoder=about.get("encoder", "")) for p in prompts]
  absent = [p for p, k in zip(prompts, keys, strict=True) if k not in tensors]
  if absent:
    raise ValueError(
      f"embeddings={str(path)!r} lacks the prompts {absent}; add them with "
      f"python -m videomla_jax.embed --config.output={path}."
    )
  width = tensors[keys[0]].shape[1] if keys else 0
  rows = np.zeros((len(prompts), max_tokens, width), np.float32)
  for row, key in zip(rows, keys, strict=True):
    row[: len(tensors[key])] = tensors[key]
  return rows
