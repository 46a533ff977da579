"""A rollout takes constant memory, and what is accounted for."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from tests import tiny_model
from tests import tiny_rollout
from videomla_jax.diffusion import rollout
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import window as window_lib

B, FRAME, WINDOW = tiny_rollout.B, tiny_rollout.FRAME, tiny_rollout.WINDOW


def _compiled(model, text, sampler, chunks, window=WINDOW):
  state = jax.eval_shape(
    lambda: rollout.Rollout(
      rollout.empty_cache(
        model,
        batch=text.shape[0],
        frame=FRAME,
        window=window,
        max_frames=10**6,
      ),
      jax.random.split(jax.random.key(0), B),
      jnp.zeros((), jnp.int32),
    )
  )
  lowered = rollout.scan_chunks.lower(
    model,
    state,
    text,
    window=window,
    sampler=sampler,
    chunks=chunks,
    frame=FRAME,
  )
  return lowered.compile(), state.cache


def _largest_buffer(text):
  """Elements of the largest array in a compiled program."""
  shapes = re.findall(r"\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)
  return max(math.prod(map(int, s.split(","))) for s in set(shapes))


@pytest.mark.parametrize("scan_blocks", [True, False])
@pytest.mark.parametrize("kind", ["latent", "dense"])
def test_minute_ten_takes_the_memory_of_second_ten(kind, scan_blocks):
  model, text, _, sampler = tiny_rollout.setup(
    0, kind=kind, scan_blocks=scan_blocks
  )
  results = []
  for seconds in (10, 600):
    chunks = 4 * seconds // 3  # 4 latent frames per second
    compiled, cache = _compiled(model, text, sampler, chunks)
    memory = compiled.memory_analysis()
    video = chunks * B * 3 * math.prod(FRAME) * 4
    outputs = memory.output_size_in_bytes - video
    results.append(
      (
        memory.temp_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.argument_size_in_bytes,
        outputs,
      )
    )
    assert memory.alias_size_in_bytes >= cache_lib.num_bytes(cache)
  assert results[0] == results[1]


def test_no_buffer_is_larger_than_the_accounted_ones():
  window = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=60)
  model, text, _, sampler = tiny_rollout.setup(0, num_layers=3)
  compiled, cache = _compiled(model, text, sampler, 2, window)
  config = model.config
  queries = 3 * tiny_model.TOKENS
  keys = queries + (1 + 57) * tiny_model.TOKENS
  heads = config.attention.num_heads
  accounted = {
    "weights": max(leaf.size for leaf in jax.tree.leaves(model)),
    "cache": max(leaf.size for leaf in jax.tree.leaves(cache.entries)),
    "expanded keys": B * keys * heads * config.attention.head_dim,
    "scores": B * heads * queries * min(keys, 512),
    "queries folded": B * queries * heads * config.attention.d_c,
    "activations": B * queries * max(config.ffn_width, 6 * config.width),
    "video": 2 * B * 3 * math.prod(FRAME),
  }
  assert _largest_buffer(compiled.as_text()) <= max(accounted.values())


@pytest.mark.parametrize("kind", ["latent", "dense"])
def test_temporaries_do_not_hold_a_second_cache(kind):
  # Temporaries grow with the keys of one layer, whatever the number of layers.
  window = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=203)
  temporaries = []
  for num_layers in (2, 32):
    model, text, _, sampler = tiny_rollout.setup(
      0, kind=kind, num_layers=num_layers
    )
    compiled, cache = _compiled(model, text, sampler, 2, window)
    temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
  assert temporaries[1] < cache_lib.num_bytes(cache) / 2
  assert temporaries[1] <= 1.05 * temporaries[0]
