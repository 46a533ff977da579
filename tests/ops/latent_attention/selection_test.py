"""The table of choices against the records that its rows name."""

import json
import math
import pathlib

import jax.numpy as jnp
import pytest

from videomla_jax.costs import attention_shapes
from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import selection

RECORDS = pathlib.Path(__file__).parents[3] / "docs" / "benchmarks"
H100 = device.Device(
  kind="NVIDIA H100 80GB HBM3", platform="gpu", capability=9.0
)
ROWS = [(major, r) for major, rows in selection.TABLE.items() for r in rows]
ROWS += [("tpu", r) for r in selection.TPU]


def _measured(record):
  """Microseconds of every choice, by the call that they are of."""
  calls = {}
  for line in (RECORDS / f"{record}.jsonl").read_text().splitlines():
    row = json.loads(line)
    problem = row["name"].removesuffix("_attention")
    if problem not in ("latent", "dense") or row["unit"] != "us":
      continue
    if row["value"] is None:  # it could not run
      continue
    case = (problem, row["shape"], row["holes"], row["direction"] == "gradient")
    choice = (row["implementation"], row["form"])
    calls.setdefault(case, {})[choice] = row["value"]
  return calls


def _call(problem, shape, _, gradient):
  sizes = None
  if problem == "latent":
    sizes = attention_shapes.SHAPES[shape].sizes
  return selection.Call(problem, gradient, sizes)


@pytest.mark.parametrize("major", selection.TABLE)
def test_first_choice_of_a_recorded_row_is_the_fastest_of_its_record(major):
  recorded = [
    r for r in selection.TABLE[major] if r.source != selection.COMPUTED
  ]
  used = set()
  for record in {r.source for r in recorded}:
    for case, times in _measured(record).items():
      here = device.Device(kind="", platform="gpu", capability=float(major))
      row = selection.row_of(_call(*case), here)
      if row not in recorded:
        continue
      used.add(recorded.index(row))
      name, form = row.choices[0]
      fastest = min(times, key=times.get)
      assert fastest in ((name, form), (name, None)), (case, times)
      # What the record has and is faster than plain XLA is in the row, too.
      plain = times.get(("xla_chunked", None), math.inf)
      listed = {(n, f) for n, f in row.choices}
      for (n, f), took in times.items():
        assert (n, f or "expanded") in listed or took >= plain, (case, n, f)
  # A row without a case in its record claims what nobody measured.
  assert used == {*range(len(recorded))}


def test_a_record_says_what_was_measured_on_which_device():
  for path in RECORDS.glob("*.jsonl"):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({json.dumps(r) for r in rows}) == len(rows)
    for row in rows:
      name = row["device"].lower().replace(" ", "-")
      assert path.stem == name
      assert {"date", "commit", "versions", "name", "unit"} <= row.keys()
      assert (row["value"] is None) == ("error" in row)


@pytest.mark.parametrize(("major", "row"), ROWS)
def test_rows_name_what_there_is(major, row):
  table = api.IMPLEMENTATIONS if row.problem == "latent" else api.DENSE
  assert {c.implementation for c in row.choices} <= {*table}
  assert len({*row.choices}) == len(row.choices)
  if row.source != selection.COMPUTED:
    assert (RECORDS / f"{row.source}.jsonl").exists()


@pytest.mark.parametrize("major", selection.TABLE)
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("problem", ["latent", "dense", "text"])
def test_every_architecture_has_rows_for_every_problem(
  major, gradient, problem
):
  here = device.Device(kind="", platform="gpu", capability=float(major))
  sizes = attention_shapes.SHAPES["480p"].sizes if problem == "latent" else None
  call = selection.Call(problem, gradient, sizes)
  assert selection.row_of(call, here)


@pytest.mark.parametrize(
  ("shape", "gradient", "expected"),
  [
    ("480p", False, "expanded form by cudnn"),
    ("480p", True, "expanded form by cudnn"),
    ("few_queries", False, "expanded form by cudnn"),
    ("few_queries_int8", False, "expanded form by pallas_triton"),
    ("few_queries_int8", True, "expanded form by cudnn"),
  ],
)
def test_hopper_follows_its_record(shape, gradient, expected):
  call = selection.Call(
    "latent", gradient, attention_shapes.SHAPES[shape].sizes
  )
  first, *others = selection.options(call, H100)
  assert str(first) == f"{expected} (record {selection.H100})"
  assert first.has_record
  # Plain XLA is always left, in the form that costs less.
  last = [o.choice for o in others if o.choice.implementation == "xla_chunked"]
  order = call.order_of_forms(H100.intensity)
  assert [c.form for c in last] == [*order]


def test_hopper_tries_what_has_no_record_second_and_says_so():
  call = selection.Call("latent", False, attention_shapes.SHAPES["480p"].sizes)
  _, second, third, *_ = selection.options(call, H100)
  assert str(second) == "expanded form by pallas_mosaic_gpu (computed)"
  # So it checks itself before it is taken, and what follows does not.
  assert (second.has_record, third.has_record) == (False, True)


def test_every_tpu_has_one_kernel_and_no_record():
  sizes = attention_shapes.SHAPES["480p"].sizes
  for kind in device.TPU_PEAKS:
    here = device.Device(kind=kind, platform="tpu")
    for problem in ("latent", "dense", "text"):
      for gradient in (False, True):
        call = selection.Call(
          problem, gradient, sizes if problem == "latent" else None
        )
        first, *others = selection.options(call, here)
        assert str(first) == "expanded form by tpu_flash (computed)"
        # So it checks itself before it is taken on a TPU.
        assert not first.has_record
        assert {o.choice.implementation for o in others} == {"xla_chunked"}


def test_a_form_that_is_named_is_the_only_one():
  sizes = attention_shapes.SHAPES["480p"].sizes
  call = selection.Call("latent", False, sizes)
  found = selection.options(call, H100, form="absorbed")
  assert [o.choice.implementation for o in found] == [
    "pallas_triton",
    "xla_chunked",
  ]
  assert {o.choice.form for o in found} == {"absorbed"}


@pytest.mark.parametrize(
  ("here", "reason"),
  [
    (device.Device(kind="cpu", platform="cpu"), "the device is a CPU"),
    (device.Device(kind="TPU v6 lite", platform="tpu"), "the device is a TPU"),
    (
      device.Device(kind="GTX 1080", platform="gpu", capability=6.1),
      "GTX 1080",
    ),
  ],
)
def test_elsewhere_plain_xla_runs_in_the_cheaper_form(here, reason):
  sizes = forms.Sizes(
    queries=1, keys=64, heads=4, content_latent=16, rope=4, content=16, value=16
  )
  call = selection.Call("latent", False, sizes)
  first, second = selection.options(call, here)
  assert first.choice == ("xla_chunked", "absorbed")
  assert second.choice == ("xla_chunked", "expanded")
  assert reason in str(first)


def test_newer_and_smaller_gpus_have_the_rows_of_the_architecture_below():
  call = selection.Call("dense")
  for capability, major in ((8.9, 8), (12.0, 10)):
    here = device.Device(kind="", platform="gpu", capability=capability)
    assert selection.row_of(call, here) in selection.TABLE[major]
    # What was measured on another architecture is no record here.
    assert not any(
      o.has_record
      for o in selection.options(call, here)
      if o.choice.implementation not in selection.PLAIN
    )


def test_eight_bits_are_seen_in_the_arguments():
  for shape, expected in (("few_queries", False), ("few_queries_int8", True)):
    args = attention_shapes.SHAPES[shape].arguments(jnp.bfloat16)
    assert (forms.sizes_of(*args).eight_bit_keys > 0) == expected
