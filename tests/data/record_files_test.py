"""Tests that files of records cannot unpack to more than they are."""

import numpy as np
import pytest

from videomla_jax.data import record_files
from videomla_jax.storage import ordinary_files


@pytest.fixture
def small_bounds(monkeypatch) -> None:
  monkeypatch.setattr(record_files, "_FREE_BYTES", 2**16)
  monkeypatch.setattr(record_files, "_MOST_GROWTH", 2)


def _write(path, rng, *, before: int, packed: int) -> None:
  """Writes random bytes and then one record of zeros."""
  record_files.write(path, [rng.bytes(before), bytes(packed)])


def test_records_that_unpack_to_much_more_are_refused(
  tmp_path, seed, small_bounds
) -> None:
  rng = np.random.default_rng(seed)
  path = tmp_path / "x.array_record"
  _write(path, rng, before=100_000, packed=10_000)
  record_files.check_growth(path)
  # At the border of a block the head of the record may be cut in two.
  for before in (100, *range(65_300, 65_470, 13), 3 * 2**20):
    _write(path, rng, before=before, packed=20 * 2**20)
    with pytest.raises(ordinary_files.BadFile, match="unpack to 2[0-9]{7}"):
      record_files.check_growth(path)


def test_random_bytes_have_no_heads_of_records(
  tmp_path, seed, small_bounds
) -> None:
  path = tmp_path / "x"
  path.write_bytes(np.random.default_rng(seed).bytes(2**22))
  record_files.check_growth(path)
  path.write_bytes(b"r" * 5000)
  record_files.check_growth(path)
