"""The rates of the H100 are those that its record implies."""

import dataclasses
import pathlib

import numpy as np
import pytest

from videomla_jax.costs import chunk_time
from videomla_jax.measuring import rates

_DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def measured() -> rates.Measured:
  return rates.Measured.read(_DOCS)


def test_shares_are_of_the_data_sheet(measured: rates.Measured) -> None:
  shares = measured.shares()
  np.testing.assert_allclose(shares.products, 712 / 989)
  np.testing.assert_allclose(shares.attention, 459 / 989)
  # The program that was timed takes as long as its parts took.
  then = next(x for x in measured.work if x["name"] == "chunk_step_as_measured")
  work = chunk_time.Work(
    product_flops=0.0,
    attention_flops=0.0,
    text_flops=0.0,
    beside_bytes=then["beside_bytes"],
  )
  found = chunk_time.seconds(work, shares, measured.peak)
  np.testing.assert_allclose(found["beside"], 0.0596)


def test_a_slower_kernel_has_a_lower_rate(measured: rates.Measured) -> None:
  ours, library = (measured.shares(x) for x in ("pallas_triton", "cudnn"))
  assert ours.attention < library.attention
  # The record: 3,848 us and 1,037 us for the same call.
  np.testing.assert_allclose(library.gradient / ours.gradient, 3848 / 1037)


def test_parts_of_the_record_are_predicted(measured: rates.Measured) -> None:
  line = rates.chunk_line(measured)
  found = chunk_time.seconds(
    rates.work_of(line), measured.shares(), measured.peak
  )
  # Up-projections are products in the profile and attention here.
  timed = sum(
    measured.rate(f"chunk_step_part_{part}", "ms", implementation="cudnn")
    for part in ("products", "attention", "text_attention")
  )
  computed = found["products"] + found["attention"] + found["text"]
  np.testing.assert_allclose(computed * 1e3, timed, rtol=0.1)


def test_a_step_that_was_timed_is_predicted(measured: rates.Measured) -> None:
  then = next(x for x in measured.work if x["name"] == "chunk_step_as_measured")
  cases = (
    ("latent", "1+6", "cudnn", "480x832, 12 pixel frames"),
    ("latent", "1+6", "pallas_triton", "480x832, 12 pixel frames"),
    ("dense", "21", "pallas_triton", "480x832, 12 pixel frames, window 21"),
  )
  for kind, window, implementation, shape in cases:
    line = rates.chunk_line(measured, kind, window)
    work = rates.work_of(line)
    if kind == "latent":
      work = dataclasses.replace(work, beside_bytes=then["beside_bytes"])
    computed = sum(
      chunk_time.seconds(
        work,
        rates.shares_of(measured, line, implementation),
        measured.peak,
      ).values()
    )
    took = measured.rate(
      "chunk_step", "ms", attention=kind, implementation=implementation,
      shape=shape,
    )  # fmt: skip
    np.testing.assert_allclose(computed * 1e3, took, rtol=0.1)
