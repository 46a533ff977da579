"""Kernels and programs compiled for GPUs that are not here.

Runs where the cross-compiler is installed: `make test-aot`.
"""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from videomla_jax.costs import aot
from videomla_jax.costs import attention_shapes
from videomla_jax.costs import gpus
from videomla_jax.costs import kernel_row
from videomla_jax.costs import kernel_table
from videomla_jax.costs import machine_code
from videomla_jax.costs import toolchain
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import types

pytest.importorskip("jax_cuda13_plugin", reason="needs the extra aot")

SHAPES = (
  "480p",
  "480p_framewise",
  "480p_dc512",
  "few_queries",
  "480p_int8",
  "few_queries_float8",
)


@pytest.fixture(scope="module")
def rows():
  made = list(kernel_table.rows(targets=("b200",), shapes=SHAPES))
  for row in made:
    print(kernel_row.line(row))
  return made


def _ours(rows):
  return [r for r in rows if r.implementation.startswith("pallas")]


def test_every_shape_has_a_kernel_of_ours(rows):
  compiled = {(r.shape, r.form) for r in _ours(rows) if r.compiled}
  assert compiled == {(s, f) for s in SHAPES for f in kernel_table.FORMS}


def test_no_kernel_spills(rows):
  for row in _ours(rows):
    if row.compiled:
      assert row.registers > 0
      assert (row.spill_bytes, row.local_memory_ops) == (0, 0), row


def test_blackwell_kernel_uses_its_units(rows):
  blackwell = [
    r for r in rows if r.implementation == "pallas_mosaic_gpu" and r.compiled
  ]
  assert {(r.shape, r.form) for r in blackwell} >= {
    ("480p", "expanded"),
    ("480p", "absorbed"),
    ("480p_int8", "expanded"),
  }
  for row in blackwell:
    assert row.tensor_core_ops > 0
    assert 0 < row.smem_bytes <= gpus.TARGETS["b200"].smem_bytes
    assert 0 < row.tmem_columns <= 512


def test_memory_of_every_kernel_is_known_and_fits(rows):
  for row in _ours(rows):
    if row.compiled:
      assert 1024 < row.smem_bytes <= gpus.TARGETS["b200"].smem_bytes, row
      if (row.shape, row.form) == ("480p_dc512", "absorbed"):
        # Too wide for tensor memory: Triton takes products of a warp.
        assert row.tmem_columns is None
      else:
        assert row.tmem_columns in range(32, 513, 32), row


def test_what_does_not_compile_says_why(rows):
  for row in rows:
    if row.compiled:
      continue
    if row.implementation == "triton":
      assert "absorbed form only" in row.error or "rows fill" in row.error
    else:
      assert row.implementation == "pallas_mosaic_gpu", row
      eight_bits = row.shape.endswith(("int8", "float8"))
      reason = "not dequantise" if eight_bits else "width 512 exceeds 256"
      assert reason in row.error


def test_few_queries_have_the_kernel_that_splits_keys(rows):
  assert {
    (r.shape, r.form)
    for r in rows
    if r.implementation == "triton" and r.compiled
  } == {(s, "absorbed") for s in SHAPES if s.startswith("few_queries")}


def test_rows_are_json(rows):
  for row in rows:
    assert (
      kernel_row.Row(**json.loads(json.dumps(dataclasses.asdict(row)))) == row
    )


def test_rooflines_have_units():
  spec = attention_shapes.SHAPES["480p"].sizes
  least = kernel_row.costs(spec, "expanded", gpus.TARGETS["b200"])
  # 2 x 163 G multiply-adds at 2.25 PFLOP/s.
  assert least["bound"] == "matmul"
  assert least["roofline_us"] == pytest.approx(144.6, rel=0.01)


def test_hopper_is_served_by_both():
  made = list(
    kernel_table.rows(
      targets=("h100",),
      shapes=("480p_float8", "few_queries_int8"),
      implementations=("pallas_mosaic_gpu", "pallas_triton"),
    )
  )
  for row in made:
    print(kernel_row.line(row))
    if row.compiled:
      assert row.tensor_core_ops > 0
      assert 0 < row.smem_bytes <= gpus.TARGETS["h100"].smem_bytes
      assert (row.spill_bytes, row.local_memory_ops) == (0, 0), row
      assert not row.tmem_columns
    else:
      # Triton's kernel takes bytes.
      assert (row.implementation, row.form) == ("pallas_mosaic_gpu", "absorbed")
      assert "not dequantise" in row.error
  compiled = {(r.shape, r.form) for r in made if r.compiled}
  assert compiled == {(r.shape, r.form) for r in made}


_LATENT = """
import pathlib, sys
from videomla_jax.costs import compiled_kernel
row = compiled_kernel.compiled_row(
  "pallas_mosaic_gpu", sys.argv[1], "480p", "h100", pathlib.Path(sys.argv[2])
)
assert row.compiled, row.error
"""
_DENSE = """
import functools, jax
from videomla_jax.costs import aot
from videomla_jax.ops.latent_attention import api
devices = aot.mesh("h100")
array = lambda n: jax.ShapeDtypeStruct((1, n, 12, 128), "bfloat16")
valid = jax.ShapeDtypeStruct((1, 21), bool)
call = aot.place((array(4680), array(32760), array(32760), valid), devices)
run = functools.partial(
  api.dense_attention, scale=0.1, implementation="pallas_mosaic_gpu"
)
aot.compile_for(run, *call, devices=devices)
"""


@pytest.mark.parametrize(
  ("form", "keys"), [("expanded", 128), ("absorbed", 64), ("dense", 128)]
)
def test_softmax_runs_beside_a_product_on_hopper(tmp_path, form, keys):
  script = _DENSE if form == "dense" else _LATENT
  # Mosaic reads where to write its reports when it starts.
  subprocess.run(
    [sys.executable, "-c", script, form, str(tmp_path)],
    env=os.environ | toolchain.dump_environment(tmp_path),
    check=True,
  )
  (kernel,) = machine_code.mosaic_kernels(tmp_path)
  print(f"{form}: {kernel}")
  assert (kernel.stack_bytes, kernel.local_memory_ops) == (0, 0)
  (code,) = tmp_path.glob("*.sass_ctrl")
  # Exponentials of a thread before each wait, and how many products may go on.
  waits, exps = [], 0
  for line in code.read_text().splitlines():
    exps += "MUFU.EX2" in line
    if wait := re.search(r"WARPGROUP.DEPBAR.LE gsb0, 0x(\d)", line):
      waits.append((int(wait[1]), exps))
      exps = 0
  # First scores; then scores, beside an output; this output; the last one. The
  # compiler would add a wait for every product that it runs alone.
  assert [running for running, _ in waits] == [0, 1, 0, 0]
  of_a_step = keys // 2 + 2  # 64 rows of 128 threads, and two factors
  assert [n for _, n in waits] == [0, of_a_step, of_a_step, 0]


@pytest.mark.parametrize(
  "shape", ["480p", "480p_split32_96", "few_queries", "dense"]
)
def test_gradient_on_hopper_computes_beside_its_products(tmp_path, shape):
  subprocess.run(
    [sys.executable, "-m", "tests.aot.gradient_program", shape],
    env=os.environ | toolchain.dump_environment(tmp_path),
    check=True,
  )
  found = {k.name: k for k in machine_code.mosaic_kernels(tmp_path)}
  # In a step, products that may go on while exponentials, and then differences,
  # are computed, and at its end; dQ goes on into the next step.
  waits = {"key": ["1", "1", "0"], "query": ["1", "0"]}
  for side, expected in waits.items():
    (name,) = [n for n in found if f"_{side}_gradient" in n]
    kernel = found.pop(name)
    print(kernel)
    assert (kernel.stack_bytes, kernel.local_memory_ops) == (0, 0)
    assert 0 < kernel.smem_bytes <= gpus.TARGETS["h100"].smem_bytes
    assert "serialized" not in (tmp_path / f"{name}.ptxas").read_text()
    code = (tmp_path / f"{name}.sass_ctrl").read_text()
    assert "HGMMA" in code
    first, *rest = re.split(r"WARPGROUP.DEPBAR.LE gsb0, 0x(?=\d)", code)
    assert [x[0] for x in rest[: len(expected)]] == expected
    assert {x[0] for x in rest[len(expected) :]} == {"0"}
    # 64 rows of 64 keys for 128 threads, all after the wait for S.
    exps = [x.count("MUFU.EX2") for x in (first, *rest)]
    assert exps == [0, 32] + [0] * (len(rest) - 1)
  (forward,) = found.values()
  assert (forward.stack_bytes, forward.local_memory_ops) == (0, 0)


@pytest.mark.parametrize(
  ("name", "form", "kernels_of_ours"),
  [
    ("480p", "expanded", 4),  # forward, queries, keys of two segments
    ("480p", "absorbed", 4),
    ("480p_dc512", "absorbed", 0),  # they would spill, so XLA does it
  ],
)
def test_gradient_compiles_without_spills(name, form, kernels_of_ours):
  devices = aot.mesh("b200")
  shape = attention_shapes.SHAPES[name]
  arguments = aot.place(shape.arguments(jnp.bfloat16), devices)
  run = functools.partial(
    api.latent_attention, form=form, implementation="pallas_triton"
  )

  def gradient(queries, keys, up):
    latents = [(k.content, k.rope) for k in keys]

    def of(queries, latents, up):
      seen = [
        types.Keys(*x, k.valid) for x, k in zip(latents, keys, strict=True)
      ]
      return run(queries, seen, up)

    out, pull = jax.vjp(of, queries, latents, up)
    return pull(out)

  program = aot.compile_for(gradient, *arguments, devices=devices)
  found = machine_code.kernels(program.serialized())
  ours = [k for k in found if k.name.startswith("latent_attention")]
  assert len(ours) == kernels_of_ours
  for kernel in found:
    assert (kernel.stack_bytes, kernel.local_memory_ops) == (0, 0), kernel
  # Linear memory: all scores would be 4,680 x 10,920 x 12 x 2 = 1.2 GB.
  print(f"{name} {form}: {program.temporary_bytes / 1e6:.0f} MB")
  assert program.temporary_bytes < (200e6 if ours else 1e9)


@pytest.mark.parametrize("target", ["b200", "h100"])
@pytest.mark.parametrize("keys", [512, 7 * 1560])
def test_dense_attention_and_its_gradient_do_not_spill(target, keys):
  devices = aot.mesh(target)
  array = lambda tokens: jax.ShapeDtypeStruct((1, tokens, 12, 128), "bfloat16")
  valid = jax.ShapeDtypeStruct((1, 1 if keys == 512 else 7), bool)
  arguments = aot.place((array(4680), array(keys), array(keys), valid), devices)

  def gradient(query, key, value, valid):
    def of(*arrays):
      return api.dense_attention(
        *arrays, valid, scale=128**-0.5, implementation="pallas_triton"
      )

    out, pull = jax.vjp(of, query, key, value)
    return pull(out)

  program = aot.compile_for(gradient, *arguments, devices=devices)
  ours = [
    k
    for k in machine_code.kernels(program.serialized())
    if k.name.startswith("latent_attention")
  ]
  assert len(ours) == 3  # forward, queries, keys
  for kernel in ours:
    assert (kernel.stack_bytes, kernel.local_memory_ops) == (0, 0), kernel
    assert kernel.tensor_core_ops > 0
  # Output and a number per row and head: no scores.
  assert program.temporary_bytes < 40e6
