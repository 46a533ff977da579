"""Cases of the kernels in Mosaic; `pallas_mosaic_gpu_test` starts them.

NPROC=16 python -m tests.ops.latent_attention.mosaic_cases PART FORM SEED

PART is items or widths for Blackwell's kernel, and hopper for Hopper's.
"""

from collections.abc import Sequence
import dataclasses
import functools
import sys

import jax
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

from tests.ops.latent_attention import kernel_suite as suite
from tests.ops.latent_attention import mosaic_wgmma
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu as kernel
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper_config as hopper_plan,
)
from videomla_jax.ops.latent_attention import types

TOKENS = 72  # of a frame; no block of 64 or 128 keys divides it

# Two tiles of 128 rows, the second with a tail. Absorbed, rows are queries times
# heads.
WIDE = {
  "expanded": suite.Sizes(
    d_c=192, rope=32, content=96, value=128, length=140, own=TOKENS
  ),
  "absorbed": suite.Sizes(
    d_c=192, rope=32, content=96, value=128, length=70, own=TOKENS
  ),
}
# Three tiles, so that the second item of two has one; narrow enough for both.
LONG = {
  "expanded": suite.Sizes(
    d_c=64, rope=32, content=96, value=128, length=270, own=TOKENS
  ),
  "absorbed": suite.Sizes(
    d_c=64, rope=32, content=96, value=128, length=135, own=TOKENS
  ),
}
# Two tiles of 64 rows, the second with a tail.
HOPPER = {
  "expanded": dataclasses.replace(WIDE["expanded"], length=70),
  "absorbed": dataclasses.replace(WIDE["absorbed"], length=35),
}
SPLITS = {
  f"split {128 - r}/{r}": suite.Sizes(
    d_c=64, rope=r, content=128 - r, value=128, length=3, own=TOKENS
  )
  for r in (16, 64, 96)
}


def config_for(
  form: str,
  sizes: suite.Sizes,
  *,
  tiles: int = 1,
  cores: int = 148,
  hopper: bool = False,
) -> plan.Config:
  """What the kernel chooses for few rows, or for so many that two tiles pay."""
  expanded = form == "expanded"
  widths = plan.Widths(
    content=sizes.content if expanded else sizes.d_c,
    rope=sizes.rope,
    value=sizes.value if expanded else sizes.d_c,
    shared=not expanded,
  )
  made_for = hopper_plan if hopper else plan
  chosen = made_for.config_of(widths, rows={1: 1, 2: 10**6}[tiles], heads=1)
  assert chosen.tiles == tiles
  return dataclasses.replace(chosen, cores=cores)


def flash_with(config: plan.Config):
  """The kernel in the interpreter."""
  return functools.partial(
    kernel.flash,
    config=config,
    # One clock for each copy and each product of Hopper. Those that share one
    # would be taken for copies that wait for each other.
    interpret=plgpu.InterpretGPUParams(
      detect_races=True, num_tma_threads_per_device=512
    ),
  )


def check_races(name: str) -> None:
  """Racy kernels usually give the right numbers."""
  races = interpret_pallas_call.get_races().races_found
  assert not races, f"{name}: a race"
  assert mosaic_wgmma.all_waited_for(), name


def run_case(
  name: str,
  form: str,
  sizes: suite.Sizes,
  seed: int,
  validities: Sequence[str] = ("holes",),
  **changes,
):
  """Value, races and repetition; one program for all validities."""
  suite.P = TOKENS
  flash = flash_with(config_for(form, sizes, **changes))
  run = jax.jit(suite.latent_attention(flash, form))
  for validity in validities:
    args = suite.inputs(seed, validity, sizes, jnp.bfloat16)
    if sizes.own == 1:
      args = (args[0], args[1][1:], args[2])
    out = np.asarray(run(*args), np.float64)
    check_races(name)
    suite.tolerances.assert_close(out, suite.paper(*args), "bfloat16")
    if validity == validities[0]:  # an execution takes seconds
      np.testing.assert_array_equal(np.asarray(run(*args), np.float64), out)
      check_races(name)
  print(f"case {name} {form} {changes}: no race", flush=True)


def run_without_keys(form: str, sizes: suite.Sizes, seed: int, **changes):
  """A row without valid keys gets zeros, does not hang, and spoils no other."""
  suite.P = TOKENS
  queries, (ring, _), up = suite.inputs(
    seed, "one row empty", sizes, jnp.bfloat16
  )
  flash = flash_with(config_for(form, sizes, **changes))
  run = jax.jit(suite.latent_attention(flash, form))
  out = np.asarray(run(queries, (ring,), up), np.float64)
  check_races("without keys")
  assert not out[0].any()
  second = jax.tree.map(lambda x: x[1:], (queries, (ring,)))
  expected = suite.paper(*second, up)
  suite.tolerances.assert_close(out[1:], expected, "bfloat16")
  print(f"case without keys {form} {changes}: no race", flush=True)


def run_rising(
  form: str, sizes: suite.Sizes, seed: int, growths: Sequence[int], **changes
):
  """Maxima that grow from block to block, for every other query.

  One positional channel adds 0 or `growth` times the frame to scores in base 2.
  Small growth leaves the output's scale as it is, large growth rescales it.
  """
  suite.P = TOKENS
  flash = flash_with(config_for(form, sizes, cores=1, **changes))
  run = jax.jit(suite.latent_attention(flash, form))
  for growth in growths:
    queries, keys, up = suite.inputs(seed, "full", sizes, jnp.bfloat16)
    queries = queries._replace(rope=queries.rope.at[..., 0].set(0))
    queries = queries._replace(rope=queries.rope.at[:, ::2, :, 0].set(8))
    risen, frame = [], 0
    for k in keys:
      frames = frame + jnp.arange(k.rope.shape[1]) // TOKENS
      rope = k.rope.at[..., 0].set((growth * frames).astype(k.rope.dtype))
      risen.append(k._replace(rope=rope))
      frame += k.rope.shape[1] // TOKENS
    args = (queries, tuple(risen), up)
    out = np.asarray(run(*args), np.float64)
    check_races("rising")
    suite.tolerances.assert_close(out, suite.paper(*args), "bfloat16")
  print(f"case rising {form} {changes}: no race", flush=True)


def run_any_division(form: str, sizes: suite.Sizes, seed: int):
  """Which core takes a tile, and after which others, must not change it.

  Rows have one and three blocks of keys, so that an item starts in either
  slot of S and in every stage, at every phase. Every other item of two tiles has
  no rows in the second: one core takes both kinds by turns, two take one kind each.
  """
  suite.P = TOKENS
  args = suite.inputs(seed, "one row empty", sizes, jnp.bfloat16)
  expected = None
  for tiles, cores in ((1, 148), (1, 5), (2, 1), (2, 2)):
    flash = flash_with(config_for(form, sizes, tiles=tiles, cores=cores))
    out = jax.jit(suite.latent_attention(flash, form))(*args)
    check_races(f"{tiles} tiles, {cores} cores")
    expected = out if expected is None else expected
    np.testing.assert_array_equal(out, expected)
  print(f"case any division {form}: no race", flush=True)


def run_items(form: str, seed: int) -> None:
  """Several work items after each other, one or two tiles in each."""
  wide, long = WIDE[form], LONG[form]
  run_case("one tile", form, wide, seed, ("holes", "one row empty"), cores=1)
  two = ("part-filled", "holes")
  run_case("two tiles", form, long, seed, two, tiles=2, cores=1)
  run_without_keys(form, wide, seed, cores=1)
  run_without_keys(form, long, seed, tiles=2, cores=1)
  run_any_division(form, long, seed)
  run_rising(form, wide, seed, (2, 20), tiles=1)
  run_rising(form, long, seed, (5,), tiles=2)


def run_widths(form: str, seed: int) -> None:
  """Widths and a single key; few rows, so that a second tile has none."""
  one = suite.Sizes(d_c=64, rope=32, content=96, value=128, length=1, own=1)
  for tiles in (1, 2):
    run_case("one key", form, one, seed, ("empty",), cores=1, tiles=tiles)
  # Not a whole number of the columns that are rescaled or stored at a time.
  odd = suite.Sizes(d_c=48, rope=32, content=96, value=48, length=3, own=TOKENS)
  run_case("value 48", form, odd, seed)
  for tiles, (name, split) in zip((1, 2, 2), SPLITS.items(), strict=True):
    run_case(name, form, split, seed, tiles=tiles)


def run_dense(seed: int, dtype: str) -> None:
  """Keys without a positional part, of which some are empty."""
  rng = np.random.default_rng(seed)
  draw = lambda n, d: jnp.asarray(rng.standard_normal((2, n, 2, d)), dtype)
  query, key, value = draw(70, 64), draw(3 * TOKENS, 64), draw(3 * TOKENS, 48)
  valid = jnp.asarray([[1, 0, 1], [0, 1, 1]], bool)
  widths = plan.Widths(content=64, rope=0, value=48, shared=False)
  config = hopper_plan.config_of(widths, rows=70, heads=4)
  segment = types.KeyValue(key, key[:, :, 0, :0], value, valid)
  out = flash_with(dataclasses.replace(config, cores=2))(
    types.Queries(query, query[..., :0]), (segment,), scale=0.1
  )
  check_races("dense")
  q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
  score = np.exp(0.1 * np.einsum("blnd,bsnd->bnls", q, k))
  score *= np.asarray(segment.valid_keys)[:, None, None]
  score /= score.sum(-1, keepdims=True)
  expected = np.einsum("bnls,bsnd->blnd", score, v)
  suite.tolerances.assert_close(
    np.asarray(out, np.float64), expected, "bfloat16"
  )
  print(f"case dense {dtype}: no race", flush=True)


def run_hopper(form: str, seed: int) -> None:
  """Items of two tiles after each other, the second perhaps without rows."""
  mosaic_wgmma.install()
  wide = HOPPER[form]
  few = dataclasses.replace(wide, length=3)
  hopper = dict(tiles=2, hopper=True)
  run_case("two tiles", form, wide, seed, ("holes",), cores=1, **hopper)
  run_without_keys(form, few, seed, cores=1, hopper=True)
  if form == "expanded":
    run_rising(form, few, seed, (20,), **hopper)
    run_dense(seed, "float16")


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  parts = {"items": run_items, "widths": run_widths, "hopper": run_hopper}
  parts[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
