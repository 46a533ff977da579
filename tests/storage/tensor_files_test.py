"""Tests of safetensors, alone and in shards."""

import json
import os

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_release
from videomla_jax.storage import lazy_tensor
from videomla_jax.storage import safetensors_writer
from videomla_jax.storage import tensor_files


def _given(seed: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {
    f"layer.{i}": rng.standard_normal((i + 1, 3)).astype(np.float32)
    for i in range(5)
  }


def _refused(path, words: str) -> None:
  with (
    pytest.raises(ValueError, match=words),
    tensor_files.open_tensors(path),
  ):
    pass


@pytest.mark.parametrize("by", ["folder", "index"])
def test_shards_are_one_checkpoint(tmp_path, by: str, seed: int) -> None:
  given = _given(seed)
  tiny_release.write_shards(tmp_path, given, 2)
  path = tmp_path
  if by == "index":
    path = tmp_path / "model.safetensors.index.json"
  with tensor_files.open_tensors(path) as tensors:
    for name, x in given.items():
      np.testing.assert_array_equal(tensors[name].read(), x)
    assert tensors.keys() == given.keys()


def test_a_missing_shard_is_named(tmp_path, seed: int) -> None:
  tiny_release.write_shards(tmp_path, _given(seed), 3)
  name = "model-00002-of-00003.safetensors"
  (tmp_path / name).unlink()
  _refused(tmp_path, f"lacks the shards \\['{name}'\\]; download them")


def test_a_shard_without_its_tensor_is_noticed(tmp_path, seed: int) -> None:
  tiny_release.write_shards(tmp_path, _given(seed), 2)
  other = {"other": np.zeros(3, np.float32)}
  safetensors_numpy.save_file(
    other, tmp_path / "model-00001-of-00002.safetensors"
  )
  _refused(tmp_path, r"shards without \['layer.0'")


@pytest.mark.parametrize("file", ["../x.safetensors", "/x.safetensors"])
def test_shards_must_lie_beside_their_index(tmp_path, file, seed) -> None:
  tiny_release.write_shards(tmp_path, _given(seed), 2)
  index = tmp_path / "model.safetensors.index.json"
  about = json.loads(index.read_text())
  about["weight_map"]["layer.0"] = file
  index.write_text(json.dumps(about))
  _refused(tmp_path, "outside its folder")


def test_several_checkpoints_without_index_are_ambiguous(tmp_path, seed):
  for name in "ab":
    safetensors_numpy.save_file(_given(seed), tmp_path / f"{name}.safetensors")
  _refused(tmp_path, "several checkpoints")


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("missing", "does not exist"),
    ("x.txt", "unknown kind"),
    ("x.gguf", "is quantised"),
    (".", "holds no checkpoint"),
  ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, name, words) -> None:
  if name.startswith("x."):
    (tmp_path / name).write_text("text")
  _refused(tmp_path / name, words)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "U8"])
def test_coded_weights_are_refused(tmp_path, dtype: str) -> None:
  header = {"w": dict(dtype=dtype, shape=[4], data_offsets=[0, 4])}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  path = tmp_path / "x.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
  _refused(path, f"{dtype}.*give float32, bfloat16 or float16")


def test_scales_of_quantised_weights_are_refused(tmp_path, seed: int) -> None:
  given = _given(seed) | {"layer.0.scale_weight": np.ones(1, np.float32)}
  safetensors_numpy.save_file(given, tmp_path / "x.safetensors")
  _refused(tmp_path / "x.safetensors", "quantised weights")


def test_a_failed_export_leaves_no_file(tmp_path, seed: int) -> None:
  given = _given(seed)

  def failing():
    raise OSError(28, "No space left on device")

  lazies = {
    n: lazy_tensor.LazyTensor(x.shape, x.dtype, lambda x=x: x)
    for n, x in given.items()
  }
  lazies["layer.4"] = lazies["layer.4"]._replace(read=failing)
  with pytest.raises(OSError, match="No space"):
    list(safetensors_writer.write_safetensors(tmp_path / "out", lazies))
  assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("shard_bytes", [10**9, 100], ids=["file", "shards"])
def test_free_text_comes_back(shard_bytes: int, tmp_path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  lazies = {}
  for name in "abc":
    x = rng.standard_normal((4, 5)).astype(np.float32)
    lazies[name] = lazy_tensor.LazyTensor(x.shape, x.dtype, lambda x=x: x)
  about = {"rope_ladder": "fresh"}
  list(
    safetensors_writer.write_safetensors(
      tmp_path, lazies, shard_bytes=shard_bytes, metadata=about
    )
  )
  files = [*tmp_path.glob("*.safetensors")]
  assert len(files) == (3 if shard_bytes == 100 else 1)
  found = tensor_files.read_metadata(tmp_path)
  assert found.items() >= about.items()


@pytest.mark.parametrize(
  ("weights", "words"),
  [
    ({str(i): str(i) for i in range(2000)}, "2000 tensors in 2000 shards"),
    ({"w": 7}, "a tensor has no file"),
    ({"w": "a\0b"}, "outside its folder"),
    ({"w": "x" * 300}, "lacks the shards"),
    ({}, "has no weight_map"),
    ([], "has no weight_map"),
    (None, "has no weight_map"),
  ],
)
def test_indexes_of_another_kind_are_refused(tmp_path, weights, words) -> None:
  path = tmp_path / "model.safetensors.index.json"
  path.write_text(json.dumps(dict(weight_map=weights)))
  _refused(path, rf"index\.json.*{words}")


def _write_header(path, header, *, size: int = 0, length: int | None = None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(text) if length is None else length
  path.write_bytes(length.to_bytes(8, "little") + text + bytes(size))


@pytest.mark.parametrize(
  ("header", "options", "words"),
  [
    ({}, dict(length=2**62), "header has 4611686018427387904 bytes"),
    ({}, dict(length=0), "header has 0 bytes"),
    (b'{"a":' + b"[" * 100_000, {}, "nested too deeply"),
    (b"[]", {}, "is a list and no object"),
    ({"w": 1}, {}, "damaged"),
    ({"w": dict(dtype="F32", shape=[2**62, 4])}, {}, "damaged"),
    ({f"{i}": 0 for i in range(140_000)}, {}, "more than 131072 tensors"),
    (
      {"a" * 300: dict(dtype="F32", shape=[1], data_offsets=[0, 4])},
      dict(size=4),
      "a name of more than 256 letters",
    ),
    (
      {"w": dict(dtype="F32", shape=[0], data_offsets=[0, 0])},
      {},
      "tensors without numbers",
    ),
  ],
)
def test_headers_made_to_harm_are_refused(tmp_path, header, options, words):
  path = tmp_path / "x.safetensors"
  _write_header(path, header, **options)
  _refused(path, rf"x\.safetensors.*{words}")


def test_overlapping_tensors_are_refused(tmp_path) -> None:
  about = dict(dtype="F32", shape=[2], data_offsets=[0, 8])
  _write_header(tmp_path / "x.safetensors", {"a": about, "b": about}, size=8)
  _refused(tmp_path / "x.safetensors", "damaged")
