"""Tests of crops to learn from, and of reading them."""

import numpy as np
import pytest

from tests.small_world.colour import faulty
from videomla_jax.small_world.colour import glyphs
from videomla_jax.small_world.colour import observe
from videomla_jax.small_world.colour import tracks


def test_clean_crops_have_their_centroid_in_the_middle(seed):
  rng = np.random.default_rng(seed)
  crops = glyphs.synthesise(rng, "test", num_crops=50, clean=True)
  weights = crops.images.astype(float)
  for axis, length in enumerate(observe.CROP):
    along = weights.sum(2 - axis)
    centre = along @ (np.arange(length) + 0.5) / along.sum(1)
    # Half a pixel of either side, and faint edges that are left out.
    assert np.abs(centre - length / 2).max() < 0.8


def test_crops_of_clips_look_like_those_that_are_learned(reader):
  scenes, videos, _ = faulty.scenes()
  del scenes
  seen = observe.observe(videos[:1, ::16])
  followed = tracks.follow(seen, faulty.PROMPTS[:1], reader)[0]
  thing = followed.things[0]
  assert thing.whole.all()
  assert tracks.word(thing.said) == 3
  assert np.exp(thing.said).sum(1) == pytest.approx(np.ones(9), abs=1e-4)


def test_reading_does_not_depend_on_the_batch(reader, seed, monkeypatch):
  rng = np.random.default_rng(seed)
  crops = glyphs.synthesise(rng, "train", num_crops=21, num_warps=1)
  whole = glyphs.read(reader, crops.images)
  monkeypatch.setattr(glyphs, "_BATCH", 8)
  parts = glyphs.read(reader, crops.images)
  np.testing.assert_allclose(whole, parts, atol=1e-4)
  assert glyphs.read(reader, crops.images[:0]).shape == (0, 10)
