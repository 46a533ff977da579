"""Cases of the Blackwell kernel; `pallas_mosaic_gpu_test` starts them.

NPROC=16 python -m tests.ops.latent_attention.mosaic_cases FORM SEED
"""

import dataclasses
import functools
import sys

import jax
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

from tests.ops.latent_attention import kernel_suite as suite
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu as kernel

TOKENS = 72  # of a frame; no block of 64 or 128 keys divides it

WIDE = suite.Sizes(
  d_c=192, rope=32, content=96, value=128, length=140, own=TOKENS
)
# Absorbed, rows are queries times heads.
FEW = suite.Sizes(
  d_c=192, rope=32, content=96, value=128, length=70, own=TOKENS
)
SPLITS = {
  f"split {128 - r}/{r}": suite.Sizes(
    d_c=64, rope=r, content=128 - r, value=128, length=3, own=TOKENS
  )
  for r in (16, 64, 96)
}


def config_for(form: str, sizes: suite.Sizes, **changes) -> kernel.Config:
  """The configuration that the kernel would choose, with some changes."""
  expanded = form == "expanded"
  widths = kernel.Widths(
    content=sizes.content if expanded else sizes.d_c,
    rope=sizes.rope,
    value=sizes.value if expanded else sizes.d_c,
    shared=not expanded,
  )
  return dataclasses.replace(kernel.config_of(widths), **changes)


def flash_with(config: kernel.Config):
  """The kernel in the interpreter."""
  return functools.partial(
    kernel.flash,
    config=config,
    interpret=plgpu.InterpretGPUParams(detect_races=True),
  )


def check_races(name: str) -> None:
  """Racy kernels usually give the right numbers."""
  races = interpret_pallas_call.get_races().races_found
  assert not races, f"{name}: a race"


def run_case(
  name: str,
  form: str,
  validity: str,
  sizes: suite.Sizes,
  seed: int,
  **changes,
):
  """One case: value, races, repetition."""
  suite.P = TOKENS
  args = suite.inputs(seed, validity, sizes, jnp.bfloat16)
  if sizes.own == 1:
    args = (args[0], args[1][1:], args[2])
  flash = flash_with(config_for(form, sizes, **changes))
  outs = []
  for _ in range(2):
    outs.append(suite.check_value(flash, form, args, "bfloat16"))
    check_races(name)
  np.testing.assert_array_equal(*outs)
  print(f"case {name} {form} {changes}: no race", flush=True)


def run_without_keys(form: str, seed: int, **changes):
  """A stream that sees no key has no answer, but must not hang or spoil."""
  suite.P = TOKENS
  queries, (ring, _), up = suite.inputs(
    seed, "one stream empty", WIDE, jnp.bfloat16
  )
  flash = flash_with(config_for(form, WIDE, **changes))
  run = jax.jit(suite.latent_attention(flash, form))
  out = np.asarray(run(queries, (ring,), up), np.float64)
  check_races("without keys")
  assert np.isfinite(out).all()
  second = jax.tree.map(lambda x: x[1:], (queries, (ring,)))
  expected = suite.paper(*second, up)
  suite.tolerances.assert_close(out[1:], expected, "bfloat16")
  print(f"case without keys {form} {changes}: no race", flush=True)


def run_any_number_of_cores(form: str, sizes: suite.Sizes, seed: int):
  """Who takes an item, and after which other one, must not show in it.

  Its streams have one and three blocks of keys, so that an item starts in
  either slot of S and in every stage, at every phase.
  """
  suite.P = TOKENS
  args = suite.inputs(seed, "one stream empty", sizes, jnp.bfloat16)
  outs = {}
  for cores in (148, 1, 2, 3):
    flash = flash_with(config_for(form, sizes, cores=cores))
    outs[cores] = jax.jit(suite.latent_attention(flash, form))(*args)
    check_races(f"{cores} cores")
    np.testing.assert_array_equal(outs[cores], outs[148])
  print(f"case any number of cores {form}: no race", flush=True)


def main(form: str, seed: int) -> None:
  """All cases of a form; fewer cores than items, but for the last ones."""
  sizes = WIDE if form == "expanded" else FEW
  run_case("holes", form, "holes", sizes, seed, cores=1)
  run_case("part-filled", form, "part-filled", sizes, seed, cores=3)
  run_case("one stream empty", form, "one stream empty", sizes, seed, cores=2)
  run_without_keys(form, seed, cores=1)
  run_any_number_of_cores(form, sizes, seed)
  one = suite.Sizes(d_c=64, rope=32, content=96, value=128, length=1, own=1)
  run_case("one key", form, "empty", one, seed, cores=1)
  # Not a whole number of the columns that are rescaled at a time.
  odd = suite.Sizes(d_c=48, rope=32, content=96, value=48, length=3, own=TOKENS)
  run_case("value 48", form, "holes", odd, seed)
  for name, split in SPLITS.items():
    run_case(name, form, "holes", split, seed)


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  main(sys.argv[1], int(sys.argv[2]))
