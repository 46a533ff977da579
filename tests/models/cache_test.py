"""The ring buffer against a plain list of frames; sizes; windows."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from videomla_jax.diffusion import rollout
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

LAYERS = 2
_append = jax.jit(cache_lib.append, static_argnames="window")


def _entries(rows, frames):
  """Entries that tell layer, row, frame and channel."""
  layer, row, frame, channel = np.meshgrid(
    np.arange(LAYERS), rows, frames, np.arange(2), indexing="ij"
  )
  value = layer * 1e5 + row * 1e4 + frame * 10.0 + channel
  value = value[:, :, :, None].astype(np.float32)  # one token
  return {"content": jnp.asarray(value), "rope": jnp.asarray(-value[..., :1])}


def _empty(batch, window, max_frames):
  entry = jax.eval_shape(lambda: _entries(range(batch), range(1)))
  return cache_lib.empty(entry, window=window, max_frames=max_frames)


class Frames:
  """What the cache must hold: a list of frames per row."""

  def __init__(self, window):
    self.window, self.kept, self.next = window, [], 0

  def commit(self, length):
    frames = range(self.next, self.next + length)
    self.kept += frames
    self.next += length
    window = self.window
    if window.local_frames is not None:
      newest = self.next - (window.local_frames - window.chunk_frames)
      self.kept = [
        f for f in self.kept if f < window.sink_frames or f >= newest
      ]
    return frames

  def flush(self):
    window = self.window
    newest = self.next - max(window.chunk_frames - window.sink_frames, 1)
    self.kept = [f for f in self.kept if f < window.sink_frames or f >= newest]


def _check(cache, lists):
  rank = np.asarray(
    window_lib.Window().positions(cache.frame, cache.next_frame)[0]
  )
  valid = np.asarray(cache_lib.valid(cache))
  frame = np.asarray(cache.frame)
  assert np.asarray(cache.next_frame).tolist() == [x.next for x in lists]
  for row, frames in enumerate(lists):
    assert sorted(frame[row, valid[row]].tolist()) == frames.kept
    assert (frame[row, ~valid[row]] == window_lib.EMPTY).all()
    for slot in np.flatnonzero(valid[row]):
      held = frame[row, slot]
      expected = _entries([row], [held])
      for name, leaf in cache.entries.items():
        np.testing.assert_array_equal(
          leaf[:, row, slot], expected[name][:, 0, 0]
        )
      assert rank[row, slot] == frames.kept.index(held)


@st.composite
def _programs(draw):
  """A window, commits of each row alone, then of both, and a flush."""
  chunk = draw(st.integers(1, 3))
  history = draw(st.one_of(st.none(), st.integers(0, 5)))
  window = window_lib.Window(
    chunk_frames=chunk,
    sink_frames=draw(st.integers(0, 4)),
    local_frames=None if history is None else chunk + history,
  )
  lengths = st.lists(st.integers(1, chunk), max_size=4)
  alone = [draw(lengths), draw(lengths)]
  return window, alone, draw(lengths), draw(lengths), draw(st.integers(0, 9))


def _concatenate(caches):
  return cache_lib.Cache(
    entries=jax.tree.map(
      lambda *x: jnp.concatenate(x, axis=1), *[c.entries for c in caches]
    ),
    frame=jnp.concatenate([c.frame for c in caches]),
    next_frame=jnp.concatenate([c.next_frame for c in caches]),
  )


@hypothesis.settings(max_examples=15)
@hypothesis.given(_programs())
def test_ring_buffer_equals_a_list_of_frames(program):
  window, alone, before, after, spare = program
  total = max(map(sum, alone)) + sum(before) + sum(after)
  lists, caches = [], []
  for row, lengths in enumerate(alone):
    frames, cache = Frames(window), _empty(1, window, total + spare)
    for length in lengths:
      entries = _entries([row], frames.commit(length))
      cache = _append(cache, entries, window=window)
    lists.append(frames)
    caches.append(cache)
  cache = _concatenate(caches)
  _check(cache, lists)
  for part in (before, after):
    for length in part:
      # Rows stand at different frames: their entries differ.
      each = [_entries([s], x.commit(length)) for s, x in enumerate(lists)]
      entries = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *each)
      cache = _append(cache, entries, window=window)
      _check(cache, lists)
    cache = cache_lib.flush(cache, window=window)
    for frames in lists:
      frames.flush()
    _check(cache, lists)


def test_empty_cache_shows_nothing():
  cache = _empty(2, window_lib.Window(), 9)
  assert not cache_lib.valid(cache).any()
  rank, count = window_lib.Window().positions(cache.frame, cache.next_frame)
  assert not rank.any()
  assert not count.any()


@hypothesis.given(
  st.integers(1, 5),
  st.integers(0, 5),
  st.one_of(st.none(), st.integers(0, 9)),
  st.integers(0, 40),
)
def test_slots_never_exceed_window_or_rollout(chunk, sink, history, frames):
  local = None if history is None else chunk + history
  window = window_lib.Window(
    chunk_frames=chunk, sink_frames=sink, local_frames=local
  )
  slots = window.slots(frames)
  assert slots == min(frames, frames if history is None else sink + history)


@pytest.mark.parametrize("kind", ["latent", "dense"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("local", [3, 6, 9])
def test_measured_bytes_equal_the_formula(kind, dtype, local):
  model = tiny_model.build(kind, np.random.default_rng(0))
  window = window_lib.Window(local_frames=local)
  cache = rollout.empty_cache(
    model,
    batch=2,
    frame=tiny_model.FRAME,
    window=window,
    max_frames=100,
    dtype=dtype,
  )
  measured = sum(x.nbytes for x in jax.tree.leaves(cache.entries))
  frames = 1 + (local - 3)  # sink + history
  scalars = {"latent": 10 + 6, "dense": 2 * 24}[kind]
  tokens = 2 * frames * tiny_model.TOKENS
  item = 4 if dtype is None else 2
  assert measured == tokens * LAYERS * scalars * item
  assert cache_lib.num_bytes(cache) == measured


@pytest.mark.parametrize(
  ("kind", "expected"), [("latent", 83_865_600), ("dense", 1_150_156_800)]
)
def test_bytes_of_the_1p3b_cache_at_480p(kind, expected):
  # 4 frames x 1560 tokens x 30 layers x 224 (dense 3072) x 2 bytes.
  model = tiny_model.abstract(wan_config.wan_1p3b(kind=kind))
  make = functools.partial(
    rollout.empty_cache,
    batch=1,
    frame=(60, 104, 16),
    window=window_lib.Window(),
    max_frames=240,
  )
  assert cache_lib.num_bytes(jax.eval_shape(make, model)) == expected


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(chunk_frames=0), "chunk_frames=0 must be at least 1"),
    (dict(sink_frames=-1), "sink_frames=-1 at least 0"),
    (
      dict(chunk_frames=3, local_frames=2),
      "local_frames=2 must be at least chunk_frames=3.*use 3 or more",
    ),
  ],
)
def test_bad_window_is_refused_with_the_way_out(fields, message):
  with pytest.raises(ValueError, match=message):
    window_lib.Window(**fields)
