"""Multiply-adds and bytes against traced products and real arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomla_jax.costs import attention_shapes
from videomla_jax.ops.latent_attention import forms as forms_lib
from videomla_jax.ops.latent_attention import types
from videomla_jax.ops.latent_attention import xla_chunked

AT_480P = dict(
  keys=10920, heads=12, content_latent=192, rope=32, content=96, value=128
)


def test_waiting_for_memory_makes_absorbed_cheaper_for_longer():
  def switch(intensity):
    sizes = AT_480P | dict(keys=10920)
    return next(
      n
      for n in range(1, 3000)
      if forms_lib.Sizes(queries=n, **sizes).cheaper_form(intensity)
      == "expanded"
    )

  counted, waited = switch(float("inf")), switch(146.0)
  assert counted == 263
  assert counted < waited < 600
  print(f"expanded is cheaper from {waited} queries on a B200")


def test_bytes_are_those_of_the_arrays():
  # Latents in, keys and values out; read again with queries, output back.
  spec = forms_lib.Sizes(queries=40, **AT_480P)
  project, attend = spec.num_bytes("expanded")
  assert project == 2 * (10920 * 192 + 10920 * 12 * 224)
  assert attend == 2 * (10920 * (12 * 224 + 32) + 40 * 12 * 256)


@pytest.mark.parametrize("name", attention_shapes.SHAPES)
def test_real_shapes_are_consistent(name):
  shape = attention_shapes.SHAPES[name]
  queries, keys, up = shape.arguments(jnp.bfloat16)
  assert forms_lib.sizes_of(queries, keys, up) == shape.sizes
  assert shape.sizes.content + shape.sizes.rope == shape.sizes.value == 128


def _multiply_adds(text):
  """Counts the multiply-adds of every product in a traced function."""
  total = 0
  for equation in text.eqns:
    if equation.primitive.name == "dot_general":
      (contract, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      inner = int(np.prod([left[i] for i in contract], dtype=np.int64))
      total += inner * int(np.prod(equation.outvars[0].aval.shape))
  return total


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_multiply_adds_are_those_of_the_traced_products(form):
  spec = forms_lib.Sizes(**(AT_480P | dict(keys=300)), queries=40)
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  queries = types.Queries(
    shape(1, 40, spec.heads, spec.content), shape(1, 40, spec.heads, spec.rope)
  )
  keys = types.Keys(
    shape(1, 300, spec.content_latent),
    shape(1, 300, spec.rope),
    jax.ShapeDtypeStruct((1, 300), bool),
  )
  up = types.UpProjections(
    shape(spec.content_latent, spec.heads, spec.content),
    shape(spec.content_latent, spec.heads, spec.value),
  )
  run = functools.partial(xla_chunked.latent_attention, form=form)
  traced = jax.make_jaxpr(run)(queries, (keys,), up)
  assert _multiply_adds(traced.jaxpr) == spec.multiply_adds(form)
  assert forms_lib.sizes_of(queries, (keys,), up) == spec


def test_480p_chunk_expanded_costs_at_most_165e9():
  spec = forms_lib.Sizes(queries=4680, **AT_480P)
  assert spec.multiply_adds("expanded") <= 165e9
  assert spec.multiply_adds("absorbed") > 250e9
  assert spec.cheaper_form() == "expanded"


def test_forms_switch_over_near_269_queries_at_1p3b():
  # With many keys; 10,920 of them lower it to 263.
  sizes = AT_480P | dict(keys=10**7)
  forms = [
    forms_lib.Sizes(queries=n, **sizes).cheaper_form() for n in range(1, 600)
  ]
  switch = forms.index("expanded") + 1
  assert switch == 269
  assert set(forms[: switch - 1]) == {"absorbed"}
  assert set(forms[switch - 1 :]) == {"expanded"}
