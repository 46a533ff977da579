"""Triton's interpreter for the kernel of `triton`, which JAX calls on the host.

Triton decides at import whether it interprets, so the process needs
TRITON_INTERPRET=1 from its start.
"""

import types as python_types

import jax
import ml_dtypes
import numpy as np

from videomla_jax.ops.latent_attention import triton as kernel


class _Tensor:
  """As much of torch.Tensor over NumPy as the interpreter asks for."""

  def __init__(self, data):
    self.data, self.dtype = data, f"torch.{data.dtype}"

  def _self(self, *_, **__):
    return self

  untyped_storage = cpu = copy_ = new_empty = _self

  def set_(self, storage, *_):
    self.__init__(storage.data)
    return self

  def data_ptr(self):
    return self.data.ctypes.data

  def storage_offset(self):
    return 0

  def size(self):
    return self.data.shape

  stride = size


def _interpreted_call(*arrays, kernel, out_type, grid, **constants):
  """Like `jax_triton.triton_call`; what a kernel leaves unwritten is NaN."""
  for option in ("name", "num_warps", "num_stages", "compute_capability"):
    constants.pop(option)

  def run(*arrays):
    outs = [np.full(o.shape, np.nan, o.dtype) for o in out_type]
    ins = [x if x is None else np.ascontiguousarray(x) for x in arrays]
    tensors = (x if x is None else _Tensor(x) for x in (*ins, *outs))
    kernel[grid](*tensors, **constants)
    return tuple(outs)

  return jax.pure_callback(run, tuple(out_type), *arrays)


def _teach_bfloat16():
  """The interpreter has bfloat16 as bits, and would multiply the bits.

  A product of two is exact in float32, where tensor cores add them up; numbers
  are rounded to the nearest.
  """
  from triton import language as tl
  from triton.runtime import interpreter

  builder = interpreter.InterpreterBuilder
  create_dot, cast_impl = builder.create_dot, builder.cast_impl

  def wide(x):
    if x.dtype.scalar != tl.bfloat16:
      return x
    values = x.data.view(ml_dtypes.bfloat16).astype(np.float32)
    return interpreter.TensorHandle(values, tl.float32)

  def dot(self, a, b, *args):
    return create_dot(self, wide(a), wide(b), *args)

  def cast(self, x, to):
    if to.scalar != tl.bfloat16:
      return cast_impl(self, x, to)
    values = wide(x).data.astype(np.float32).astype(ml_dtypes.bfloat16)
    return interpreter.TensorHandle(values.view(np.uint16), tl.bfloat16)

  builder.create_dot, builder.cast_impl = dot, cast


def install():
  """Interprets the kernel from now on in this process."""
  kernel.jax_triton = python_types.SimpleNamespace(
    triton_call=_interpreted_call
  )
  _teach_bfloat16()
