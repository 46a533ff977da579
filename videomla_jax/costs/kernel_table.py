"""Computes what every attention kernel costs on GPUs that need not be here.

  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=kernels

Every implementation, form and real shape is compiled for a target. The table
says with how many registers, spills and tensor-core instructions, and what is
the least time that the data sheet allows. On such a GPU the call is timed, too.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.costs import aot
from videomla_jax.costs import gpus
from videomla_jax.costs import kernel_row
from videomla_jax.costs import machine_code
from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import specs
from videomla_jax.ops.latent_attention import types

FORMS: tuple[types.Form, ...] = ("expanded", "absorbed")
# Ours: the reference writes all scores, and libraries bring no source along.
IMPLEMENTATIONS = (*api.KERNELS, "xla_chunked")


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
    shape: Key of `specs.SHAPES`.
    target: Key of `gpus.TARGETS`.
    dumps: Folder in which Mosaic and XLA write reports; it is emptied before.
  """
  for old in [*dumps.glob("*"), *dumps.glob(f"{aot.XLA_DUMPS}/*")]:
    if old.is_file():
      old.unlink()
  call = specs.SHAPES[shape]
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
  smem = machine_code.launched_smem_bytes(dumps / aot.XLA_DUMPS, _OURS)
  return [dataclasses.replace(k, smem_bytes=smem) for k in found]


def measured_us(implementation: str, form: types.Form, shape: str) -> float:
  """Measures the median time of ten calls on the device that is here.

  Two calls before them compile and warm up.

  Args:
    implementation: Name in the table of `api`.
    form: "expanded" or "absorbed".
    shape: Key of `specs.SHAPES`.
  """
  rng = np.random.default_rng(0)

  def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
    if x.dtype == bool:
      return jnp.ones(x.shape, bool)
    return jnp.asarray(rng.standard_normal(x.shape, np.float32), x.dtype)

  args = jax.tree.map(draw, specs.SHAPES[shape].arguments(jnp.bfloat16))
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


def rows(
  *,
  targets: Sequence[str],
  shapes: Sequence[str],
  implementations: Sequence[str] = IMPLEMENTATIONS,
) -> Iterator[kernel_row.Row]:
  """Compiles everything in one process per target, row by row.

  Args:
    targets: Keys of `gpus.TARGETS`.
    shapes: Keys of `specs.SHAPES`.
    implementations: Names in the table of `api`.

  Yields:
    A row as soon as it is known.

  Raises:
    RuntimeError: If the toolchain is not installed or a process fails.
  """
  aot.check_toolchain()
  for target in targets:
    # Mosaic and XLA read where to write reports when they start, so every
    # target gets a new process.
    with tempfile.TemporaryDirectory() as folder:
      environment = aot.dump_environment(pathlib.Path(folder))
      command = [
        sys.executable,
        "-m",
        "videomla_jax.costs.kernel_table",
        target,
      ]
      command += [",".join(shapes), ",".join(implementations)]
      with subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
      ) as process:
        try:
          for line in process.stdout or ():
            if line.startswith("{") and line.endswith("\n"):
              yield _with_time(kernel_row.Row(**json.loads(line)))
        # Nobody reads further rows after a full disk or Ctrl-C.
        except BaseException:
          process.terminate()
          raise
      if process.returncode:
        raise RuntimeError(
          f"compiling for {target} failed with code {process.returncode}; the "
          "reason is above."
        )


def _with_time(row: kernel_row.Row) -> kernel_row.Row:
  """Adds the measured time if this is the GPU that was compiled for."""
  here = device.current()
  target = gpus.TARGETS[row.target].capability[0]
  if not row.compiled or int(here.capability) != target:
    return row
  took = measured_us(row.implementation, row.form, row.shape)
  return dataclasses.replace(row, device_us=round(took, 1))


def _worker(target: str, shapes: str, implementations: str) -> None:
  """Prints the rows of one target as JSON; names are joined by commas."""
  dumps = pathlib.Path(os.environ["MOSAIC_GPU_DUMP_TO"])
  for shape in shapes.split(","):
    for form in FORMS:
      for name in implementations.split(","):
        row = compiled_row(name, form, shape, target, dumps)
        print(json.dumps(dataclasses.asdict(row)), flush=True)


if __name__ == "__main__":
  _worker(*sys.argv[1:])
