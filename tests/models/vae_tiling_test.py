"""Tests of tiles: cover, blend, stream; exact where nothing is cut."""

import functools

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import vae_tiling


@functools.cache  # One tree structure, so jit compiles once.
def _abstract() -> vae.WanVAE:
  return vae.abstract(vae_coders.tiny_vae())


def _model(seed: int) -> vae.WanVAE:
  return tiny_model.fill(_abstract(), np.random.default_rng(seed))


@given(st.integers(1, 60), st.integers(2, 20), st.integers(1, 10))
def test_tiles_cover_an_axis_and_overlap(length, tile, overlap) -> None:
  if overlap >= tile:
    return
  firsts = vae_tiling.starts(length, tile=tile, overlap=overlap)
  if tile >= length:
    assert firsts == [0]
    return
  assert firsts[0] == 0 and firsts[-1] == length - tile
  gaps = np.diff(firsts)
  assert (gaps > 0).all() and (tile - gaps >= overlap).all()
  weights = vae_tiling.ramp(tile, overlap=overlap)
  assert (weights > 0).all() and weights.max() <= 1
  np.testing.assert_array_equal(weights, weights[::-1])


def test_one_tile_is_the_whole_frame(seed: int) -> None:
  model = _model(seed)
  rng = np.random.default_rng(seed)
  tiled = vae_tiling.TiledVAE(model, tile=8)
  latents = tiny_model.normal(rng, 1, 2, 4, 6, 4)
  decode = jax.jit(lambda m, z: m.decode(z))
  tolerances.assert_close(decode(tiled, latents), decode(model, latents))
  video = jnp.asarray(rng.integers(0, 256, (1, 5, 32, 48, 3)), jnp.uint8)
  encode = jax.jit(lambda m, x: m.encode(x))
  tolerances.assert_close(encode(tiled, video), encode(model, video))


def test_larger_tiles_are_closer_to_the_whole_frame(seed: int) -> None:
  model = _model(seed)
  latents = tiny_model.normal(np.random.default_rng(seed), 1, 2, 4, 16, 4)
  decode = jax.jit(lambda m, z: m.decode(z))
  whole = decode(model, latents)
  errors = []
  for tile in (4, 14):
    tiled = vae_tiling.TiledVAE(model, tile=tile, overlap=2)
    pixels = decode(tiled, latents)
    assert pixels.shape == whole.shape
    errors.append(float(np.abs(pixels - whole).mean()))
  print(f"mean error with tiles of 4 and 14 of 16: {errors}")
  assert errors[1] < errors[0] < 0.25


def test_streaming_equals_decoding_at_once(seed: int) -> None:
  tiled = vae_tiling.TiledVAE(_model(seed), tile=4, overlap=2)
  latents = tiny_model.normal(np.random.default_rng(seed), 1, 4, 4, 6, 4)
  step = jax.jit(lambda m, z, state: m.decode_chunk(z, state))
  state = tiled.start(1, 4, 6)
  whole, _ = step(tiled, latents, state)
  pieces = []
  for chunk in (latents[:, :2], latents[:, 2:]):
    pixels, state = step(tiled, chunk, state)
    pieces.append(pixels)
  tolerances.assert_close(jnp.concatenate(pieces, axis=1), whole)


def test_equal_pixels_stay_equal_across_seams(seed: int) -> None:
  # Weights are normalised: a constant picture has no seams in it.
  tiled = vae_tiling.TiledVAE(_abstract(), tile=4, overlap=2)
  corners = tiled._corners(7, 9)
  pieces = jnp.ones((len(corners), 1, 2, 32, 32, 3))
  whole = tiled._blend(pieces, corners, (7, 9), enlarge=True)
  assert whole.shape == (1, 2, 56, 72, 3)
  tolerances.assert_close(whole, np.ones(whole.shape))


@pytest.mark.parametrize(("tile", "overlap"), [(4, 4), (4, 0), (0, 1)])
def test_tiles_that_cannot_advance_are_refused(tile, overlap) -> None:
  with pytest.raises(ValueError, match="larger than its overlap"):
    vae_tiling.TiledVAE(_abstract(), tile=tile, overlap=overlap)
