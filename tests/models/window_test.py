"""Window policies: one answer for NumPy and JAX, and an averaging sink."""

import hypothesis
from hypothesis import strategies as st
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.models import attention
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import window as window_lib
from videomla_jax.ops import quantise

LAYERS, ROWS, TOKENS = 2, 2, 2
SIZES = {"content": 3, "rope": 2}
Entries = dict[str, np.ndarray]

_append = jax.jit(cache_lib.append, static_argnames="window")


@jax.jit
def _written(stored, entries, update):
  """Writes layer by layer, as a pass without gradients does."""
  for layer in range(LAYERS):
    one = jax.tree.map(lambda x, n=layer: x[n], entries)
    stored = cache_lib.write(stored, one, update, jnp.int32(layer))
  return stored


def _append_by_layers(cache, entries, *, window):
  length = next(iter(entries.values())).shape[2]
  update = window.update(cache.frame, cache.next_frame, length)
  written = _written(cache.entries, entries, update)
  return cache_lib.advance(cache, written, update)


def _entries(rng: np.random.Generator, frames: int) -> Entries:
  return {
    name: np.asarray(
      rng.standard_normal((LAYERS, ROWS, frames, TOKENS, size)), np.float32
    )
    for name, size in SIZES.items()
  }


def _empty(window, max_frames, dtype="float32"):
  entry = jax.eval_shape(lambda: _entries(np.random.default_rng(0), 1))
  entry = jax.tree.map(lambda x: quantise.shape_of(x, jnp.dtype(dtype)), entry)
  return cache_lib.empty(entry, window=window, max_frames=max_frames)


def _rounded(x, dtype: str) -> np.ndarray:
  """What is left of an array once a cache of this dtype has held it."""
  x = jnp.asarray(x)
  if quantise.is_eight_bit(dtype):
    x = quantise.quantise(x, dtype=jnp.dtype(dtype))
  else:
    x = x.astype(dtype)
  return np.asarray(quantise.dequantise(x, jnp.float32))


class AveragedFrames:
  """What one row of the cache must hold: a list of sinks, a dict of frames."""

  def __init__(self, window: window_lib.Window, dtype: str):
    self.window, self.dtype, self.next = window, dtype, 0
    self.sink: list[np.ndarray] = []
    self.ring: dict[int, np.ndarray] = {}

  def append(self, chunk: list[np.ndarray]) -> None:
    window = self.window
    held = {f: _rounded(x, self.dtype) for f, x in self.ring.items()}
    for x in chunk:
      if self.next < window.sink_frames:
        self.sink.append(_rounded(x, self.dtype))
      else:
        held[self.next] = x
      self.next += 1
    oldest = self.next - (window.local_frames - window.chunk_frames)
    for slot, sink in enumerate(self.sink):
      gone = [
        x
        for f, x in held.items()
        if f < oldest and f % window.sink_frames == slot
      ]
      if gone:
        mean = sum(gone) / len(gone)
        decay = window.sink_decay
        mixed = decay * sink + (1 - decay) * mean
        self.sink[slot] = _rounded(mixed, self.dtype)
    self.ring = {f: x for f, x in held.items() if f >= oldest}


def _check(cache, rows: dict[str, list[AveragedFrames]], dtype: str) -> None:
  frame = np.asarray(cache.frame)
  for name, lists in rows.items():
    stored = quantise.dequantise(cache.entries[name], jnp.float32)
    stored = np.asarray(stored)
    for row, frames in enumerate(lists):
      assert cache.next_frame[row] == frames.next
      expected = dict(enumerate(frames.sink)) | {
        f: _rounded(x, dtype) for f, x in frames.ring.items()
      }
      assert set(frame[row]) - {window_lib.EMPTY} == set(expected)
      for slot, held in enumerate(frame[row]):
        if held != window_lib.EMPTY:
          kind = "float32" if dtype == "float32" else f"{dtype}_cache"
          tolerances.assert_close(stored[:, row, slot], expected[held], kind)


@st.composite
def _programs(draw):
  chunk = draw(st.integers(1, 3))
  window = window_lib.Window(
    chunk_frames=chunk,
    sink_frames=draw(st.integers(1, 4)),
    local_frames=chunk + draw(st.integers(0, 4)),
    sink="average",
    sink_decay=draw(st.sampled_from([0.0, 0.7, 0.999])),
  )
  # The second row is behind the first by some frames.
  return (
    window,
    draw(st.integers(0, 4)),
    [1] + [chunk] * draw(st.integers(1, 7)),
  )


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@hypothesis.settings(max_examples=6)
@hypothesis.given(program=_programs(), seed=st.integers(0, 99))
def test_averaging_sink_equals_a_list_of_frames(dtype, program, seed):
  window, behind, lengths = program
  rng = np.random.default_rng(seed)
  cache = _empty(window, 99, dtype)
  rows = {
    name: [AveragedFrames(window, dtype) for _ in range(ROWS)] for name in SIZES
  }
  if behind:  # The first row alone sees a frame more, again and again.
    for _ in range(behind):
      entries = _entries(rng, 1)
      new = _append(cache, entries, window=window)
      first = lambda a, b: b.at[:, 0].set(a[:, 0]) if a.ndim > 2 else b
      cache = cache_lib.Cache(
        jax.tree.map(first, new.entries, cache.entries),
        cache.frame.at[0].set(new.frame[0]),
        cache.next_frame.at[0].set(new.next_frame[0]),
      )
      for name, x in entries.items():
        rows[name][0].append([x[:, 0, 0]])
  for length in lengths:
    entries = _entries(rng, length)
    cache = _append(cache, entries, window=window)
    for name, x in entries.items():
      for row in range(ROWS):
        rows[name][row].append([x[:, row, i] for i in range(length)])
    _check(cache, rows, dtype)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_averaging_sink_is_written_layer_by_layer_too(seed, dtype):
  window = window_lib.Window(
    chunk_frames=3,
    sink_frames=2,
    local_frames=5,
    sink="average",
    sink_decay=0.7,
  )
  rng, whole = np.random.default_rng(seed), _empty(window, 99, dtype)
  layered = whole
  for _ in range(4):
    entries = _entries(rng, 3)
    whole = _append(whole, entries, window=window)
    layered = _append_by_layers(layered, entries, window=window)
  jax.tree.map(tolerances.assert_close, layered, whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_decay_of_one_is_the_plain_sink_bit_for_bit(seed, dtype):
  sizes = dict(chunk_frames=3, sink_frames=2, local_frames=5)
  plain = window_lib.Window(**sizes)
  average = window_lib.Window(**sizes, sink="average", sink_decay=1.0)
  caches = {w: _empty(w, 99, dtype) for w in (plain, average)}
  rng = np.random.default_rng(seed)
  for _ in range(6):
    entries = _entries(rng, 3)
    caches = {w: _append(c, entries, window=w) for w, c in caches.items()}
  for a, b in zip(*map(jax.tree.leaves, caches.values()), strict=True):
    np.testing.assert_array_equal(a, b)


def test_flushed_frames_do_not_flow_into_the_sink(seed):
  window = window_lib.Window(
    chunk_frames=2, sink_frames=2, local_frames=6, sink="average"
  )
  rng, cache = np.random.default_rng(seed), _empty(window, 99)
  for _ in range(3):
    cache = _append(cache, _entries(rng, 2), window=window)
  flushed = cache_lib.flush(cache, window=window)
  assert (flushed.frame != window_lib.EMPTY).sum() == ROWS * 3
  after = _append(flushed, _entries(rng, 2), window=window)
  for a, b in zip(
    jax.tree.leaves(after.entries), jax.tree.leaves(cache.entries), strict=True
  ):
    np.testing.assert_array_equal(a[:, :, :2], b[:, :, :2])


def test_a_policy_says_what_stays_at_a_change_of_scene(seed, monkeypatch):
  class EverySixth(window_lib.FirstFrames):
    def in_sink(self, window, frame):
      return frame % 6 == 0

  monkeypatch.setitem(window_lib.POLICIES, "sixth", EverySixth())
  window = window_lib.Window(
    chunk_frames=2, sink_frames=1, local_frames=9, sink="sixth"
  )
  rng, cache = np.random.default_rng(seed), _empty(window, 99)
  for _ in range(6):
    cache = _append(cache, _entries(rng, 2), window=window)
  held = np.asarray(cache_lib.flush(cache, window=window).frame[0])
  assert sorted(held[held != window_lib.EMPTY]) == [0, 6, 11]


def _windows():
  return st.builds(
    lambda chunk, sink, history, policy: window_lib.Window(
      chunk_frames=chunk,
      sink_frames=sink,
      local_frames=None if history is None else chunk + history,
      sink=policy,
      sink_decay=0.8,
    ),
    st.integers(1, 3),
    st.integers(0, 4),
    st.one_of(st.none(), st.integers(0, 5)),
    st.sampled_from([*window_lib.POLICIES]),
  )


@hypothesis.given(_windows(), st.lists(st.integers(1, 3), max_size=8))
def test_numpy_and_jax_get_one_answer_and_the_ring_holds_what_is_visible(
  window, lengths
):
  total = sum(lengths)
  slots = window.slots(total)
  held, start = np.full((1, slots), window_lib.EMPTY, np.int32), 0
  for length in lengths:
    first = np.asarray([start], np.int32)
    update = window.update(held, first, length)
    other = window.update(jnp.asarray(held), jnp.asarray(first), length)
    for a, b in zip(
      jax.tree.leaves(update), jax.tree.leaves(other), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-6)
    for frame, slot in enumerate(update.slot[0], start):
      if slot < slots:
        held[0, slot] = frame
    start += length
    past = np.arange(start)
    visible = past[window.visible(past, next_frame=start)]
    assert sorted(held[held != window_lib.EMPTY]) == visible.tolist()
    rank, count = window.positions(held, first)
    assert sorted(rank[held != window_lib.EMPTY]) == list(range(len(visible)))
    assert count == [len(visible)]


@hypothesis.settings(max_examples=10)
@hypothesis.given(_windows(), st.integers(0, 99))
def test_matrix_of_an_update_is_what_the_cache_does(window, seed):
  rng = np.random.default_rng(seed)
  cache = _empty(window, 30)
  for _ in range(4):
    held = np.asarray(cache.frame)
    entries = _entries(rng, window.chunk_frames)
    update = window.update(
      held, np.asarray(cache.next_frame), window.chunk_frames
    )
    before, cache = cache, _append(cache, entries, window=window)
    matrix = update.matrix(held.shape[1])
    for name, x in entries.items():
      seen = np.concatenate([before.entries[name], x], axis=2)
      expected = np.einsum("brk,lbkpd->lbrpd", matrix, seen)
      tolerances.assert_close(cache.entries[name], expected)


@pytest.mark.parametrize("kind", ["latent", "dense"])
def test_average_of_entries_is_the_average_of_keys_and_values(seed, kind):
  # What an averaged entry expands to, against the keys and values of each frame
  # expanded alone and averaged afterwards.
  rng = np.random.default_rng(seed)
  config = attention.AttentionConfig(
    kind=kind, width=24, num_heads=2, d_c=10, d_rope=6, d_q=14
  )
  layer = tiny_model.build(kind, rng).blocks.self_attention
  layer = jax.tree.map(lambda leaf: leaf[0], layer)
  x = tiny_model.normal(rng, 1, 4, TOKENS, config.width)
  weights = np.asarray([0.4, 0.3, 0.2, 0.1], np.float32)
  average = lambda y: jnp.einsum("t,bt...->b...", weights, y)[:, None]
  entry = layer.project(x)
  averaged = _keys_and_values(layer, jax.tree.map(average, entry))
  each = [average(y) for y in _keys_and_values(layer, entry)]
  for a, b in zip(averaged, each, strict=True):
    tolerances.assert_close(a, b)
    assert np.abs(a).max() > 0.1


def _keys_and_values(layer, entry):
  """Per-head keys before rotation, and values, that an entry expands to."""
  if isinstance(layer, attention.DenseSelfAttention):
    return list(entry)
  up = layer.up_projections(jnp.float32)
  expand = lambda w: jnp.einsum("BTPc,cNd->BTPNd", entry.content, w)
  return [expand(up.key), expand(up.value), entry.key_rope]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(sink="last"), "sink='last' is unknown; use one of"),
    (dict(sink_decay=1.5), "sink_decay=1.5 must be between 0 and 1"),
  ],
)
def test_bad_policy_is_refused_with_the_way_out(fields, message):
  with pytest.raises(ValueError, match=message):
    window_lib.Window(**fields)


def test_windows_saved_before_policies_existed_keep_their_meaning():
  saved = dict(chunk_frames=3, sink_frames=1, local_frames=6)
  assert window_lib.Window(**saved) == window_lib.Window(sink="first")


@pytest.mark.parametrize(
  ("decay", "dtype", "works"),
  [
    (0.999, "float32", True),
    (0.999, "bfloat16", False),
    (0.999, "int8", False),
    (0.98, "bfloat16", True),
    (0.98, "int8", True),
    (0.98, "float8_e4m3fn", False),
    (1.0, "bfloat16", True),  # asks for no step
  ],
)
def test_a_cache_that_rounds_the_average_away_is_refused(decay, dtype, works):
  window = window_lib.Window(sink="average", sink_decay=decay)
  window_lib.Window().check_dtype(dtype)
  if works:
    window.check_dtype(dtype)
  else:
    with pytest.raises(ValueError, match=r"use cache_dtype='float32'"):
      window.check_dtype(dtype)
