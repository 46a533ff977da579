"""Block tables visit every valid key once, and nothing else."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np

from videomla_jax.ops.latent_attention import blocks


def _visited(table, row):
  keys = []
  for m in range(int(table.num_blocks[row])):
    start, count = int(table.start[row, m]), int(table.count[row, m])
    keys.extend(range(start, start + count))
  return keys


@settings(deadline=None, max_examples=60)
@given(
  valid=st.lists(
    st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3
  ),
  validity_block=st.integers(1, 9),
  block=st.sampled_from([1, 2, 4, 8]),
)
def test_every_valid_key_is_visited_once_in_order(valid, validity_block, block):
  table = blocks.table_of(
    jnp.asarray(valid), validity_block=validity_block, block=block
  )
  for row, flags in enumerate(valid):
    expected = np.flatnonzero(np.repeat(flags, validity_block))
    assert _visited(table, row) == expected.tolist()
    used = int(table.num_blocks[row])
    assert (
      used
      <= blocks.max_blocks(5, validity_block, block)
      == table.start.shape[1]
    )
    assert (np.asarray(table.count[row, :used]) >= 1).all()
    assert (np.asarray(table.count[row]) <= block).all()
    assert not np.asarray(table.count[row, used:]).any()
    assert not np.asarray(table.start[row, used:]).any()


def test_neighbouring_frames_share_blocks():
  # 4 frames of 1,560 tokens: 49 blocks of 128, not 4 x 13.
  full = jnp.ones((1, 4), bool)
  table = blocks.table_of(full, validity_block=1560, block=128)
  assert int(table.num_blocks[0]) == 49
  assert int(table.count[0, 48]) == 6240 - 48 * 128


def test_an_empty_segment_has_no_blocks():
  table = blocks.table_of(jnp.zeros((2, 3), bool), validity_block=5, block=4)
  assert not np.asarray(table.num_blocks).any()


def test_rows_with_the_most_blocks_come_first(seed):
  rng = np.random.default_rng(seed)
  valid = [jnp.asarray(rng.integers(0, 2, (7, n)), bool) for n in (6, 1)]
  tables = [blocks.table_of(v, validity_block=72, block=64) for v in valid]
  number = np.asarray(sum(t.num_blocks for t in tables))
  order = np.asarray(blocks.longest_first(tables))
  assert sorted(order) == list(range(7))
  assert (np.diff(number[order]) <= 0).all()
