"""JAX's flash attention for TPUs, in the interpreter of Pallas."""

import functools
import importlib

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from videomla_jax.costs import attention_shapes
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import library_tpu
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import types

# Two blocks of keys, and the second is not full.
B, L, N, C, R, DN, D, P = 2, 20, 2, 7, 4, 6, 13, 40
VALID = np.asarray([[True, False, True], [False, False, False]])


@pytest.fixture
def draw(seed):
  rng = np.random.default_rng(seed)
  return lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)


def test_latent_values_and_gradients_equal_the_reference(draw):
  ring = types.Keys(draw(B, 3 * P, C), draw(B, 3 * P, R), jnp.asarray(VALID))
  # Blocks of another size than those of the ring.
  own = types.Keys(draw(B, 2 * P, C), draw(B, 2 * P, R), jnp.ones((B, 1), bool))
  queries = types.Queries(draw(B, L, N, DN), draw(B, L, N, R))
  up = types.UpProjections(draw(C, N, DN), draw(C, N, D))
  args = (queries, (ring, own), up)
  run = functools.partial(library_tpu.latent_attention, form="expanded")
  with pltpu.force_tpu_interpret_mode():
    out, pull = jax.vjp(run, *args)
    found = pull(out)
  expected, expected_pull = jax.vjp(reference.latent_attention, *args)
  tolerances.assert_close(out, expected)
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected_pull(out)), strict=True
  ):
    if ours.dtype == jnp.float32:
      tolerances.assert_close(ours, theirs, "float32_gradient")


@pytest.mark.parametrize(
  ("valid", "keys"),
  [
    # Row 0 sees nothing of the first block of 128 keys.
    ([[False, False, True], [True, False, True]], 3 * 80),
    (None, 100),
    (None, 128),
  ],
)
def test_dense_values_equal_the_reference(draw, valid, keys):
  args = draw(B, 140, 1, D), draw(B, keys, 1, D), draw(B, keys, 1, D - 2)
  flags = None if valid is None else jnp.asarray(valid)
  with pltpu.force_tpu_interpret_mode():
    out = library_tpu.dense_attention(*args, flags, scale=0.3)
  seen = types.per_key(types.flags_of(flags, args[1]), num_keys=keys)
  expected = reference.attention(*args, seen, scale=0.3)
  tolerances.assert_close(out, expected)


@pytest.mark.parametrize(
  ("length", "block"),
  # Real lengths: the text, a frame, a chunk, its window, a clip.
  [
    (512, 512),
    (1560, 128),
    (4680, 1024),
    (10920, 1024),
    (32760, 1024),
    (7, 128),
  ],
)
def test_blocks_are_large_and_fill_up_little(length, block):
  sizes = (1024, 512, 256, 128)
  assert library_tpu.block_of(length, sizes) == block


def test_there_is_no_absorbed_form():
  args = attention_shapes.SHAPES["480p"].arguments(jnp.bfloat16)
  with pytest.raises(NotImplementedError, match="has no absorbed form"):
    library_tpu.latent_attention(*args, form="absorbed")


def _on(kind):
  return jax.sharding.use_abstract_mesh(
    jax.sharding.AbstractMesh(
      (1,),
      ("data",),
      axis_types=jax.sharding.AxisType.Auto,
      abstract_device=jax.sharding.AbstractDevice(kind, 1, "tpu"),
    )
  )


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5", "TPU v6 lite"])
def test_it_lowers_for_a_tpu_and_is_taken_there(kind, gradient):
  args = attention_shapes.SHAPES["480p"].arguments(jnp.bfloat16)
  with _on(kind):
    found = api.explain_latent(*args, gradient=gradient)
  assert str(found) == "expanded form by tpu_flash (computed)"
  assert not found.passed_over


def test_a_call_with_few_queries_is_left_to_xla():
  args = attention_shapes.SHAPES["few_queries"].arguments(jnp.bfloat16)
  with _on("TPU v6 lite"):
    found = api.explain_latent(*args)
  name = "absorbed form by xla_chunked (the device is a TPU)"
  assert str(found) == name


@pytest.mark.parametrize("valid", [None, (1, 7)])
def test_dense_attention_takes_it_on_a_tpu(valid):
  array = lambda keys: jax.ShapeDtypeStruct((1, keys, 12, 128), jnp.bfloat16)
  flags = None if valid is None else jax.ShapeDtypeStruct(valid, bool)
  args = array(4680), array(10920), array(10920), flags
  with _on("TPU v5"):
    found = api.explain_dense(*args, scale=0.1)
  assert str(found) == "expanded form by tpu_flash (computed)"


def test_a_jax_without_the_kernel_is_a_reason(monkeypatch):
  def missing(name):
    raise ImportError(f"no {name}")

  monkeypatch.setattr(importlib, "import_module", missing)
  with pytest.raises(NotImplementedError, match=r"tpu_flash: no jax\."):
    library_tpu.dense_attention(
      *(jnp.ones((1, 4, 1, 8)) for _ in range(3)), None, scale=1.0
    )
