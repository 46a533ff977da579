"""Which form and which implementation `auto` takes, by architecture.

A row says what is tried for some calls, in this order, and where that is known
from: a record of measurements (`docs/benchmarks/NAME.jsonl`), or "computed".
Computed rows are guesses, since no computed time of the H100 was near.
`tests/ops/latent_attention/selection_test.py` compares every row that names a
record with it: what is tried first must be the fastest.

`xla_chunked` follows each row, and is the only choice where there is no row.
"""

from collections.abc import Iterable
import dataclasses
import math
from typing import get_args, Literal, NamedTuple

from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import types

# Latent attention; dense attention, in which some keys may be empty; and
# attention to the text, in which none are.
Problem = Literal["latent", "dense", "text"]
COMPUTED = "computed"
H100 = "nvidia-h100-80gb-hbm3"
PLAIN = ("xla_chunked", "reference")  # what XLA compiles for any device


class Choice(NamedTuple):
  """A form and who computes it; dense keys are expanded from the start."""

  implementation: str
  form: types.Form = "expanded"


class Call(NamedTuple):
  """What a choice depends on beside the device.

  Attributes:
    problem: Which attention.
    gradient: Whether a gradient is asked for.
    sizes: Sizes of latent attention.
  """

  problem: Problem
  gradient: bool = False
  sizes: forms.Sizes | None = None

  def order_of_forms(
    self, intensity: float | int = math.inf
  ) -> tuple[types.Form, ...]:
    """Returns the forms of this problem, the one that costs less first."""
    if self.sizes is None:
      return ("expanded",)
    if self.sizes.cheaper_form(intensity) == "expanded":
      return ("expanded", "absorbed")
    return ("absorbed", "expanded")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """What is tried for some calls.

  Attributes:
    problem: Which attention.
    choices: What is tried, in this order.
    source: Name of a record, or `COMPUTED`.
    gradient: Whether the row is for calls with a gradient.
    absorbed: True for calls whose absorbed form costs less (`forms.Sizes`),
      which have few queries; False for the others, None for all.
    eight_bits: True for calls with keys in eight bits, None for all.
    unmeasured: Those of the choices that the record does not have.
  """

  problem: Problem
  choices: tuple[Choice, ...]
  source: str
  gradient: bool = False
  absorbed: bool | None = None
  eight_bits: bool | None = None
  unmeasured: tuple[Choice, ...] = ()

  def fits(self, call: Call, intensity: float | int) -> bool:
    """Tells whether the row is for a call on a device of this intensity."""
    if (self.problem, self.gradient) != (call.problem, call.gradient):
      return False
    if call.sizes is None:
      return True
    absorbed = call.order_of_forms(intensity)[0] == "absorbed"
    eight_bits = call.sizes.eight_bit_keys > 0
    return self.absorbed in (None, absorbed) and (
      self.eight_bits in (None, eight_bits)
    )


_CUDNN = Choice("cudnn")
_OURS = (Choice("pallas_triton"), Choice("pallas_triton", "absorbed"))
_FEW = (Choice("triton", "absorbed"), *reversed(_OURS), _CUDNN)
_MOSAIC = Choice("pallas_mosaic_gpu")
_DENSE = (_CUDNN, Choice("pallas_triton"))


def _computed() -> tuple[Row, ...]:
  """Rows that are the same where nothing was measured."""
  row = lambda problem, gradient, *choices: Row(
    problem=problem, choices=choices, source=COMPUTED, gradient=gradient
  )
  return (
    row("latent", False, _CUDNN, *_OURS),
    row("latent", True, _CUDNN, *_OURS),
    *(row(p, g, *_DENSE) for p in ("dense", "text") for g in (False, True)),
  )


def _few(*choices: Choice) -> Row:
  return Row(problem="latent", choices=choices, source=COMPUTED, absorbed=True)


# Rows by the major number of the compute capability; the first that fits.
TABLE: dict[int, tuple[Row, ...]] = {
  8: (_few(*_FEW), *_computed()),
  9: (
    Row(
      problem="latent",
      choices=(*_OURS, _CUDNN),
      source=H100,
      absorbed=True,
      eight_bits=True,
    ),
    Row(
      problem="latent",
      choices=(_CUDNN, *reversed(_OURS)),
      source=H100,
      absorbed=True,
    ),
    Row(
      problem="latent",
      choices=(_CUDNN, _MOSAIC, *_OURS),
      source=H100,
      unmeasured=(_MOSAIC,),
    ),
    Row(
      problem="latent",
      choices=(_CUDNN, _MOSAIC, *_OURS),
      source=H100,
      gradient=True,
      unmeasured=(_MOSAIC,),
    ),
    Row(problem="dense", choices=_DENSE, source=H100),
    *_computed(),
  ),
  10: (
    _few(_FEW[0], _MOSAIC._replace(form="absorbed"), *_FEW[1:]),
    Row(problem="latent", choices=(_MOSAIC, _CUDNN, *_OURS), source=COMPUTED),
    *_computed(),
  ),
}

# Rows of all TPUs. Calls whose absorbed form costs less are left to XLA, since
# JAX's kernel has none.
_TPU_FLASH = Choice("tpu_flash")
TPU: tuple[Row, ...] = tuple(
  Row(
    problem=problem,
    choices=(_TPU_FLASH,),
    source=COMPUTED,
    gradient=gradient,
    absorbed=False,
  )
  for problem in get_args(Problem)
  for gradient in (False, True)
)


class Option(NamedTuple):
  """Something to try.

  Attributes:
    choice: Form and implementation.
    reason: Why it comes where it comes.
    has_record: Whether its implementation has been measured, and so compared,
      on this architecture.
  """

  choice: Choice
  reason: str
  has_record: bool

  def __str__(self) -> str:
    """Says it as commands print it."""
    name, form = self.choice
    return f"{form} form by {name} ({self.reason})"


def _rows(here: device.Device) -> tuple[Row, ...]:
  """Returns the rows of the newest architecture that is not newer."""
  if here.platform == "tpu":
    return TPU
  known = [major for major in TABLE if major <= here.capability]
  return TABLE[max(known)] if known else ()


def row_of(call: Call, here: device.Device) -> Row | None:
  """Finds the row of a call; None where only plain XLA runs.

  Args:
    call: What is computed.
    here: The device.
  """
  fitting = (r for r in _rows(here) if r.fits(call, here.intensity))
  return next(fitting, None)


def _recorded(here: device.Device) -> set[str]:
  """Names of the implementations that were measured on this architecture."""
  rows = TABLE.get(int(here.capability), ())
  return {
    c.implementation
    for r in rows
    if r.source != COMPUTED
    for c in r.choices
    if c not in r.unmeasured
  }


def options(
  call: Call, here: device.Device, *, form: types.Form = "auto"
) -> tuple[Option, ...]:
  """Lists what is tried for a call, best first.

  Args:
    call: What is computed.
    here: The device.
    form: The only form that is tried, or "auto".
  """
  row, recorded = row_of(call, here), _recorded(here)
  found = []
  if row is not None:
    why = row.source if row.source == COMPUTED else f"record {row.source}"
    found = [
      Option(
        c,
        COMPUTED if c in row.unmeasured else why,
        c.implementation in recorded,
      )
      for c in row.choices
    ]
  last = "no kernel of the table can run"
  if row is None:
    names = {"cpu": "a CPU", "tpu": "a TPU"}
    last = f"the device is {names.get(here.platform, here.kind)}"
  order: Iterable[types.Form] = call.order_of_forms(here.intensity)
  found += [Option(Choice(PLAIN[0], f), last, True) for f in order]
  return tuple(o for o in found if form in ("auto", o.choice.form))
