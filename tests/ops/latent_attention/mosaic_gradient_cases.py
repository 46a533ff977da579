"""Cases of Hopper's gradient; `pallas_mosaic_gpu_hopper_vjp_test` starts them.

NPROC=16 python -m tests.ops.latent_attention.mosaic_gradient_cases PART SEED

PART is latent, several, without_keys or dense.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.ops.latent_attention import kernel_suite as suite
from tests.ops.latent_attention import mosaic_cases as cases
from tests.ops.latent_attention import mosaic_wgmma
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config as plan
from videomla_jax.ops.latent_attention import (
  pallas_mosaic_gpu_hopper_config as hopper_plan,
)
from videomla_jax.ops.latent_attention import types
from videomla_jax.ops.latent_attention import xla_chunked

B, H, SCALE = 2, 2, 0.11


def draw_call(seed, dtype, *, rows, frames, content, rope, value):
  """Random queries, a segment for each list of flags, gradient of the output.

  Args:
    seed: Of everything that is drawn.
    dtype: Of all arrays.
    rows: Query rows.
    frames: For each segment, a flag of each frame of both rows of the batch.
    content: Channels of the content part of a head.
    rope: Channels of the positional part; perhaps none.
    value: Channels of a value.
  """
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  queries = types.Queries(draw(B, rows, H, content), draw(B, rows, H, rope))
  segments = []
  for flags in frames:
    keys = cases.TOKENS * len(flags[0])
    segments.append(
      types.KeyValue(
        draw(B, keys, H, content),
        draw(B, keys, rope),
        draw(B, keys, H, value),
        jnp.asarray(flags, bool),
      )
    )
  return queries, tuple(segments), draw(B, rows, H, value)


def exact(queries, segments, d_out):
  """Value and gradients in float64, with all scores in memory."""
  wide = lambda x: np.asarray(x, np.float64)
  heads = lambda x: np.repeat(wide(x)[:, :, None], H, 2)
  join = lambda parts: np.concatenate(list(parts), axis=1)
  q = np.concatenate([wide(x) for x in queries], axis=-1)
  k = join(
    np.concatenate([wide(s.content), heads(s.rope)], -1) for s in segments
  )
  v, g = join(wide(s.value) for s in segments), wide(d_out)
  seen = join(np.asarray(s.valid_keys) for s in segments)[:, None, None]
  s = np.where(seen, SCALE * np.einsum("blnd,bsnd->bnls", q, k), -1e30)
  p = np.exp(s - s.max(-1, keepdims=True)) * seen
  p /= np.maximum(p.sum(-1, keepdims=True), 1e-30)
  out = np.einsum("bnls,bsnd->blnd", p, v)
  dp = np.einsum("blnd,bsnd->bnls", g, v)
  ds = SCALE * p * (dp - np.einsum("blnd,blnd->bnl", g, out)[..., None])
  dq = np.einsum("bnls,bsnd->blnd", ds, k)
  dk = np.einsum("bnls,blnd->bsnd", ds, q)
  dv = np.einsum("bnls,blnd->bsnd", p, g)
  content = queries.content.shape[-1]
  found = [out, dq[..., :content], dq[..., content:]]
  first = 0
  for segment in segments:
    keys = slice(first, first + segment.content.shape[1])
    found += [dk[:, keys, :, :content], dk[:, keys, :, content:].sum(2)]
    found += [dv[:, keys]]
    first = keys.stop
  return found


def run(name, seed, dtype="bfloat16", *, tiles=2, **sizes):
  """Gradients, races and repetition of one call."""
  queries, segments, d_out = draw_call(seed, dtype, **sizes)
  widths = plan.Widths(
    content=sizes["content"],
    rope=sizes["rope"],
    value=sizes["value"],
    shared=False,
  )
  config = hopper_plan.config_of(widths, rows={1: 1, 2: 999}[tiles], heads=4)
  flash = cases.flash_with(dataclasses.replace(config, cores=2))

  @jax.jit
  def gradient(queries, segments, d_out):
    def of(queries, parts):
      seen = tuple(
        s._replace(content=c, rope=r, value=v)
        for s, (c, r, v) in zip(segments, parts, strict=True)
      )
      return flash(queries, seen, scale=SCALE)

    parts = [(s.content, s.rope, s.value) for s in segments]
    out, pull = jax.vjp(of, queries, parts)
    return out, pull(d_out)

  found = gradient(queries, segments, d_out)
  cases.check_races(name)
  expected = exact(queries, segments, d_out)
  ours = [np.asarray(x, np.float64) for x in jax.tree.leaves(found)]
  for a, b in zip(ours, expected, strict=True):
    if b.size:
      suite.tolerances.assert_close(a, b, "bfloat16")
  for s, keys in zip(segments, found[1][1], strict=True):
    for g in keys:
      assert not np.asarray(g)[~np.asarray(s.valid_keys)].any()
  again = gradient(queries, segments, d_out)
  jax.tree.map(np.testing.assert_array_equal, found, again)
  cases.check_races(name)
  away = max(
    np.abs(a - b).max() / np.abs(b).max()
    for a, b in zip(ours, expected, strict=True)
    if b.size
  )
  print(f"case {name}: no race, {away:.1e} away", flush=True)


def run_latent(seed):
  """The whole operation, against the gradient of plain XLA."""
  suite.P = cases.TOKENS
  sizes = dataclasses.replace(cases.HOPPER["expanded"], length=70)
  flash = cases.flash_with(
    cases.config_for("expanded", sizes, tiles=2, hopper=True)
  )
  args = suite.inputs(seed, "holes", sizes, jnp.bfloat16)
  reference = functools.partial(xla_chunked.latent_attention, form="expanded")
  suite.check_gradient(flash, "expanded", seed, args, "bfloat16", reference)
  cases.check_races("latent")
  print("case latent: no race", flush=True)


def run_several(seed):
  """Both rings go round; rows of the batch have holes at different frames."""
  holes = [[1, 1, 0, 1], [0, 1, 1, 0]]
  run(
    "several",
    seed,
    rows=270,
    frames=[holes, [[1], [1]]],
    content=96,
    rope=32,
    value=128,
  )


def run_without_keys(seed):
  """A row of the batch without valid keys, and fewer rows than a tile has."""
  run(
    "without keys",
    seed,
    tiles=1,
    rows=3,
    frames=[[[0, 0], [1, 0]]],
    content=32,
    rope=16,
    value=48,
  )


def run_dense(seed):
  """Keys without a positional part, of which some are empty."""
  run(
    "dense",
    seed,
    "float16",
    rows=70,
    frames=[[[1, 0, 1], [0, 1, 1]]],
    content=128,
    rope=0,
    value=128,
  )


PARTS = {
  "latent": run_latent,
  "several": run_several,
  "without_keys": run_without_keys,
  "dense": run_dense,
}

if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  mosaic_wgmma.install()
  PARTS[sys.argv[1]](int(sys.argv[2]))
