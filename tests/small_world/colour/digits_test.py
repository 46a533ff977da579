"""Enlarged digits are the handwriting of the small world."""

import numpy as np
import pytest

from videomla_jax.small_world import world
from videomla_jax.small_world.colour import digits

WIDTH, HEIGHT = 4.0, 4.8  # samples of a cell


def cells(ink):
  """Mean ink of the 8 x 8 cells, by counting finer and finer samples."""
  finest = np.repeat(np.repeat(ink, 5, 1), 5, 2)  # 24 x 20 of them are a cell
  rows, columns = 8 * 24, 8 * 20
  top, left = (
    (finest.shape[1] - rows) // 2,
    (finest.shape[2] - columns) // 2,
  )
  inner = finest[:, top : top + rows, left : left + columns]
  return inner.reshape(-1, 8, 24, 8, 20).mean((2, 4))


@pytest.mark.parametrize("split", world.SPLITS)
def test_cells_hold_the_ink_of_the_data(split):
  images, labels = world.load_sprites(split)
  found = digits.load(split)
  np.testing.assert_array_equal(found.label, labels)
  error = cells(found.ink.astype(float) / 255) - images
  # The data have 17 levels, 0.06 apart.
  assert np.sqrt((error**2).mean()) < 0.02
  assert np.abs(error).mean(0).max() < 0.03


@pytest.mark.parametrize("split", world.SPLITS)
def test_boxes_hold_all_ink_and_no_empty_edge(split):
  found = digits.load(split)
  for ink, first, last in zip(found.ink, found.first, found.last, strict=True):
    rows, columns = np.nonzero(ink)
    assert (columns.min(), rows.min()) == tuple(first)
    assert (columns.max(), rows.max()) == tuple(last)
  size = (found.last - found.first + 1) / 2
  # "About 20 px", and small enough for walls with room on both sides.
  assert size[:, 1].min() >= 19
  assert size[:, 1].max() <= 21
  assert size[:, 0].min() >= 4
  assert size[:, 0].max() <= 15


@pytest.mark.parametrize("split", world.SPLITS)
def test_offsets_lead_to_the_centroid(split):
  found = digits.load(split)
  for n in range(0, len(found.label), 37):
    rows, columns = np.indices(found.ink[n].shape)
    mean = [np.average(a, weights=found.ink[n]) for a in (columns, rows)]
    middle = (found.first[n] + found.last[n]) / 2
    np.testing.assert_allclose(found.offset[n], (mean - middle) / 2, atol=1e-5)


def test_splits_share_no_handwriting():
  train = {ink.tobytes() for ink in digits.load("train").ink}
  test = {ink.tobytes() for ink in digits.load("test").ink}
  assert not train & test


def test_arrays_are_read_only():
  with pytest.raises(ValueError, match="read-only"):
    digits.load("train").ink[0, 0, 0] = 1


def test_unknown_split_is_an_error():
  with pytest.raises(ValueError, match="split='valid'"):
    digits.load("valid")
