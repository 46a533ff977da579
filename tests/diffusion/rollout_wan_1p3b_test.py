"""The real sizes: a minute at 480 x 832 lowered and compiled, never run."""

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

_FRAME = (60, 104, 16)
_MINUTE = 240  # latent frames
_WINDOW = window_lib.Window()


@pytest.mark.parametrize(
  ("kind", "cache_bytes"),
  [("latent", 4 * 1560 * 30 * 224 * 2), ("dense", 4 * 1560 * 30 * 3072 * 2)],
)
def test_a_minute_at_1p3b_compiles_and_updates_its_cache_in_place(
  kind: str, cache_bytes: int
) -> None:
  config = wan_config.wan_1p3b(kind=kind)
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))

  def state(keys):
    empty = rollout.empty_cache(
      model, batch=1, frame=_FRAME, window=_WINDOW, max_frames=_MINUTE
    )
    return rollout.Rollout(empty, keys, jnp.zeros((), jnp.int32))

  abstract = jax.eval_shape(state, jax.random.split(jax.random.key(0), 1))
  assert cache.num_bytes(abstract.cache) == cache_bytes
  compiled = rollout.scan_chunks.lower(
    model,
    abstract,
    jax.ShapeDtypeStruct((1, config.text_tokens, config.text_dim), jnp.float32),
    window=_WINDOW,
    sampler=sampling.few_step(),
    chunks=_MINUTE // _WINDOW.chunk_frames,
    frame=_FRAME,
  ).compile()
  analysis = compiled.memory_analysis()
  # The donated cache comes back in its own memory, with slot numbers and keys.
  assert cache_bytes <= analysis.alias_size_in_bytes < cache_bytes + 1000
