"""Tests of NumPy's files: read as they were written, or refused in time."""

import io
import zipfile

import numpy as np
import pytest

from videomla_jax.storage import array_files
from videomla_jax.storage import ordinary_files


def test_arrays_come_back_as_numpy_wrote_them(tmp_path, seed) -> None:
  rng = np.random.default_rng(seed)
  arrays = {
    "a": rng.standard_normal((3, 4)),
    "b": np.asfortranarray(rng.standard_normal((5, 2))),
    "c": np.array("text"),
    "d": np.zeros((0, 3), np.uint8),
    "e": rng.integers(9, size=(2, 3, 4)).astype(np.int32)[:, ::2],
  }
  np.savez(tmp_path / "x.npz", **arrays)
  np.savez_compressed(tmp_path / "y.npz", **arrays)
  for name in ("x.npz", "y.npz"):
    found = dict(array_files.read(tmp_path / name))
    assert found.keys() == arrays.keys()
    for key, expected in arrays.items():
      assert found[key].dtype == expected.dtype
      np.testing.assert_array_equal(found[key], expected)
  np.save(tmp_path / "z.npy", arrays["b"])
  ((_, found),) = array_files.read(tmp_path / "z.npy")
  np.testing.assert_array_equal(found, arrays["b"])


def _header(shape, kind: str = "<f8") -> bytes:
  file = io.BytesIO()
  about = dict(descr=kind, fortran_order=False, shape=shape)
  np.lib.format.write_array_header_1_0(file, about)
  return file.getvalue()


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (_header((10**15,)), "shorter or longer"),
    (_header((2,)) + bytes(17), "shorter or longer"),
    (_header((-1,)), "."),
    (_header((1,), "|O") + bytes(8), "objects of Python"),
    (b"\x93NUMPY\x03\x00" + _header((1,))[8:] + bytes(8), "of version"),
    (b"PK\x03\x04" + bytes(99), "no file of arrays"),
    (b"", "no file of arrays"),
  ],
)
def test_what_its_header_does_not_fit_is_refused(tmp_path, content, words):
  (tmp_path / "x.npy").write_bytes(content)
  with pytest.raises(ordinary_files.BadFile, match=words):
    list(array_files.read(tmp_path / "x.npy"))


def test_archives_that_grow_are_refused_before_they_are_unpacked(
  tmp_path, monkeypatch
) -> None:
  monkeypatch.setattr(array_files, "_FREE_BYTES", 1000)
  path = tmp_path / "x.npz"
  np.savez_compressed(path, a=np.zeros(10_000))
  monkeypatch.setattr(zipfile.ZipFile, "read", None)
  with pytest.raises(ordinary_files.BadFile, match="unpacks from .* to 80128"):
    list(array_files.read(path))
