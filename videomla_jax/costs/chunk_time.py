"""Estimates how long a chunk takes, from what it computes and moves.

A program is taken apart into products, attention, attention to the text, and
what is moved beside them. Each part takes its operations or bytes over a rate,
one part after the other. A rate is a share of the data sheet, and the shares
come from a GPU that was measured: docs/throughput.md compares what follows with
programs that were timed there.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
from typing import Any

from videomla_jax.ops import device

PARTS = ("products", "attention", "text", "beside")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """What a program computes and moves.

  Attributes:
    product_flops: Operations of products outside of attention.
    attention_flops: Operations of self-attention, up-projections included.
    text_flops: Operations of the attention to the text.
    beside_bytes: Bytes read and written beside products and attention.
    float8: Whether the products take numbers in eight bits.
  """

  product_flops: float | int
  attention_flops: float | int
  text_flops: float | int
  beside_bytes: float | int
  float8: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares:
  """Which share of a data sheet each part of a program reaches.

  Attributes:
    products: Of the products per second.
    attention: Of the products per second, in attention.
    gradient: Likewise, in attention with its gradient.
    beside: Of the memory's bytes per second.
  """

  products: float
  attention: float
  gradient: float
  beside: float


# A unit that never waits: the least time that the data sheet allows.
SHEET = Shares(products=1.0, attention=1.0, gradient=1.0, beside=1.0)


def seconds(work: Work, shares: Shares, peak: device.Peak) -> dict[str, float]:
  """Computes the time of each part.

  Args:
    work: What is computed and moved.
    shares: How much of the data sheet is reached.
    peak: The data sheet. Products in eight bits run at twice its rate.

  Returns:
    Seconds by part, in the order of `PARTS`.
  """
  faster = 2 if work.float8 else 1
  attention = shares.attention * peak.bf16_flops
  return dict(
    products=work.product_flops / (faster * shares.products * peak.bf16_flops),
    attention=work.attention_flops / attention,
    text=work.text_flops / attention,
    beside=work.beside_bytes / (shares.beside * peak.bandwidth),
  )


def rate_of(lines: Iterable[Mapping[str, Any]], **fields: str | bool) -> float:
  """Finds the newest value of a record's line.

  Args:
    lines: The record of a GPU.
    **fields: What the line must say.

  Raises:
    ValueError: If there is no such line.
  """
  found = [
    x["value"]
    for x in lines
    if all(x.get(k) == v for k, v in fields.items())
    and x.get("value") is not None
  ]
  if not found:
    raise ValueError(f"the record has no line with {fields}; measure it first.")
  return float(found[-1])
