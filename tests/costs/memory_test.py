"""Tests of predicted sizes against real arrays and the compiler's figures."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from videomla_jax.costs import memory
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.diffusion import stream
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

_WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6)


@pytest.mark.parametrize("kind", ["latent", "dense"])
@pytest.mark.parametrize("local", [3, 6, 9, None])
@pytest.mark.parametrize("frames", [1, 4, 30])
def test_cache_bytes_are_those_of_real_arrays(
  kind: str, local: int | None, frames: int, seed: int
) -> None:
  model = tiny_model.build(kind, np.random.default_rng(seed))
  window = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=local)
  call = dict(frame=tiny_model.FRAME, window=window, max_frames=frames)
  sizes = memory.needs(model, rows=2, **call)
  held = rollout.empty_cache(model, batch=2, **call)
  arrays = sum(x.nbytes for x in jax.tree.leaves(held.entries))
  assert sizes.cache_bytes == arrays
  slots = held.frame.shape[1]
  scalars = {"latent": 16, "dense": 48}[kind]
  tokens = 2 * slots * tiny_model.TOKENS * 2  # rows, frames, P, layers
  assert arrays == tokens * scalars * 4
  assert sizes.scalars_per_token_layer == scalars
  assert sizes.dense_scalars_per_token_layer == 48
  assert sizes.dense_cache_bytes == tokens * 48 * 4


def test_wan_keeps_what_the_paper_says() -> None:
  model = tiny_model.abstract(wan_config.wan_1p3b(kind="latent"))
  sizes = memory.needs(
    model, rows=1, frame=(60, 104, 16), window=_WINDOW, max_frames=240
  )
  assert sizes.tokens_per_frame == 1560
  assert sizes.scalars_per_token_layer == 224
  assert sizes.dense_scalars_per_token_layer == 3072
  assert sizes.cache_bytes == 4 * 1560 * 30 * 224 * 2 == 83_865_600
  assert sizes.dense_cache_bytes == 4 * 1560 * 30 * 3072 * 2
  assert sizes.visible_frames == 7
  text = "\n".join(sizes.lines())
  for words in ("224 scalars = 448 B", "(-92.7%)", "(13.7x)", "1560"):
    assert words in text


@pytest.mark.parametrize("kind", ["latent", "dense"])
@pytest.mark.parametrize("size", ["small", "middle", "fast", "apart"])
def test_predicted_peak_is_within_a_factor_of_two(size: str, kind: str) -> None:
  kwargs: dict[str, Any] = dict(
    num_layers=2,
    ffn_width=2048,
    learned_grid=None,
    spare_memory=size not in ("fast", "apart"),
  )
  config = wan_config.small(kind=kind, **({} if size == "small" else kwargs))
  frame = (6, 6, 16) if size == "small" else (40, 40, 16)
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  if size == "apart":
    model = jax.eval_shape(wan.with_layers_apart, model)
  sampler = sampling.euler(4, shift=2.0, guidance=None)
  call = dict(frame=frame, window=_WINDOW)
  sizes = memory.needs(model, rows=1, max_frames=240, **call)
  state = jax.eval_shape(
    lambda m: rollout.Rollout(
      rollout.empty_cache(m, batch=1, max_frames=240, **call),
      jax.random.split(jax.random.key(0), 1),
      jnp.zeros((), jnp.int32),
    ),
    model,
  )
  text = jax.ShapeDtypeStruct((1, 4, 64), jnp.float32)
  lowered = stream._next_chunk.lower(
    model, state, text, sampler=sampler, jump_to=None, **call
  )
  measured = lowered.compile().memory_analysis()
  peak = measured.argument_size_in_bytes + measured.temp_size_in_bytes
  assert peak / 2 <= sizes.peak_bytes <= 2 * peak


@pytest.mark.parametrize(
  ("count", "text"),
  [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**40, "1024 GiB")],
)
def test_bytes_read_well(count: int, text: str) -> None:
  assert memory.human(count) == text
