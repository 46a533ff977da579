"""Computes what every attention kernel costs on GPUs that need not be here.

  python -m videomla_jax.benchmark --config=configs/benchmark.py:suite=kernels

Every implementation, form and real shape is compiled for a target. The table
says with how many registers, spills and tensor-core instructions, and what is
the least time that the data sheet allows. On such a GPU the call is timed, too.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from videomla_jax.costs import compiled_kernel
from videomla_jax.costs import gpus
from videomla_jax.costs import kernel_row
from videomla_jax.costs import toolchain
from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import types

FORMS: tuple[types.Form, ...] = ("expanded", "absorbed")
# These are our own: the reference writes all scores to memory, and libraries
# bring no source along.
IMPLEMENTATIONS = (*api.KERNELS, "xla_chunked")


def rows(
  *,
  targets: Sequence[str],
  shapes: Sequence[str],
  implementations: Sequence[str] = IMPLEMENTATIONS,
) -> Iterator[kernel_row.Row]:
  """Compiles everything in one process per target, row by row.

  Args:
    targets: Keys of `gpus.TARGETS`.
    shapes: Keys of `attention_shapes.SHAPES`.
    implementations: Names in the table of `api`.

  Yields:
    A row as soon as it is known.

  Raises:
    RuntimeError: If the toolchain is not installed or a process fails.
  """
  toolchain.check_toolchain()
  for target in targets:
    # Mosaic and XLA read where to write reports when they start, so every
    # target gets a new process.
    with tempfile.TemporaryDirectory() as folder:
      environment = toolchain.dump_environment(pathlib.Path(folder))
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
            # Libraries may print as well, and a process that was killed may
            # leave half a row.
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
  # It is measured here and not where it was compiled: that process has
  # JAX_PLATFORMS=cpu and sees no GPU.
  took = compiled_kernel.measured_us(row.implementation, row.form, row.shape)
  return dataclasses.replace(row, device_us=round(took, 1))


def _worker(target: str, shapes: str, implementations: str) -> None:
  """Prints the rows of one target as JSON; names are joined by commas."""
  dumps = pathlib.Path(os.environ["MOSAIC_GPU_DUMP_TO"])
  for shape in shapes.split(","):
    for form in FORMS:
      for name in implementations.split(","):
        row = compiled_kernel.compiled_row(name, form, shape, target, dumps)
        # A row must reach the parent now, and not when the pipe's buffer is
        # full.
        print(json.dumps(dataclasses.asdict(row)), flush=True)


if __name__ == "__main__":
  _worker(*sys.argv[1:])
