"""Hopper's gradient in Mosaic's interpreter, with its race detector."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.latent_attention import mosaic_process
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu as kernel
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper_config as hopper_plan,
)
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper_gradient_config as gradient_plan,
)
from videomla_jax.ops.latent_attention import pallas_triton
from videomla_jax.ops.latent_attention import types


@pytest.mark.slow
@pytest.mark.parametrize("part", ["latent", "several", "without_keys", "dense"])
def test_gradients_races_and_repetition(seed, part):
  out = mosaic_process.run("mosaic_gradient_cases", part, str(seed))
  assert "no race" in out


def _gradient(flash, arrays, *, shared):
  """Gradients of queries, content and values of one segment."""

  def total(content, rope, key, key_rope, value):
    valid = jnp.ones((1, 1), bool)
    segment = types.KeyValue(key, key_rope, None if shared else value, valid)
    queries = types.Queries(content, rope)
    return flash(queries, (segment,), scale=0.2).astype(jnp.float32).sum()

  return jax.grad(total, (0, 1, 2, 3) if shared else (0, 1, 2, 3, 4))(*arrays)


@pytest.mark.parametrize("case", ["absorbed", "Blackwell", "wide"])
def test_other_gradients_are_those_of_triton(seed, case):
  width = 256 if case == "wide" else 32
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), "bfloat16")
  arrays = (
    *(draw(1, 5, 2, width), draw(1, 5, 2, 16)),
    *(draw(1, 24, 2, width), draw(1, 24, 16), draw(1, 24, 2, 16)),
  )
  config = plan.Config() if case == "Blackwell" else hopper_plan.Config(keys=64)
  ours = functools.partial(kernel.flash, config=config)
  found, expected = (
    _gradient(
      functools.partial(f, interpret=True), arrays, shared=case == "absorbed"
    )
    for f in (ours, pallas_triton.flash)
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def _widths(content=96, rope=32, value=128, *, shared=False):
  return plan.Widths(content=content, rope=rope, value=value, shared=shared)


def test_what_has_no_kernel_says_why():
  refusal = gradient_plan.refusal
  assert "expanded form" in refusal(_widths(192, 32, 192, shared=True))
  assert "272 channels exceed 256" in refusal(_widths(value=144))
  assert not refusal(_widths())
  assert not refusal(_widths(128, 0, 128))


@pytest.mark.parametrize("of_keys", [False, True])
@pytest.mark.parametrize("rope", [0, 16, 32, 64, 96])
def test_shared_memory_is_counted_and_fits(of_keys, rope):
  widths = _widths(content=128 - rope, rope=rope)
  config = gradient_plan.config_of(widths, of_keys=of_keys)
  assert gradient_plan.smem_bytes(widths, config) <= plan.SMEM_BYTES
  scratch = gradient_plan.scratch(widths, config, jnp.bfloat16)
  numbers = sum(
    np.prod(x.shape) * jnp.dtype(x.dtype).itemsize
    for x in scratch.values()
    if hasattr(x, "dtype")
  )
  counted = gradient_plan.smem_bytes(widths, config)
  assert counted - plan.HIDDEN_SMEM_BYTES == numbers
  # Every copy to a tile or a block arrives once.
  for side in ("tile", "block"):
    copies = [
      n
      for n, x in scratch.items()
      if n.startswith(side) and hasattr(x, "dtype")
    ]
    assert scratch[f"{side}_full"].num_arrivals == len(copies)
