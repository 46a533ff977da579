"""Tests of counting operations: known products, loops, gradients, networks."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests import tiny_model
from tests import tiny_project
from videomla_jax import sharding
from videomla_jax.costs import flops
from videomla_jax.diffusion import bidirectional
from videomla_jax.models import tiny_decoder
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.training import abstract_step
from videomla_jax.training.stages import table

X = jax.ShapeDtypeStruct((3, 4), jnp.float32)
W = jax.ShapeDtypeStruct((4, 5), jnp.float32)
ONE = 2 * 3 * 4 * 5


def test_products_are_counted_wherever_they_are():
  assert flops.of(jnp.dot, X, W) == ONE
  assert flops.of(jax.jit(jnp.dot), X, W) == ONE
  assert flops.of(jax.checkpoint(lambda x, w: x @ w), X, W) == ONE
  batched = jax.vmap(jnp.dot, in_axes=(0, None))
  many = jax.ShapeDtypeStruct((7, *X.shape), X.dtype)
  assert flops.of(batched, many, W) == 7 * ONE


def test_a_scope_counts_what_is_within_and_its_gradient():
  def inner(x, w):
    with jax.named_scope("attention"):
      return jax.lax.scan(lambda c, _: (c, x @ w), 0, length=3)[1].sum()

  def both(x, w):
    return inner(x, w) + (x @ w).sum()

  count = lambda f, scope: flops.of(f, X, W, scope=scope)
  assert count(both, "") == 4 * ONE
  assert count(both, "attention") == 3 * ONE
  assert count(both, "elsewhere") == 0
  # A gradient has two products for each one.
  gradient = lambda x, w: jax.grad(lambda xw: both(*xw))((x, w))
  inside = count(gradient, "attention")
  assert 2 * 3 * ONE <= inside <= count(gradient, "") - 2 * ONE


def test_loops_count_as_often_as_they_run():
  def loop(x, w, end):
    return jax.lax.fori_loop(0, end, lambda i, y: y + jnp.sum(x @ w), 0.0)

  assert flops.of(lambda x, w: loop(x, w, 6), X, W) == 6 * ONE
  end = jax.ShapeDtypeStruct((), jnp.int32)
  assert flops.of(loop, X, W, end, trips=1.5) == 1.5 * ONE
  either = lambda x, w, c: jax.lax.cond(c, lambda: (x @ w) @ w.T, lambda: x)
  flag = jax.ShapeDtypeStruct((), jnp.bool_)
  assert flops.of(either, X, W, flag) == 2 * ONE


def test_a_gradient_costs_two_more_products_and_remat_a_third():
  def loss(w, x):
    return jnp.sum((x @ w) ** 2)

  assert flops.of(jax.grad(loss), W, X) == 2 * ONE  # x has no gradient
  both = jax.grad(loss, argnums=(0, 1))
  assert flops.of(both, W, X) == 3 * ONE
  again = jax.grad(jax.checkpoint(loss), argnums=(0, 1))
  assert flops.of(again, W, X) == 4 * ONE


def test_convolutions_are_counted():
  image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)
  convolve = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  expected = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
  assert flops.of(convolve, image, kernel) == expected


def test_a_dense_network_has_the_operations_of_its_parts():
  frames, batch = 3, 2
  config = tiny_model.config("dense")
  model = tiny_model.abstract(config)
  shape = jax.ShapeDtypeStruct
  found = flops.of(
    bidirectional.velocity,
    model,
    shape((batch, frames, *tiny_model.FRAME), jnp.float32),
    shape((batch,), jnp.float32),
    shape((batch, *tiny_model.TEXT), jnp.float32),
  )
  width, ffn = config.attention.width, config.ffn_width
  tokens, words = frames * tiny_model.TOKENS, tiny_model.TEXT[0]
  per_layer = (
    6 * tokens * width**2  # q, k, v, out; cross-attention: q, out
    + 2 * words * width**2  # cross-attention: k, v
    + 2 * tokens * (tokens + words) * width
    + 2 * tokens * width * ffn
  )
  layers = 2 * batch * config.num_layers * per_layer
  # Embeddings of patches, time and text are the rest.
  assert layers < found < 2 * layers


@pytest.mark.parametrize("name", ["pretraining", "teacher_forcing", "dmd"])
def test_the_real_step_costs_what_its_tokens_and_parameters_say(name):
  config = tiny_project.config(name, "wan_1p3b")
  config.data.batch_size = 1
  stage, settings = table.read(config)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  step, arguments = abstract_step.step_and_arguments(stage, settings, mesh)
  found = flops.of(step, *arguments, trips=1.5)
  width = 1536
  tokens = 21 * 30 * 52
  # Projections that every token passes in each of 30 layers, dense.
  forward = 2 * tokens * 30 * (6 * width**2 + 2 * width * 8960)
  # Three passes' worth for a gradient, and one again for remat.
  passes = {
    "pretraining": 4,
    "teacher_forcing": 8,  # a clean copy beside the noisy one
    # Student: 1.5 + exit + commit, gradient; scores; 5 critics.
    "dmd": 3.5 + 4 + 3 + 5 * (3.5 + 4),
  }[name]
  print(f"{name}: {found:.3e} operations, projections {passes * forward:.3e}")
  assert 1 < found / (passes * forward) < 4  # the rest is attention


def test_the_tiny_decoder_needs_a_30th_of_the_operations() -> None:
  latents = jax.ShapeDtypeStruct((1, 3, 60, 104, 16), jnp.float32)
  counts = {}
  for name, decoder in {
    "tiny": tiny_decoder.abstract(tiny_decoder.TinyDecoderConfig()),
    "wan": vae.abstract(vae_coders.wan_vae()),
  }.items():
    state = jax.eval_shape(lambda d=decoder: d.start(1, 60, 104))
    later = dataclasses.replace(state, first=False)
    counts[name] = flops.of(
      lambda d, x, m, s=later: d.decode_chunk(
        x, dataclasses.replace(s, memory=m)
      ),
      *(decoder, latents, later.memory),
    )
  # docs/wan.md: a chunk of twelve frames of 480 x 832.
  assert counts["tiny"] == pytest.approx(1.313e12, rel=5e-3)
  assert counts["wan"] == pytest.approx(38.79e12, rel=5e-3)
