"""Compiles attention with its gradient for an H100; `kernels_test` starts it.

python -m tests.aot.gradient_program SHAPE

SHAPE is a key of `attention_shapes.SHAPES`, or dense. Mosaic writes where its
environment says.
"""

import functools
import sys

import jax
import jax.numpy as jnp

from videomla_jax.costs import aot
from videomla_jax.costs import attention_shapes
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import types


def dense():
  """A layer of 21 frames, of which each may be empty, and its arguments."""
  array = lambda n: jax.ShapeDtypeStruct((1, n, 12, 128), "bfloat16")
  valid = jax.ShapeDtypeStruct((1, 21), bool)

  def gradient(query, key, value, valid, d_out):
    def of(*arrays):
      return api.dense_attention(
        *arrays, valid, scale=128**-0.5, implementation="pallas_mosaic_gpu"
      )

    return jax.vjp(of, query, key, value)[1](d_out)

  return gradient, (
    *(array(4680), array(32760), array(32760)),
    *(valid, array(4680)),
  )


def latent(shape):
  """A call of the rollout in the expanded form, and its arguments."""
  call = attention_shapes.SHAPES[shape]
  queries, keys, up = call.arguments(jnp.bfloat16)
  value = (*queries.content.shape[:3], up.value.shape[-1])
  run = functools.partial(
    api.latent_attention, form="expanded", implementation="pallas_mosaic_gpu"
  )

  def gradient(queries, keys, up, d_out):
    latents = [(k.content, k.rope) for k in keys]

    def of(queries, latents, up):
      pairs = zip(latents, keys, strict=True)
      seen = [types.Keys(*x, k.valid) for x, k in pairs]
      return run(queries, seen, up)

    return jax.vjp(of, queries, latents, up)[1](d_out)

  return gradient, (queries, keys, up, jax.ShapeDtypeStruct(value, "bfloat16"))


if __name__ == "__main__":
  name = sys.argv[1]
  function, arguments = dense() if name == "dense" else latent(name)
  devices = aot.mesh("h100")
  program = aot.compile_for(
    function, *aot.place(arguments, devices), devices=devices
  )
  print(f"{name}: {program.temporary_bytes / 1e6:.0f} MB of temporaries")
