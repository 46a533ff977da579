"""The Triton kernel: interpreted on a CPU, and compiled for GPUs not here.

Triton decides at import whether it interprets, so the interpreter runs in a
process of its own: this file as a script, which prints the errors as JSON.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="needs the extra aot")
jax_triton = pytest.importorskip("jax_triton", reason="needs jax-triton")

from tests import tolerances  # noqa: E402
from tests.aot import triton_interpreter  # noqa: E402
from videomla_jax.costs import aot  # noqa: E402
from videomla_jax.costs import attention_shapes  # noqa: E402
from videomla_jax.costs import machine_code  # noqa: E402
from videomla_jax.ops import quantise  # noqa: E402
from videomla_jax.ops.latent_attention import forms  # noqa: E402
from videomla_jax.ops.latent_attention import triton as kernel  # noqa: E402
from videomla_jax.ops.latent_attention import triton_config  # noqa: E402
from videomla_jax.ops.latent_attention import types  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
WIDTHS = range(64, 513, 64)
# 11 bits of mantissa: probabilities and outputs are rounded once each.
FLOAT16 = 1e-3

# Two rows of the batch, a ring of three frames of 19 tokens, a chunk of 38.
HOLES = [[1, 0, 1], [0, 1, 0]]
SMALL = dict(rows=16, keys=16, programs=8)  # shares of several blocks
CASES = {
  "one split": dict(config={**SMALL, "programs": 1}),
  "two splits": dict(config=SMALL),
  "more splits than blocks": dict(config={**SMALL, "programs": 999}),
  "a full tile": dict(rows=32, config=SMALL),
  "one row": dict(rows=1, config=SMALL),
  "empty ring": dict(ring=[[0, 0, 0], [0, 0, 0]], config=SMALL),
  "one row empty": dict(ring=[[0, 0, 0], [1, 1, 1]], config=SMALL),
  "ring only": dict(ring=[[1, 1, 0], [1, 1, 1]], own=0, config=SMALL),
  "nothing at all": dict(ring=[[0, 0, 0], [1, 1, 1]], own=0, config=SMALL),
  "default config": dict(rows=70, d_c=192),
  "wide default config": dict(d_c=320),
  "wide positions": dict(d_r=96, config=SMALL),
  "short positions": dict(d_r=16, config=SMALL),
  "int8 ring": dict(cache="int8", config=SMALL),
  "float8 ring": dict(cache="float8_e4m3fn", config=SMALL),
  "int8 ring only": dict(
    cache="int8", ring=[[0, 0, 0], [1, 1, 0]], own=0, config=SMALL
  ),
  "float8 default config": dict(rows=70, d_c=192, cache="float8_e4m3fn"),
  **{f"d_c {d_c}": dict(d_c=d_c, config=SMALL) for d_c in WIDTHS},
}
DTYPES = ("float32", "float16", "bfloat16")
RUNS = [(n, d) for n in CASES for d in DTYPES]


def _inputs(
  rng, dtype, *, rows=21, d_c=64, d_r=32, ring=HOLES, own=38, cache=None
):
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  segment = lambda keys, valid: types.KeyValue(
    draw(2, keys, 1, d_c), draw(2, keys, d_r), None, jnp.asarray(valid, bool)
  )
  segments = [segment(57, ring)] + ([segment(own, [[1], [1]])] if own else [])
  if cache:
    stored = quantise.quantise(segments[0].content, dtype=cache)
    segments[0] = segments[0]._replace(content=stored)
  return types.Queries(draw(2, rows, 1, d_c), draw(2, rows, 1, d_r)), segments


def _softmax(queries, segments, scale):
  """In float64; rows without keys are zero."""
  f64 = lambda x: np.asarray(quantise.dequantise(x, jnp.float32), np.float64)
  content = np.concatenate([f64(s.content)[:, :, 0] for s in segments], 1)
  rope = np.concatenate([f64(s.rope) for s in segments], 1)
  valid = np.concatenate([np.asarray(s.valid_keys) for s in segments], 1)
  score = np.einsum("brhc,bsc->brs", f64(queries.content), content)
  score += np.einsum("brhc,bsc->brs", f64(queries.rope), rope)
  weight = np.exp(scale * (score - score.max(-1, keepdims=True)))
  weight *= valid[:, None]
  total = weight.sum(-1, keepdims=True)
  weight /= np.where(total > 0, total, 1)
  return np.einsum("brs,bsc->brc", weight, content)[:, :, None]


def _main(seed):
  """Prints the relative error of every run."""
  triton_interpreter.install()
  errors = {}
  for name, dtype in RUNS:
    case = dict(CASES[name])
    config = dict(case.pop("config", {}))
    programs = config.pop("programs", kernel.PROGRAMS)
    config = triton_config.Config(**config) if config else None
    args = _inputs(np.random.default_rng(seed), dtype, **case)
    scale = 1 / np.sqrt(128)
    out = kernel.flash(*args, scale=scale, config=config, programs=programs)
    assert out.dtype == dtype
    want = _softmax(*args, scale)
    errors[f"{name}, {dtype}"] = tolerances.relative_error(out, want)
  print(json.dumps(errors))


@pytest.fixture(scope="module")
def errors():
  seed = int(os.environ.get("VIDEOMLA_SEED", int.from_bytes(os.urandom(3))))
  done = subprocess.run(
    [sys.executable, __file__, str(seed)],
    env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 0, f"VIDEOMLA_SEED={seed}\n{done.stderr[-4000:]}"
  found = json.loads(done.stdout.splitlines()[-1])
  for dtype in DTYPES:
    worst = max(v for k, v in found.items() if k.endswith(f", {dtype}"))
    print(f"interpreter, seed {seed}: worst {dtype} error {worst:.2g}")
  return found


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_interpreted_kernel_equals_float64(errors, name, dtype):
  bounds = {d: t.bound for d, t in tolerances.TOLERANCES.items()}
  assert errors[f"{name}, {dtype}"] <= (bounds | {"float16": FLOAT16})[dtype]


def test_splits_are_joined_exactly(seed):
  rng = np.random.default_rng(seed)
  out = rng.standard_normal((2, 5, 7, 16)).astype(np.float32)
  log_sum = 40 * rng.standard_normal((2, 5, 7)).astype(np.float32)
  log_sum[:, 2] = log_sum[0, :, 0] = -np.inf  # an idle split, an idle row
  weight = np.exp2(log_sum.astype(np.float64))
  total = np.where(weight.sum(1) > 0, weight.sum(1), 1)
  want = (weight[..., None] * out).sum(1) / total[..., None]
  halves = [(out[:, :2], log_sum[:, :2]), (out[:, 2:], log_sum[:, 2:])]
  ours = kernel.combine([tuple(map(jnp.asarray, x)) for x in halves])
  tolerances.assert_close(ours, want)
  assert not np.asarray(ours)[0, 0].any()


def test_few_rows_fill_a_gpu():
  for tokens in (32, 64, 128, 256):
    config, rows = kernel.config_of(192), 12 * tokens
    splits = kernel.splits(config, batch=1, rows=rows, num_blocks=99)
    assert 0.9 * 148 <= splits * -(-rows // config.rows) <= 148
  assert kernel.splits(config, batch=1, rows=12 * 4680, num_blocks=99) == 1
  assert kernel.splits(config, batch=1, rows=12, num_blocks=3) == 3


def test_rows_that_fill_a_gpu_are_left_to_others():
  many = 64 * 148
  args = _inputs(np.random.default_rng(0), "float32", rows=many)
  with pytest.raises(NotImplementedError, match=f"{many} rows fill"):
    kernel.flash(*args, scale=1.0)


REFUSED = {
  "absorbed form only": lambda q, k: (q, k._replace(value=k.content)),
  "absorbed form": lambda q, k: (
    types.Queries(*(jnp.repeat(x, 2, axis=2) for x in q)),
    k,
  ),
  "differ in dtype": lambda q, k: (
    q,
    k._replace(rope=k.rope.astype("bfloat16")),
  ),
  "no sum of powers": lambda q, k: (
    q._replace(rope=q.rope[..., :24]),
    k._replace(rope=k.rope[..., :24]),
  ),
  "not in 64..512": lambda q, k: (
    q._replace(content=q.content[..., :32]),
    k._replace(content=k.content[..., :32]),
  ),
}


def test_wide_keys_in_eight_bits_are_left_to_others():
  queries, segments = _inputs(
    np.random.default_rng(0), "float32", d_c=512, cache="int8"
  )
  with pytest.raises(NotImplementedError, match="512 spills .* 448 would not"):
    kernel.flash(queries, segments, scale=1.0)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_kernel_cannot_take_is_refused(reason):
  queries, segments = _inputs(np.random.default_rng(0), "float32")
  queries, segment = REFUSED[reason](queries, segments[0])
  with pytest.raises(NotImplementedError, match=f"^triton: .*{reason}"):
    kernel.flash(queries, [segment], scale=1.0)


def test_absent_triton_is_told(monkeypatch):
  monkeypatch.setattr(kernel, "tl", None)
  args = _inputs(np.random.default_rng(0), "float32")
  with pytest.raises(NotImplementedError, match=r"videomla-jax\[gpu\]"):
    kernel.flash(*args, scale=1.0)


def _compiled(d_c, d_r, capability, dtype="bf16", stored=None):
  """The kernel alone; machine code, TMEM columns and bytes of SMEM."""
  itemsize = 4 if dtype == "fp32" else 2
  config = kernel.config_of(d_c, itemsize, capability / 10)
  sizes = (12 * 64, 10920, 175, 12, d_c, d_r)
  constants = kernel._constants(sizes, 0.1, dtype == "fp32", config)
  types_of = [f"*{dtype}"] * 4 + ["*i32"] * 3 + ["*bf16"] + ["*fp32"] * 2
  signature = dict(zip(kernel._kernel.arg_names, types_of))
  if stored:
    signature["key_ptr"] = f"*{stored}"
  else:
    constants["key_scale_ptr"] = None
  source = triton.compiler.ASTSource(
    kernel._kernel,
    {**signature, **dict.fromkeys(constants, "constexpr")},
    constants,
    {(i,): [["tt.divisibility", 16]] for i in range(len(types_of))},
  )
  made = triton.compile(
    source,
    target=triton.backends.compiler.GPUTarget("cuda", capability, 32),
    options=dict(num_warps=config.num_warps, num_stages=config.num_stages),
  )
  (code,) = machine_code.read(made.asm["cubin"])
  tmem = made.metadata.tmem_size or 0
  print(
    f"sm_{capability} {stored or dtype} d_c {d_c} d_r {d_r} "
    f"{config.rows}x{config.keys}: "
    f"{code.registers} registers, {code.local_memory_ops} spills, "
    f"{made.metadata.shared} B SMEM, {tmem} TMEM columns, "
    f"{code.tensor_core_ops} MMA"
  )
  return made, code, tmem


COMPILED = [
  *((d_c, 32, 100, "bf16") for d_c in WIDTHS),
  *((192, d_r, 100, "bf16") for d_r in (16, 64, 96)),
  *((192, 32, 100, dtype) for dtype in ("fp16", "fp32")),
  *((d_c, 32, c, "bf16") for c in (80, 90) for d_c in (64, 192, 384, 512)),
]
EIGHT_BITS = [
  (d_c, 32, capability, "bf16", stored)
  for capability in (90, 100)
  for d_c in WIDTHS
  for stored in ("i8", "fp8e4nv")
  if d_c <= kernel.eight_bit_width(capability / 10)
]


@pytest.mark.parametrize("case", [*COMPILED, *EIGHT_BITS], ids=str)
def test_kernel_does_not_spill(case):
  capability, dtype = case[2:4]
  made, code, tmem = _compiled(*case)
  assert (code.stack_bytes, code.local_memory_ops) == (0, 0)
  # Beyond 512 columns Triton leaves a trap of a few registers, no error.
  assert tmem <= 512 and code.registers > 32
  assert made.metadata.shared <= (163 if capability == 80 else 227) * 1024
  if dtype != "fp32":
    assert code.tensor_core_ops > 0
    assert ("tcgen05.mma" in made.asm["ptx"]) == (capability == 100)


@pytest.fixture(scope="module")
def b200():
  pytest.importorskip("jax_cuda13_plugin", reason="needs the extra aot")
  return aot.mesh("b200")


@pytest.mark.parametrize("tokens", [32, 64, 128, 256])
def test_few_queries_compile_for_b200(b200, tokens):
  spec = jax.sharding.PartitionSpec()
  sharding = jax.sharding.NamedSharding(b200, spec)
  array = lambda *shape, dtype="bfloat16": jax.ShapeDtypeStruct(
    shape, dtype, sharding=sharding
  )
  segment = lambda frames: types.Keys(
    array(1, frames * 1560, 192),
    array(1, frames * 1560, 32),
    array(1, frames, dtype="bool"),
  )
  args = (
    types.Queries(array(1, tokens, 12, 96), array(1, tokens, 12, 32)),
    (segment(4), segment(3)),
    types.UpProjections(array(192, 12, 96), array(192, 12, 128)),
  )
  run = jax.jit(lambda *x: forms.attend(kernel.flash, *x, form="absorbed"))
  with jax.set_mesh(b200):
    program = run.lower(*args).compile()
  memory = program.memory_analysis().temp_size_in_bytes
  print(f"{tokens} tokens: temporaries {memory / 1e6:.1f} MB")
  assert program.as_text().count('"triton_kernel_call_ffi"') == 2
  # Two segments, at most 148 tiles of 64 x 192 partial outputs each.
  assert memory < 1.5 * 2 * 148 * 64 * 192 * 4


def test_gradient_of_few_queries_compiles(b200):
  shape = attention_shapes.SHAPES["few_queries"]
  queries, keys, up = aot.place(shape.arguments("bfloat16"), b200)

  def gradient(queries, keys, up):
    def total(queries):
      run = forms.attend(kernel.flash, queries, keys, up, form="absorbed")
      return run.astype(jnp.float32).sum()

    return jax.grad(total)(queries)

  program = aot.compile_for(gradient, queries, keys, up, devices=b200)
  # Pallas Triton's forward pass and its two backward kernels (keys' is cut).
  assert "latent_attention_query_gradient" in program.text


if __name__ == "__main__":
  _main(int(sys.argv[1]))
