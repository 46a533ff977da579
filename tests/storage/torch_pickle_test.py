"""Tests of reading `.pth`: views, types, and pickles that want to act."""

import io
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests import tiny_release
from videomla_jax.storage import tensor_files
from videomla_jax.storage import torch_pickle


def _archive(path: pathlib.Path, described: bytes, **members: bytes) -> None:
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", described)
    for name, data in members.items():
      archive.writestr(f"archive/data/{name}", data)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype, seed: int) -> None:
  rng = np.random.default_rng(seed)
  given = {
    "a": rng.standard_normal((3, 4, 5)).astype(dtype),
    "b": rng.standard_normal(7).astype(dtype),
    "c": np.asarray(rng.standard_normal(), dtype),
  }
  tiny_release.write_pth(tmp_path / "x.pth", given)
  with tensor_files.open_tensors(tmp_path / "x.pth") as tensors:
    assert tensors.keys() == given.keys()
    for name, x in given.items():
      assert (tensors[name].shape, tensors[name].dtype) == (x.shape, x.dtype)
      np.testing.assert_array_equal(tensors[name].read(), x)


class _Acts:
  """Unpickling this anywhere else would create a file."""

  def __init__(self, path: str):
    self._path = path

  def __reduce__(self):
    return open, (self._path, "w")


@pytest.mark.parametrize("where", ["top", "value", "key"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, where) -> None:
  path, trap = tmp_path / "x.pth", tmp_path / "trap"
  acts = _Acts(str(trap))
  content = {
    "top": acts,
    "value": {"weight": acts},
    "key": {"weight": [("deep", {"deeper": acts})]},
  }[where]
  _archive(path, pickle.dumps(content))
  with (
    pytest.raises(ValueError, match="asks to run .*open.*it was refused"),
    tensor_files.open_tensors(path),
  ):
    pass
  assert not trap.exists()


@pytest.mark.parametrize(
  ("module", "name"),
  [
    ("os", "system"),
    ("builtins", "eval"),
    ("torch", "load"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("collections", "UserDict"),
    ("numpy.core.multiarray", "_reconstruct"),
  ],
)
def test_every_other_name_is_refused(tmp_path, module: str, name: str) -> None:
  path = tmp_path / "x.pth"
  # GLOBAL module name, then an empty call.
  described = f"c{module}\n{name}\n)R.".encode()
  _archive(path, described)
  with (
    pytest.raises(ValueError, match=f"asks to run {module}.{name}"),
    tensor_files.open_tensors(path),
  ):
    pass


def test_views_share_a_storage(tmp_path, seed: int) -> None:
  # A transposed slice, which torch.save keeps as offset and strides.
  flat = np.random.default_rng(seed).standard_normal(24).astype(np.float32)
  tiny_release.write_pth(tmp_path / "x.pth", {"w": flat})
  archive = torch_pickle.open_archive(tmp_path / "x.pth")
  with archive:
    reader = torch_pickle._Unpickler(
      io.BytesIO(b""), archive, "archive/", tmp_path
    )
    storage = torch_pickle._Storage(np.dtype(np.float32), "archive/data/0")
    view = reader._tensor(storage, 4, (3, 5), (1, 4))
    expected = flat[4:].reshape(5, 4).T[:3]
    np.testing.assert_array_equal(view.read(), expected)
    beyond = reader._tensor(storage, 4, (3, 6), (1, 4))
    before = reader._tensor(storage, 4, (3, 5), (-1, 4))
    for tensor in (beyond, before):
      with pytest.raises(ValueError, match="does not fit its storage"):
        tensor.read()


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"", "old kind of pickle"),
    (pickle.dumps({"a": 1}), "old kind of pickle"),
  ],
)
def test_what_is_no_archive_is_refused(tmp_path, content, words) -> None:
  (tmp_path / "x.pth").write_bytes(content)
  with (
    pytest.raises(ValueError, match=words),
    tensor_files.open_tensors(tmp_path / "x.pth"),
  ):
    pass


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ([1, 2], "holds a list"),
    ({"step": 3}, "holds no tensors"),
  ],
)
def test_archives_without_weights_are_refused(tmp_path, content, words):
  _archive(tmp_path / "x.pth", pickle.dumps(content))
  with (
    pytest.raises(ValueError, match=words),
    tensor_files.open_tensors(tmp_path / "x.pth"),
  ):
    pass


def test_a_cut_archive_is_refused(tmp_path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  path = tmp_path / "x.pth"
  tiny_release.write_pth(
    path, {"a": rng.standard_normal(500).astype(np.float32)}
  )
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with (
    pytest.raises(ValueError, match="download it again"),
    tensor_files.open_tensors(path),
  ):
    pass


def test_a_flipped_byte_of_a_storage_is_noticed(tmp_path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  path = tmp_path / "x.pth"
  x = rng.standard_normal(500).astype(np.float32)
  tiny_release.write_pth(path, {"a": x})
  data = bytearray(path.read_bytes())
  at = bytes(data).index(x.tobytes()) + int(rng.integers(x.nbytes))
  data[at] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)
  with (
    pytest.raises(ValueError, match="damaged"),
    tensor_files.open_tensors(path) as tensors,
  ):
    tensors["a"].read()
