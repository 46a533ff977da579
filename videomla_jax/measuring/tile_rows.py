"""Rows of the tiles of `pallas_triton`: a sweep for one GPU.

`benchmark.py:suite=gpu` with `--config.rows=pallas_triton_tiles` runs it.

Each row is one candidate of `triton_config.candidates`. What is fastest in a
record belongs into `triton_config.TABLE`, and a test asks for it.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools

import jax
from jaxtyping import Array, PyTree
import numpy as np

from videomla_jax.costs import attention_shapes
from videomla_jax.measuring import attention_rows
from videomla_jax.measuring import record
from videomla_jax.measuring import row as row_lib
from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import pallas_triton
from videomla_jax.ops.latent_attention import triton_config
from videomla_jax.ops.latent_attention import types
from videomla_jax.ops.latent_attention import xla_chunked

NAME = "pallas_triton_tiles"
_CAPABILITY = 8.0  # that Triton's kernels need
_SECONDS = 0.1  # of measuring a candidate; what takes time is to compile it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
  """What is swept.

  Attributes:
    shape: Key of the shapes.
    form: Form of latent attention.
    direction: Forward kernel, or both backward kernels behind it.
  """

  shape: str
  form: types.Form
  direction: triton_config.Direction

  def width(self, sizes: forms.Sizes) -> int:
    """Returns the width by which `triton_config` knows the call.

    Args:
      sizes: Sizes of the call.
    """
    if self.form == "absorbed":
      return sizes.content_latent
    return max(sizes.content, sizes.value)


def calls(shape: str, gradient: str) -> tuple[Call, ...]:
  """Returns the calls of a sweep.

  The gradient of the absorbed form is never chosen, so it is left out.

  Args:
    shape: Name of the shape of the forward passes.
    gradient: Name of the shape of the gradient.
  """
  return (
    Call(shape=shape, form="expanded", direction="forward"),
    Call(shape=shape, form="absorbed", direction="forward"),
    Call(shape=gradient, form="expanded", direction="gradient"),
  )


def rows(
  shapes: Mapping[str, attention_shapes.Shape], swept: Sequence[Call]
) -> Iterator[row_lib.Row]:
  """Yields the rows.

  Args:
    shapes: Calls of latent attention by name.
    swept: What is swept.
  """
  if device.current().capability < _CAPABILITY:
    # One refusal says what that of every candidate would say.
    shape = ", ".join(sorted({call.shape for call in swept}))
    yield row_lib.Row(name=NAME, measure=_refuse, shape=shape)
    return
  for call in swept:
    shape = shapes[call.shape]
    # The result that all candidates of a call are compared with.
    expected = functools.cache(functools.partial(_expected, call, shape))
    width = call.width(shape.sizes)
    for config in triton_config.candidates(call.direction, width):
      yield row_lib.Row(
        name=NAME,
        measure=functools.partial(_measure, call, shape, config, expected),
        shape=call.shape,
        form=call.form,
        implementation="pallas_triton",
        direction=call.direction,
        tiles=str(config),
      )


def _refuse() -> list[row_lib.Figure]:
  raise NotImplementedError(
    f"{NAME}: needs an NVIDIA GPU of compute capability {_CAPABILITY:g} or "
    f"later, this is {device.current().kind}"
  )


def _run(call: Call, attend: Callable[..., Array]) -> Callable[..., PyTree]:
  if call.direction == "gradient":
    return jax.jit(attention_rows.gradient(attend))
  return jax.jit(attend)


def _arrays(tree: PyTree) -> list[np.ndarray]:
  return [np.asarray(x, np.float32) for x in jax.tree.leaves(tree)]


def _expected(call: Call, shape: attention_shapes.Shape) -> list[np.ndarray]:
  """Computes a call without kernels."""
  attend = functools.partial(xla_chunked.latent_attention, form=call.form)
  args = attention_rows.draw(shape, holes=False)
  return _arrays(_run(call, attend)(*args))


def _measure(
  call: Call,
  shape: attention_shapes.Shape,
  config: triton_config.Config,
  expected: Callable[[], list[np.ndarray]],
) -> list[row_lib.Figure]:
  """Times a candidate, and compares what it computes."""
  if call.direction == "forward":
    flash = functools.partial(pallas_triton.flash, config=config)
  else:
    flash = functools.partial(pallas_triton.flash, gradient_config=config)
  attend = functools.partial(forms.attend, flash, form=call.form)
  run = _run(call, attend)
  args = attention_rows.draw(shape, holes=False)
  took = row_lib.seconds(run, *args, budget=_SECONDS)
  errors = [
    float(np.abs(a - b).max() / np.abs(b).max())
    for a, b in zip(_arrays(run(*args)), expected(), strict=True)
  ]
  return [
    row_lib.Figure("", took * 1e6, "us"),
    row_lib.Figure("error", max(errors), "of the largest number"),
  ]


def fastest(lines: Iterable[record.Line]) -> dict[tuple[str, str, str], str]:
  """Finds the best tiles of a record.

  Args:
    lines: Lines of one device; a later line of a candidate replaces an earlier
      one.

  Returns:
    The tiles that took least time, by shape, form and direction. Candidates
    whose result differs by more than 2% of the largest number are left out.
  """
  newest = {record.label(x): x for x in lines}
  times: dict[tuple[str, str, str], dict[str, float]] = {}
  for line in newest.values():
    if line["name"] == NAME and line.get("value") is not None:
      error = newest.get(record.label(line | dict(name=f"{NAME}_error")), {})
      if error.get("value", 1.0) <= 0.02:
        call = (line["shape"], line["form"], line["direction"])
        times.setdefault(call, {})[line["tiles"]] = line["value"]
  return {call: min(of, key=of.__getitem__) for call, of in times.items()}
