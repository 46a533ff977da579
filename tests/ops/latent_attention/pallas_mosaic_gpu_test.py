"""The kernels in Mosaic's interpreter, with its race detector."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.ops.latent_attention import mosaic_process
from videomla_jax.costs import attention_shapes
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu as kernel
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper_config as hopper_plan,
)
from videomla_jax.ops.latent_attention import types


@pytest.mark.slow
@pytest.mark.parametrize("part", ["items", "widths"])
@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_values_races_and_repetition(seed, form, part):
  out = mosaic_process.run("mosaic_cases", part, form, str(seed))
  assert out.count("no race") == out.count("case") >= 5


@pytest.mark.slow
@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_values_races_and_repetition_on_hopper(seed, form):
  out = mosaic_process.run("mosaic_cases", "hopper", form, str(seed))
  assert out.count("no race") == out.count("case") >= 2


def _refused(
  content=96, rope=32, value=128, dtype=jnp.bfloat16, tokens=16, config=None
):
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, dtype)
  queries = types.Queries(shape(1, 8, 2, content), shape(1, 8, 2, rope))
  segment = jax.eval_shape(
    lambda: types.KeyValue(
      jnp.zeros((1, 3 * tokens, 2, content), dtype),
      jnp.zeros((1, 3 * tokens, rope), dtype),
      jnp.zeros((1, 3 * tokens, 2, value), dtype),
      jnp.ones((1, 3), bool),
    )
  )
  with pytest.raises(NotImplementedError) as error:
    jax.eval_shape(
      lambda q, s: kernel.flash(q, (s,), scale=1.0, config=config),
      queries,
      segment,
    )
  return str(error.value)


@pytest.mark.parametrize(
  ("made_for", "registers_or_columns"),
  [
    (plan, "of 512 columns of tensor memory"),
    (hopper_plan, "224 of 168 registers of a thread"),
  ],
)
def test_refusals_give_the_numbers(made_for, registers_or_columns):
  # Without a configuration it is Blackwell's, as in any interpreter.
  config = hopper_plan.Config() if made_for is hopper_plan else None
  refused = functools.partial(_refused, config=config)
  assert "dtype float32" in refused(dtype=jnp.float32)
  assert "width 40 is no multiple of 16" in refused(content=40)
  assert "frames of 9 keys are no multiple of 8" in refused(tokens=9)
  assert "value width 272 exceeds 256" in refused(content=16, value=272)
  wide = refused(content=512, value=256)
  assert registers_or_columns in wide
  assert "bytes of shared memory" in wide
  by_hand = made_for.Config(stages=9)
  assert "bytes of shared memory" in _refused(config=by_hand)


def test_keys_without_a_positional_part_are_for_hopper():
  assert "for Blackwell needs keys with a positional part" in _refused(rope=0)
  # What is refused is something else.
  config = hopper_plan.Config(stages=9)
  assert "bytes of shared memory" in _refused(rope=0, config=config)


def _plan(name, form, made_for=plan):
  """Widths and the configuration of a real shape, one stream."""
  spec = attention_shapes.SHAPES[name].sizes
  latent = spec.content_latent
  if form == "expanded":
    widths = (spec.content, spec.value, spec.queries, spec.heads)
  else:
    widths = (latent, latent, spec.queries * spec.heads, 1)
  content, value, rows, heads = widths
  channels = plan.Widths(
    content=content, rope=spec.rope, value=value, shared=form == "absorbed"
  )
  return channels, made_for.config_of(channels, rows=rows, heads=heads)


@pytest.mark.parametrize("name", attention_shapes.SHAPES)
@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_memory_of_real_shapes_is_within_limits(name, form):
  widths, config = _plan(name, form)
  if plan.refusal(widths, config):
    # Wide outputs leave no tensor memory for scores: Triton's case.
    assert form == "absorbed"
    assert widths.value > plan.MAX_VALUE
    return
  assert widths.tmem_columns(config) <= plan.TMEM_COLUMNS
  assert widths.smem_bytes(config) <= plan.SMEM_BYTES


@pytest.mark.parametrize("name", attention_shapes.SHAPES)
def test_hopper_takes_real_shapes(name):
  widths, config = _plan(name, "expanded", hopper_plan)
  assert not hopper_plan.refusal(widths, config)
  assert (config.tiles, config.keys) == (2, 128) or "few" in name
  widths, config = _plan(name, "absorbed", hopper_plan)
  # Wide outputs leave no registers for scores.
  refused = hopper_plan.refusal(widths, config)
  assert bool(refused) == (widths.value > 240)
  assert refused or config.keys == (128 if widths.value <= 128 else 64)


def test_two_tiles_where_they_fit_and_shorten_the_work():
  tiles = lambda *args: _plan(*args)[1].tiles
  assert tiles("480p", "expanded") == tiles("480p_dc128", "absorbed") == 2
  # S and O of two tiles of 192 columns leave room for 64 keys only.
  assert tiles("480p", "absorbed") == 1
  # Twelve heads of one tile: nothing to pair.
  assert tiles("few_queries", "expanded") == 1
  # A pair takes longer than a tile: not if every tile has a core of its own.
  narrow = plan.Widths(content=96, rope=32, value=128, shared=False)
  config_of = functools.partial(plan.config_of, narrow, heads=1)
  assert config_of(rows=148 * 128).tiles == 1
  assert config_of(rows=148 * 128 + 1).tiles == 2


@pytest.mark.parametrize("tiles", [1, 2])
def test_waves_count_the_items_of_the_busiest_core(tiles):
  config = plan.Config(tiles=tiles, cores=4)
  rows, heads = 5 * config.item_rows - 1, 3
  items = [(head, i) for head in range(heads) for i in range(5)]
  assert config.waves(rows, heads) == len(items[:: config.cores]) == 4
