"""The rates that an H100 reached, for `costs/chunk_time.py`.

docs/throughput.md shows what is computed with them.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib

from videomla_jax.costs import attention_shapes
from videomla_jax.costs import chunk_time
from videomla_jax.measuring import record
from videomla_jax.ops import device

_HOPPER = 9  # key of `device.PEAKS`
_COMMIT = "499dede"  # the code that was measured


@dataclasses.dataclass(frozen=True)
class Measured:
  """The record of the GPU whose rates are taken.

  Attributes:
    lines: Lines of its record.
    work: Lines of `suite=work`.
  """

  lines: Sequence[record.Line]
  work: Sequence[record.Line]

  @property
  def peak(self) -> device.Peak:
    """The data sheet of that GPU."""
    return device.PEAKS[_HOPPER]

  @classmethod
  def read(cls, folder: pathlib.Path) -> "Measured":
    """Reads the records of this repository.

    Args:
      folder: Its folder docs.
    """
    return cls(
      record.read(folder / "benchmarks" / "nvidia-h100-80gb-hbm3.jsonl"),
      record.read(folder / "benchmark_work.jsonl"),
    )

  def rate(self, name: str, unit: str, **fields: str | bool) -> float:
    """Returns the newest number that was measured.

    Args:
      name: What was measured.
      unit: Unit of the number.
      **fields: What its line must say beside.

    Raises:
      ValueError: If there is none.
    """
    return chunk_time.rate_of(self.lines, name=name, unit=unit, **fields)

  def beside_seconds(self) -> float:
    """Time of what ran beside products and attention when it was measured."""
    names = ("elementwise", "weight_copies", "concatenations")
    of = lambda name: self.rate(
      f"chunk_step_part_{name}", "ms", implementation="cudnn"
    )
    return sum(map(of, names)) / 1e3

  def gradient(self, implementation: str) -> float:
    """Operations per second of attention with its gradient.

    The backward pass has five products where the forward pass has two, and one
    of seven frames is empty in the call that was timed.

    Args:
      implementation: What computes it.
    """
    call = attention_shapes.SHAPES["480p_framewise"].sizes
    keys = call.keys * 6 // 7
    flops = 2 * dataclasses.replace(call, keys=keys).multiply_adds("expanded")
    microseconds = self.rate(
      "latent_attention",
      "us",
      shape="480p_framewise",
      implementation=implementation,
      form="expanded",
      direction="gradient",
    )
    return 3.5 * flops / (microseconds * 1e-6)

  def shares(
    self, implementation: str = "cudnn", form: str = "expanded"
  ) -> chunk_time.Shares:
    """Returns what share of the data sheet each part reached.

    Args:
      implementation: What computes self-attention.
      form: Its form.
    """
    attention = self.rate(
      "latent_attention",
      "TFLOP/s",
      shape="480p",
      implementation=implementation,
      form=form,
      holes=False,
    )
    then = chunk_time.rate_of(
      [dict(x, value=x.get("beside_bytes")) for x in self.work],
      name="chunk_step_as_measured",
      commit=_COMMIT,
    )
    sheet = self.peak
    return chunk_time.Shares(
      products=self.rate("matmul", "TFLOP/s") * 1e12 / sheet.bf16_flops,
      attention=attention * 1e12 / sheet.bf16_flops,
      gradient=self.gradient(implementation) / sheet.bf16_flops,
      beside=then / self.beside_seconds() / sheet.bandwidth,
    )


def chunk_line(
  measured: Measured, attention: str = "latent", window: str = "1+6"
) -> record.Line:
  """Returns the newest chunk step of one video in bfloat16, for an H100.

  Args:
    measured: The record.
    attention: "latent" or "dense".
    window: Name of its window.

  Raises:
    ValueError: If it was not counted.
  """
  wanted = dict(
    name="chunk_step",
    attention=attention,
    window=window,
    batch=1,
    cache="bfloat16",
    products="bfloat16",
    target="h100",
  )
  found = [
    x for x in measured.work if all(x.get(k) == v for k, v in wanted.items())
  ]
  if not found:
    raise ValueError(f"the record has no line with {wanted}; count it first.")
  return found[-1]


def shares_of(
  measured: Measured, line: Mapping[str, object], implementation: str = "cudnn"
) -> chunk_time.Shares:
  """Returns the shares for a chunk step.

  A dense layer that sees a whole clip makes the very call that was timed;
  otherwise the rate of the latent call is taken.

  Args:
    measured: The record.
    line: A line of `suite=work`.
    implementation: What computes self-attention.
  """
  shares = measured.shares(implementation)
  if (line["attention"], line["window"]) != ("dense", "21"):
    return shares
  rate = measured.rate(
    "dense_attention", "TFLOP/s", implementation=implementation
  )
  return dataclasses.replace(
    shares, attention=rate * 1e12 / measured.peak.bf16_flops
  )


def work_of(
  line: Mapping[str, object], form: str = "expanded"
) -> chunk_time.Work:
  """Reads the work of a chunk step.

  Args:
    line: A line of `suite=work`.
    form: Order of the products of latent attention.
  """
  number = lambda key: float(str(line[key]))
  key = "attention_flops" if form == "expanded" else "absorbed_flops"
  return chunk_time.Work(
    product_flops=number("product_flops"),
    attention_flops=number(key),
    text_flops=number("text_flops"),
    beside_bytes=number("beside_bytes"),
    float8=str(line["products"]).startswith("float8"),
  )
