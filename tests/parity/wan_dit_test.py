"""The bidirectional dense network against the original Wan2.1 code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from tests.parity import goldens
from videomla_jax import shapes
from videomla_jax.models import layers
from videomla_jax.models import wan_block
from videomla_jax.models import window as window_lib
from videomla_jax.ops import rope

_NAME = "wan_dit"
_FRAMES = 6
_GRID = shapes.Grid(rows=2, columns=3)


def _positions() -> window_lib.Positions:
  return window_lib.all_together(_FRAMES)


def _latents() -> jnp.ndarray:
  """Input [B, C, F, H, W] as one chunk [B, G, T, H, W, C]."""
  return jnp.asarray(np.moveaxis(goldens.load(_NAME)["in/x"], 1, -1)[:, None])


def _tokens(name: str) -> jnp.ndarray:
  """Golden [B, F P, ...] as [B, G, T, P, ...]."""
  x = goldens.load(_NAME)[name]
  return jnp.asarray(x.reshape(len(x), 1, _FRAMES, -1, *x.shape[2:]))


def _own(own, past):
  del past
  return [own]


def _block(i: int = 0) -> wan_block.Block:
  return jax.tree.map(lambda p: p[i], goldens.model(_NAME).blocks)


def _matches(ours, name: str) -> None:
  golden = goldens.load(_NAME)[name]
  tolerances.assert_close(np.reshape(ours, golden.shape), golden, "golden")


def test_velocity_equals_the_original() -> None:
  golden, model = goldens.load(_NAME), goldens.model(_NAME)
  time = jnp.broadcast_to(golden["in/t"][:, None, None], (2, 1, _FRAMES))
  run = jax.jit(lambda m, *x: m.velocity_and_entries(*x, context_of=_own)[0])
  out = run(model, _latents(), time, golden["in/text"], _positions())
  tolerances.assert_close(
    np.moveaxis(out[:, 0], -1, 1), golden["out/v"], "golden"
  )


def test_patches_equal_the_original() -> None:
  _matches(goldens.model(_NAME).patchify(_latents()), "mid/patch_tokens")


def test_time_path_equals_the_original() -> None:
  golden, model = goldens.load(_NAME), goldens.model(_NAME)
  sinusoid = layers.sinusoid(jnp.asarray(golden["in/t"]), dim=16)
  e = model.time_embed(sinusoid)
  _matches(sinusoid, "mid/sinusoid")
  _matches(e, "mid/e")
  _matches(model.time_project(jax.nn.silu(e)), "mid/e0")


def test_text_path_equals_the_original() -> None:
  golden, model = goldens.load(_NAME), goldens.model(_NAME)
  _matches(model.text_embed(jnp.asarray(golden["in/text"])), "mid/text_tokens")


@pytest.mark.parametrize("i", [0, 1])
def test_block_equals_the_original(i: int) -> None:
  golden, model = goldens.load(_NAME), goldens.model(_NAME)
  x = _tokens("mid/patch_tokens" if i == 0 else "mid/block0_out")
  e0 = jnp.asarray(golden["mid/e0"])[:, None, None]
  time = jnp.broadcast_to(e0, (2, 1, _FRAMES, *e0.shape[3:]))
  text = jnp.asarray(golden["mid/text_tokens"])
  rotations = model.rotations(_positions(), _GRID, 2)

  @jax.jit
  def run(block, x, time, text, rotations):
    seen = wan_block.Pass(
      time=time, text=text, rotations=rotations, context_of=_own
    )
    return block(x, seen)

  out, entry = run(_block(i), x, time, text, rotations)
  _matches(out, f"mid/block{i}_out")
  if i == 0:  # Entries are what the cache stores: keys are not rotated.
    _matches(entry.key, "mid/block0_sa_k_normed")
    _matches(entry.value, "mid/block0_sa_v")


def test_sublayers_equal_the_original() -> None:
  golden, block = goldens.load(_NAME), _block()
  x = _tokens("mid/block0_sa_in")[:, 0]
  layer = block.self_attention
  rotations = goldens.model(_NAME).rotations(_positions(), _GRID, 2)
  rotations = jax.tree.map(lambda leaf: leaf[:, 0], rotations)
  _matches(layer.query_norm(layer.query(x)), "mid/block0_sa_q_normed")
  _matches(layer.attend(x, [layer.project(x)], rotations), "mid/block0_sa_out")
  text = jnp.asarray(golden["mid/text_tokens"])
  out = block.cross_attention(_tokens("mid/block0_ca_in"), text)
  _matches(out, "mid/block0_ca_out")
  _matches(block.ffn(_tokens("mid/block0_ffn_in")), "mid/block0_ffn_out")


def test_head_equals_the_original() -> None:
  golden, model = goldens.load(_NAME), goldens.model(_NAME)
  x = jnp.asarray(golden["mid/block1_out"])
  m = model.head_modulation[...] + golden["mid/e"][:, None]  # B 2 E
  x = layers.layer_norm(x) * (1 + m[:, 1:]) + m[:, :1]
  _matches(model.head(x), "mid/head_out")


@pytest.mark.parametrize("offset", [0, 5, 900])
def test_rotation_equals_the_original(offset: int) -> None:
  golden = goldens.load(_NAME)
  query = jnp.asarray(golden["rope/q"])
  bands = rope.wan_bands(query.shape[-1])
  frame = jnp.arange(offset, offset + _FRAMES)[None]
  turned = rope.rotate(query, rope.rotation(frame, grid=_GRID, bands=bands))
  tolerances.assert_close(
    turned, golden[f"rope/rotated_offset{offset}"], "golden_rotation"
  )


def test_angles_equal_the_originals_table() -> None:
  golden = goldens.load(_NAME)
  frames, bands = np.arange(64), rope.wan_bands(16)
  angles = [frames[:, None] * band for band in bands]
  angles = np.concatenate(angles, axis=1)
  np.testing.assert_allclose(
    np.cos(angles), golden["rope/table_cos"], atol=5e-7
  )
  np.testing.assert_allclose(
    np.sin(angles), golden["rope/table_sin"], atol=5e-7
  )
