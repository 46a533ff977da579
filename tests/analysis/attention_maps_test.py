"""Where attention looks: shares of frames in a cached pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tiny_rollout
from videomla_jax.analysis import attention_maps
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import window as window_lib

WINDOW = tiny_rollout.WINDOW


def _after(seed, chunks, cache_dtype=None, **kwargs):
  """A network, its text, and the cache behind so many chunks."""
  model, text, _, _ = tiny_rollout.setup(seed, **kwargs)
  rng = np.random.default_rng(seed)
  draw = lambda: tiny_model.normal(rng, tiny_rollout.B, 3, *tiny_rollout.FRAME)
  state = rollout.empty_cache(
    model,
    batch=tiny_rollout.B,
    frame=tiny_rollout.FRAME,
    window=WINDOW,
    max_frames=30,
    dtype=cache_dtype,
  )
  for _ in range(chunks):
    entries = chunk_pass.clean_entries(
      model, state, draw(), text, window=WINDOW
    )
    state = cache_lib.append(state, entries, window=WINDOW)
  return model, text, state, draw()


@pytest.mark.parametrize("chunks", [0, 4])
def test_shares_add_up_and_empty_slots_get_none(seed, chunks):
  model, text, state, chunk = _after(seed, chunks)
  found = attention_maps.frame_shares(
    model, state, chunk, 500, text, window=WINDOW
  )
  config = model.config
  shape = (config.num_layers, tiny_rollout.B, config.attention.num_heads, 3)
  assert found.values.shape == (*shape, found.frames.shape[1])
  np.testing.assert_allclose(found.values.sum(-1), 1, atol=1e-5)
  empty = np.asarray(found.frames[0] == window_lib.EMPTY)
  assert empty.any() == (chunks == 0)
  assert (np.asarray(found.values)[..., empty] == 0).all()
  assert (np.asarray(found.values)[..., ~empty] > 0).all()
  own = 3 * chunks + np.arange(3)
  np.testing.assert_array_equal(found.frames[0, -3:], own)


def test_without_scores_every_visible_frame_gets_the_same(seed):
  model, text, state, chunk = _after(seed, 4)
  layer = model.blocks.self_attention
  for name in ("w_uk", "w_qr"):
    linear = getattr(layer, name)
    linear.kernel[...] = jnp.zeros_like(linear.kernel[...])
  layer.w_qr.bias[...] = jnp.zeros_like(layer.w_qr.bias[...])
  found = attention_maps.frame_shares(
    model, state, chunk, 500, text, window=WINDOW
  )
  frames = found.frames.shape[1]
  np.testing.assert_allclose(found.values, 1 / frames, rtol=1e-5)


def test_probabilities_of_values_are_attention(seed):
  model, _, state, chunk = _after(seed, 4)
  block, past = jax.tree.map(
    lambda leaf: leaf[0], (model.blocks, state.entries)
  )
  layer, config = block.self_attention, model.config.attention
  rng = np.random.default_rng(seed + 1)
  batch, places = tiny_rollout.B, past.content.shape[2]
  tokens = tiny_model.normal(rng, batch, 3, places, config.width)
  positions = chunk_pass.positions_of(state, 3, window=WINDOW)
  rotations = jax.tree.map(
    lambda x: x[:, 0], model.rotations(positions, model.grid(chunk), batch)
  )
  context = [past, layer.project(tokens)]
  weights = attention_maps.probabilities(layer, tokens, context, rotations)
  content = jnp.concatenate([x.content for x in context], axis=1)
  values = content.reshape(batch, -1, config.d_c) @ layer.w_uv.kernel[...]
  values = values.reshape(batch, -1, config.num_heads, config.head_dim)
  joined = jnp.einsum("BNTPS,BSND->BTPND", weights, values)
  np.testing.assert_allclose(
    layer.attend(tokens, context, rotations),
    layer.w_o(joined.reshape(tokens.shape)),
    rtol=2e-4,
    atol=2e-5,
  )


def test_eight_bits_of_the_cache_hardly_move_shares(seed):
  run = lambda dtype: attention_maps.frame_shares(
    *_pass(*_after(seed, 2, cache_dtype=dtype)), window=WINDOW
  )
  exact, rounded = run(None), run("int8")
  # A frame may lose what another one gains: 0.05 of all attention at most.
  np.testing.assert_allclose(rounded.values, exact.values, atol=0.05)
  assert (np.asarray(rounded.values) != np.asarray(exact.values)).any()


def _pass(model, text, state, chunk):
  return model, state, chunk, 500, text


@pytest.mark.parametrize(
  ("kind", "timestep", "message"),
  [("dense", 0, "for latent attention only"), ("latent", 1001, "0 .clean. to")],
)
def test_what_has_no_shares_is_refused(seed, kind, timestep, message):
  model, text, state, chunk = _after(seed, 0, kind=kind)
  with pytest.raises(ValueError, match=message):
    attention_maps.frame_shares(
      model, state, chunk, timestep, text, window=WINDOW
    )
