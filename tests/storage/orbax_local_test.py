"""Tests that arrays on disk ask for no more memory than they have."""

import types

import numpy as np
import pytest

from videomla_jax.storage import orbax_local


def _described(shape, piece):
  storage = types.SimpleNamespace(chunk_shape=piece)
  return types.SimpleNamespace(shape=shape, dtype=np.int8, storage=storage)


def test_pieces_much_larger_than_their_array_are_refused() -> None:
  large = 2**30
  orbax_local.check_pieces({"a": _described((large,), (large,))})
  orbax_local.check_pieces({"a": _described((large,), None)})
  with pytest.raises(ValueError, match="of 4 bytes lie in pieces of 10737418"):
    orbax_local.check_pieces({"a": _described((4,), (large,))})


def test_arrays_much_larger_than_their_files_are_refused(tmp_path) -> None:
  (tmp_path / "x").write_bytes(bytes(1000))
  orbax_local.check_bytes(tmp_path, {"a": _described((2**20,), None)})
  with pytest.raises(
    ValueError, match="cannot come out of files of 1000 bytes"
  ):
    orbax_local.check_bytes(tmp_path, {"a": _described((2**30,), None)})
