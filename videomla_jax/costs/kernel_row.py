"""One row of the table of kernels: what a call costs on one GPU."""

import dataclasses
from typing import Any

from videomla_jax.costs import gpus
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One row of the table; its fields are the keys of the JSON lines.

  Attributes:
    implementation: Name in the table of `api`.
    form: "expanded" or "absorbed".
    shape: Key of `attention_shapes.SHAPES`.
    dtype: Type of inputs and outputs.
    target: Key of `gpus.TARGETS`.
    compiled: Whether the call compiles.
    error: Why it does not compile; empty if it does.
    registers: Registers per thread of the attention kernel.
    spill_bytes: Bytes of stack and spills per thread of it.
    local_memory_ops: Loads and stores of local memory in its machine code.
    smem_bytes: Shared memory of one of its thread blocks.
    tmem_columns: Columns of tensor memory; None where it uses none.
    tensor_core_ops: Matrix instructions in its machine code.
    temporary_bytes: Bytes that the whole call needs while it runs, expanded
      keys and values included.
    compile_seconds: Wall time of the compilation.
    flops: Operations of up-projections and attention.
    bytes: Bytes that must be moved at least.
    roofline_us: Least time by the data sheet, microseconds.
    bound: What takes this time: "matmul", "exp" or "memory".
    device_us: Median measured time, microseconds; None without the device.
  """

  implementation: str
  form: types.Form
  shape: str
  dtype: str
  target: str
  compiled: bool
  error: str = ""
  registers: int | None = None
  spill_bytes: int | None = None
  local_memory_ops: int | None = None
  smem_bytes: int | None = None
  tmem_columns: int | None = None
  tensor_core_ops: int | None = None
  temporary_bytes: int | None = None
  compile_seconds: float | None = None
  flops: float = 0.0
  bytes: float = 0.0
  roofline_us: float = 0.0
  bound: str = ""
  device_us: float | None = None


def costs(
  sizes: forms.Sizes, form: types.Form, target: gpus.Target
) -> dict[str, Any]:
  """Computes the work of a call and its least time, as fields of a `Row`.

  Args:
    sizes: Sizes of the call.
    form: "expanded" or "absorbed".
    target: The GPU.
  """
  flops = 2.0 * sizes.multiply_adds(form)
  project, attend = sizes.num_bytes(form)
  moved = float(project + attend)
  exps = float(sizes.queries * sizes.keys * sizes.heads)
  least, bound = gpus.roofline(
    flops=flops, bytes_moved=moved, exps=exps, target=target
  )
  return dict(
    flops=flops, bytes=moved, roofline_us=round(least, 3), bound=bound
  )


def line(row: Row) -> str:
  """Returns a row as it is printed."""
  if not row.compiled:
    return (
      f"{row.target:5} {row.shape:18} {row.form:9} {row.implementation:18} "
      f"not compiled: {row.error}"
    )

  def show(x: float | int | None) -> str:
    return "-" if x is None else f"{x}"

  return (
    f"{row.target:5} {row.shape:18} {row.form:9} {row.implementation:18} "
    f"registers {show(row.registers):>3}  spills {show(row.spill_bytes):>5} B "
    f"smem {show(row.smem_bytes):>6}  tmem {show(row.tmem_columns):>4}  "
    f"tensor-core ops {show(row.tensor_core_ops):>4}  "
    f"{row.flops / 1e9:8.1f} GFLOP  roofline {row.roofline_us:8.1f} us "
    f"({row.bound})"
    + (f"  measured {row.device_us} us" if row.device_us else "")
  )
