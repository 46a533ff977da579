"""Latents in eight bits: XLA's implementations and the count of bytes.

The kernels' own tests have their cases in eight bits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from tests.ops.latent_attention import kernel_suite as suite
from videomla_jax.costs import attention_shapes
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import xla_chunked

FUNCTIONS = {
  "reference": reference.latent_attention,
  **{
    f"{form}-{block}": functools.partial(
      xla_chunked.latent_attention, form=form, block=block
    )
    for form in ("expanded", "absorbed")
    for block in (8, 512)
  },
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("stored", sorted(quantise.LARGEST))
def test_results_are_those_of_what_the_bytes_stand_for(seed, name, stored):
  args = suite.in_eight_bits(suite.inputs(seed), stored)
  out = jax.jit(FUNCTIONS[name])(*args)
  tolerances.assert_close(np.asarray(out), suite.paper(*args))


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
@pytest.mark.parametrize("stored", ["int8", "float8"])
def test_bytes_of_eight_bit_latents_are_counted(form, stored):
  plain, eight = (
    attention_shapes.SHAPES[n] for n in ("480p", f"480p_{stored}")
  )
  ring = eight.arguments(jnp.bfloat16)[1][0].content
  saved = sum(plain.sizes.num_bytes(form)) - sum(eight.sizes.num_bytes(form))
  stored_bytes = sum(x.size * x.dtype.itemsize for x in ring)
  assert stored_bytes == 4 * 1560 * (192 + 2)
  assert saved == 4 * 1560 * 192 * 2 - stored_bytes
