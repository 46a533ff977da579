"""Tests of embeddings on disk: exact, complete, never mistaken."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors

from videomla_jax.data import embeddings

_PROMPTS = ["a red fox", "", "café &amp; cats"]


def _embeddings(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Values that bfloat16 holds exactly."""
  return {
    prompt: rng.standard_normal((i + 2, 5))
    .astype(ml_dtypes.bfloat16)
    .astype(np.float32)
    for i, prompt in enumerate(_PROMPTS)
  }


def test_embeddings_come_back_padded(tmp_path, seed: int) -> None:
  path, made = (
    tmp_path / "p.safetensors",
    _embeddings(np.random.default_rng(seed)),
  )
  embeddings.add(path, made, encoder="e")
  # Another spelling of the same text, another order.
  rows = embeddings.read(path, ["  café & cats", "", "a  red fox"])
  assert rows.shape == (3, 512, 5) and rows.dtype == np.float32
  for row, prompt in zip(rows, reversed(_PROMPTS), strict=True):
    count = len(made[prompt])
    np.testing.assert_array_equal(row[:count], made[prompt])
    assert not row[count:].any()


def test_adding_keeps_what_is_there(tmp_path, seed: int) -> None:
  path, made = (
    tmp_path / "p.safetensors",
    _embeddings(np.random.default_rng(seed)),
  )
  for prompt, embedding in made.items():
    embeddings.add(path, {prompt: embedding}, encoder="e")
  assert len(embeddings.known(path, encoder="e")) == 3
  np.testing.assert_array_equal(
    embeddings.read(path, _PROMPTS)[1, : len(made[""])], made[""]
  )
  assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]
  with safetensors.safe_open(path, framework="numpy") as file:
    assert "café & cats" in json.dumps(file.metadata(), ensure_ascii=False)


def test_absent_prompts_are_listed_with_the_command(tmp_path, seed) -> None:
  path = tmp_path / "p.safetensors"
  embeddings.add(path, _embeddings(np.random.default_rng(seed)), encoder="e")
  words = r"\['a cat', 'a dog'\]; add them with python -m videomla_jax.embed"
  with pytest.raises(ValueError, match=words):
    embeddings.read(path, ["a cat", "a red fox", "a dog"])


def test_another_encoder_is_another_file(tmp_path, seed: int) -> None:
  path = tmp_path / "p.safetensors"
  made = _embeddings(np.random.default_rng(seed))
  embeddings.add(path, made, encoder="e")
  before = path.read_bytes()
  with pytest.raises(ValueError, match="another text encoder"):
    embeddings.add(path, made, encoder="f")
  assert path.read_bytes() == before
  a, b = (embeddings.key_of("a", encoder=e) for e in "ef")
  assert a != b


def test_damaged_and_missing_files_are_refused(tmp_path, seed: int) -> None:
  path = tmp_path / "p.safetensors"
  with pytest.raises(ValueError, match="does not exist"):
    embeddings.read(path, ["a"])
  embeddings.add(path, _embeddings(np.random.default_rng(seed)), encoder="e")
  data = path.read_bytes()
  for content in (data[:-1], data[:20], b"", b"text"):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
      embeddings.read(path, ["a red fox"])
