"""The DiT: one network whatever its switches, patches, sizes."""

import dataclasses
import functools
import inspect
import weakref

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax.models import layers
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

KINDS = pytest.mark.parametrize("kind", ["latent", "dense"])
B, G, T = 2, 3, 2


def _positions():
  frame = jnp.tile(jnp.arange(T, dtype=jnp.int32), (1, G, 1))
  return window_lib.Positions(frame, frame, jnp.ones((1, G, T), bool))


def _own(own, _):
  return [own]


@functools.partial(jax.jit, static_argnames="first")
def _run(model, latents, timestep, text, *, first=0):
  return model.velocity_and_entries(
    latents,
    timestep,
    text,
    _positions(),
    context_of=_own,
    keep=slice(first, None),
  )


@jax.jit
def _gradients(model, latents, timestep, text, cotangent):
  def scalar(model, text):
    out, _ = _run(model, latents, timestep, text)
    return (out * cotangent).sum()

  return jax.grad(scalar, argnums=(0, 1))(model, text)


def _inputs(rng):
  latents = tiny_model.normal(rng, B, G, T, *tiny_model.FRAME)
  timestep = jnp.asarray(rng.uniform(0, 1000, (B, G, T)), jnp.float32)
  return latents, timestep, tiny_model.normal(rng, B, *tiny_model.TEXT)


@pytest.mark.parametrize(
  ("kind", "switches"),
  [
    ("latent", dict(scan_blocks=False)),
    ("latent", dict(scan_blocks=False, remat=True)),
    ("latent", dict(scan_blocks=True, remat=True)),
    ("dense", dict(scan_blocks=False, remat=True)),
  ],
  ids=str,
)
def test_switches_change_neither_output_nor_gradient(seed, kind, switches):
  results = []
  for kwargs in (dict(scan_blocks=True), switches):
    rng = np.random.default_rng(seed)
    model = tiny_model.build(kind, rng, **kwargs)
    inputs = _inputs(rng)
    cotangent = tiny_model.normal(rng, *inputs[0].shape)
    gradients = _gradients(model, *inputs, cotangent)
    leaves = [np.asarray(g) for g in jax.tree.leaves(gradients)]
    results.append((_run(model, *inputs), leaves))
  (plain, plain_gradients), (other, other_gradients) = results
  jax.tree.map(tolerances.assert_close, other, plain)
  # Gradients that cancel to rounding are measured by the largest of all.
  largest = max(np.abs(g).max() for g in plain_gradients)
  for a, b in zip(other_gradients, plain_gradients, strict=True):
    assert np.abs(a - b).max() <= 5e-5 * max(np.abs(b).max(), 1e-2 * largest)


@KINDS
def test_layers_apart_are_those_of_the_stack(seed, kind):
  rng = np.random.default_rng(seed)
  model = tiny_model.build(kind, rng, spare_memory=False)
  apart = wan.with_layers_apart(model)
  assert wan.with_layers_apart(apart) is apart
  assert apart.layers_apart
  assert not model.layers_apart
  for number in range(model.config.num_layers):
    stack, own = (jax.tree.leaves(x.block(number)) for x in (model, apart))
    for a, b in zip(stack, own, strict=True):
      np.testing.assert_array_equal(a, b)
  inputs = _inputs(rng)
  jax.tree.map(
    tolerances.assert_close, _run(apart, *inputs), _run(model, *inputs)
  )


def test_a_stack_is_freed_while_it_is_taken_apart(seed, monkeypatch):
  kept = [tiny_model.build("latent", np.random.default_rng(seed))]
  kept[0].config = dataclasses.replace(kept[0].config, spare_memory=False)
  stacks = [weakref.ref(x) for x in jax.tree.leaves(kept[0].blocks)]
  alive = []

  def unstack(x):
    alive.append(sum(ref() is not None for ref in stacks))
    return [*x]

  monkeypatch.setattr(jnp, "unstack", unstack)
  # Checks of shapes keep the arguments of what they check.
  inspect.unwrap(wan.with_layers_apart)(kept.pop())
  # The one that is taken apart, and those that wait.
  assert alive == [*range(len(stacks), 0, -1)]


def test_slices_of_a_stack_are_refused_apart(seed):
  model = tiny_model.build("latent", np.random.default_rng(seed))
  with pytest.raises(ValueError, match="spare_memory=True works through slice"):
    wan.with_layers_apart(model)


@KINDS
@pytest.mark.parametrize("scan_blocks", [True, False])
def test_keep_drops_only_outputs_that_nobody_wants(seed, kind, scan_blocks):
  rng = np.random.default_rng(seed)
  model = tiny_model.build(kind, rng, scan_blocks=scan_blocks)
  inputs = _inputs(rng)
  whole, all_entries = _run(model, *inputs)
  kept, entries = _run(model, *inputs, first=2)
  tolerances.assert_close(kept, whole[:, 2:])
  jax.tree.map(tolerances.assert_close, entries, all_entries)


@KINDS
def test_prompt_of_another_row_has_exactly_zero_gradient(seed, kind):
  rng = np.random.default_rng(seed)
  model, inputs = tiny_model.build(kind, rng), _inputs(rng)
  only_first = jnp.zeros(inputs[0].shape).at[0].set(1.0)
  _, text = _gradients(model, *inputs, only_first)
  assert (text[1] == 0).all()
  assert (text[0] != 0).all()


@KINDS
def test_chunks_side_by_side_do_not_mix(seed, kind):
  rng = np.random.default_rng(seed)
  model, (latents, timestep, text) = tiny_model.build(kind, rng), _inputs(rng)
  out, _ = _run(model, latents, timestep, text)
  changed = latents.at[:, 1:].set(0.0)
  other, _ = _run(model, changed, timestep, text)
  np.testing.assert_array_equal(out[:, 0], other[:, 0])
  assert (np.asarray(out[:, 1:]) != np.asarray(other[:, 1:])).all()


def _identity_patches(rng, channels=16):
  """A network whose patch embedding copies the patch."""
  width = channels * 4
  config = tiny_model.config("dense", channels=channels)
  model = tiny_model.build("dense", rng, channels=channels)
  model.patch_embed.kernel[...] = jnp.eye(width)[:, : config.width]
  model.patch_embed.bias[...] = jnp.zeros(config.width)
  return model


def test_patchify_orders_channel_row_column(seed):
  model = _identity_patches(np.random.default_rng(seed))
  latents = np.zeros((1, 1, 1, 4, 2, 16), np.float32)
  latents[0, 0, 0, 2 + 1, 0, 5] = 1.0  # second patch, row 1, channel 5
  tokens = np.asarray(model.patchify(jnp.asarray(latents)))
  # docs/method.md, section 2.12: element 5 * 4 + 1 * 2 + 0 = 22.
  assert np.argwhere(tokens).tolist() == [[0, 0, 0, 1, 22]]


def test_unpatchify_orders_row_column_channel(seed):
  model = _identity_patches(np.random.default_rng(seed))
  tokens = np.zeros((1, 1, 1, 2, 64), np.float32)
  tokens[0, 0, 0, 1, 37] = 1.0  # docs/method.md, section 2.12: (1, 0, 5)
  grid = model.grid(jnp.zeros((1, 1, 1, 4, 2, 16)))
  latents = np.asarray(model.unpatchify(jnp.asarray(tokens), grid))
  assert np.argwhere(latents).tolist() == [[0, 0, 0, 3, 0, 5]]


def test_unpatchify_inverts_the_patches_of_patchify(seed):
  rng = np.random.default_rng(seed)
  model = _identity_patches(rng, channels=6)  # 24 = the width
  latents = tiny_model.normal(rng, 2, 3, 2, 6, 4, 6)
  tokens = model.patchify(latents)
  tokens = rearrange(tokens, "... (C p q) -> ... (p q C)", p=2, q=2)
  back = model.unpatchify(tokens, model.grid(latents))
  np.testing.assert_array_equal(back, latents)


def test_time_embedding_is_cosines_then_sines():
  at_1000 = np.asarray(layers.sinusoid(jnp.asarray(1000.0), dim=256))
  np.testing.assert_allclose(at_1000[[0, 128]], [0.562379, 0.826880], atol=1e-5)
  at_0 = np.asarray(layers.sinusoid(jnp.asarray(0.0), dim=256))
  np.testing.assert_array_equal(at_0, [1.0] * 128 + [0.0] * 128)


def test_dense_1p3b_has_the_published_parameters():
  model = tiny_model.abstract(wan_config.wan_1p3b(kind="dense"))
  count = sum(leaf.size for leaf in jax.tree.leaves(model))
  assert count == 1_418_996_800


def test_dense_14b_is_ten_times_1p3b():
  model = tiny_model.abstract(wan_config.wan_14b())
  count = sum(leaf.size for leaf in jax.tree.leaves(model))
  assert 14.2e9 < count < 14.4e9


def test_latent_1p3b_differs_in_self_attention_only():
  dense, latent = (
    tiny_model.abstract(wan_config.wan_1p3b(kind=kind))
    for kind in ("dense", "latent")
  )
  shapes = []
  for model in (dense, latent):
    paths = jax.tree_util.tree_leaves_with_path(model)
    named = {jax.tree_util.keystr(p): leaf.shape for p, leaf in paths}
    shapes.append({k: v for k, v in named.items() if "self_attention" not in k})
  assert shapes[0] == shapes[1]


def test_head_of_a_new_network_is_zero():
  config = tiny_model.config("latent")
  head = jax.jit(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)).head.kernel[...])
  # The first prediction is a zero velocity, as Wan's is.
  assert (head() == 0).all()


def test_learned_grid_makes_rows_and_columns_differ(seed):
  rng = np.random.default_rng(seed)
  model = tiny_model.build("latent", rng, learned_grid=(2, 1))
  latents, timestep, text = _inputs(rng)
  out, _ = _run(model, latents, timestep, text)
  assert out.shape == latents.shape
  shifted = model.patchify(latents) - model.grid_embed[...]
  model.grid_embed[...] = jnp.zeros_like(model.grid_embed[...])
  tolerances.assert_close(model.patchify(latents), shifted)


def test_latents_that_patches_do_not_tile_are_refused(seed):
  model = tiny_model.build("latent", np.random.default_rng(seed))
  with pytest.raises(ValueError, match="multiple of the patch 2"):
    model.grid(jnp.zeros((1, 1, 1, 3, 2, 2)))
