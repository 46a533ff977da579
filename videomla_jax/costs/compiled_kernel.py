"""Compiles one attention kernel for a GPU and reads what it needs."""

import dataclasses
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.costs import aot
from videomla_jax.costs import attention_shapes
from videomla_jax.costs import gpus
from videomla_jax.costs import kernel_row
from videomla_jax.costs import machine_code
from videomla_jax.costs import toolchain
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import types

_OURS = "latent_attention"  # names of our kernels begin with this


def compiled_row(
  implementation: str,
  form: types.Form,
  shape: str,
  target: str,
  dumps: pathlib.Path,
) -> kernel_row.Row:
  """Compiles one call for a target.

  Args:
    implementation: Name in the table of `api`.
    form: "expanded" or "absorbed".
    shape: Key of `attention_shapes.SHAPES`.
    target: Key of `gpus.TARGETS`.
    dumps: Folder in which Mosaic and XLA write reports; it is emptied before.
  """
  # The reports of the call before would be read as those of this one.
  for old in [*dumps.glob("*"), *dumps.glob(f"{toolchain.XLA_DUMPS}/*")]:
    if old.is_file():
      old.unlink()
  call = attention_shapes.SHAPES[shape]
  row = kernel_row.Row(
    implementation=implementation,
    form=form,
    shape=shape,
    dtype="bfloat16",
    target=target,
    compiled=False,
    **kernel_row.costs(call.sizes, form, gpus.TARGETS[target]),
  )
  devices = aot.mesh(target)
  args = aot.place(call.arguments(jnp.bfloat16), devices)
  function = functools.partial(
    api.latent_attention, form=form, implementation=implementation
  )
  try:
    program = aot.compile_for(function, *args, devices=devices)
  # Compilers raise many kinds of errors, and any of them is a result here.
  except Exception as error:
    first = (str(error) or repr(error)).splitlines()[0]
    return dataclasses.replace(row, error=first[:300])
  found = machine_code.mosaic_kernels(dumps) or _triton_kernels(program, dumps)
  row = dataclasses.replace(
    row,
    compiled=True,
    temporary_bytes=program.temporary_bytes,
    compile_seconds=round(program.seconds, 2),
  )
  if not found:
    return row  # plain XLA has many kernels, and none of them is ours
  kernel = found[0]
  return dataclasses.replace(
    row,
    registers=kernel.registers,
    spill_bytes=kernel.stack_bytes,
    local_memory_ops=kernel.local_memory_ops,
    smem_bytes=kernel.smem_bytes,
    tmem_columns=kernel.tmem_columns,
    tensor_core_ops=kernel.tensor_core_ops,
  )


def _triton_kernels(
  program: aot.Compiled, dumps: pathlib.Path
) -> list[machine_code.Kernel]:
  """Reads our Triton kernels, which ask for shared memory when they start."""
  every = machine_code.kernels(program.serialized())
  found = [k for k in every if k.name.startswith(_OURS)]
  if not found:
    return []
  smem = machine_code.launched_smem_bytes(dumps / toolchain.XLA_DUMPS, _OURS)
  return [dataclasses.replace(k, smem_bytes=smem) for k in found]


def measured_us(implementation: str, form: types.Form, shape: str) -> float:
  """Measures the median time of ten calls on the device that is here.

  Two calls before them compile and warm up.

  Args:
    implementation: Name in the table of `api`.
    form: "expanded" or "absorbed".
    shape: Key of `attention_shapes.SHAPES`.
  """
  rng = np.random.default_rng(0)

  def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
    if x.dtype == bool:
      # These are the flags of frames: all are valid, as in a window that is
      # full.
      return jnp.ones(x.shape, bool)
    return jnp.asarray(rng.standard_normal(x.shape, np.float32), x.dtype)

  args = jax.tree.map(
    draw, attention_shapes.SHAPES[shape].arguments(jnp.bfloat16)
  )
  run = jax.jit(
    functools.partial(
      api.latent_attention, form=form, implementation=implementation
    )
  )
  times = []
  for _ in range(12):
    started = time.perf_counter()
    run(*args).block_until_ready()
    times.append(time.perf_counter() - started)
  return float(np.median(times[2:]) * 1e6)
