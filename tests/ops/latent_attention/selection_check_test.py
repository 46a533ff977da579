"""What is asked of a kernel before it is chosen, on devices that are made up."""

import re
import types as pytypes

from absl import logging
import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from tests.ops.latent_attention import kernel_suite as suite
from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import selection
from videomla_jax.ops.latent_attention import triton
from videomla_jax.ops.latent_attention import xla_chunked

LARGE = suite.Sizes(length=300)  # expanded costs less


@pytest.fixture
def gpu(monkeypatch, request):
  """Makes the CPU pass for a GPU of a compute capability."""

  def make(capability):
    # The name is the test's own, since answers are kept by device.
    here = device.Device(
      kind=f"NVIDIA {request.node.name}", platform="gpu", capability=capability
    )
    monkeypatch.setattr(device, "current", lambda: here)

  return make


@pytest.fixture
def warnings(monkeypatch):
  """Warnings as they would be logged."""
  found = []
  monkeypatch.setattr(
    logging, "warning", lambda text, *args: found.append(text % args)
  )
  return found


def _right(*args, form):
  return xla_chunked.latent_attention(*args, form=form)


def _spy(calls, name, run=_right):
  def spy(queries, keys, up, *, form):
    calls.append((name, form, queries.content.shape[1]))
    return run(queries, keys, up, form=form)

  return spy


def _wrong(*args, form):
  return 1.1 * _right(*args, form=form)


def _not_finite(*args, form):
  return _right(*args, form=form) * jnp.nan


def _does_not_lower(queries, keys, up, *, form):
  def kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...]

  # Pallas refuses a CPU when it lowers.
  out = _right(queries, keys, up, form=form)
  shape = jax.ShapeDtypeStruct(out.shape, out.dtype)
  return pl.pallas_call(kernel, out_shape=shape)(out)


def _does_not_compile(queries, keys, up, *, form):
  out = _right(queries, keys, up, form=form)
  shape = jax.ShapeDtypeStruct(out.shape, out.dtype)
  return jax.ffi.ffi_call("videomla_no_such_target", shape)(out)


def _raises(error):
  def run(*args, **kwargs):
    raise error

  return run


def _jitted():
  """The attention as a new function: what was traced is not used again."""
  return jax.jit(lambda *args: api.latent_attention(*args))


def _check(args, out):
  tolerances.assert_close(np.asarray(out, np.float64), suite.paper(*args))


@pytest.mark.parametrize("where", ["jit", "mesh", "shard_map"])
def test_a_right_kernel_is_asked_once_and_taken(
  seed, gpu, monkeypatch, warnings, where
):
  gpu(10.0)
  calls = []
  monkeypatch.setitem(
    api.IMPLEMENTATIONS, "pallas_mosaic_gpu", _spy(calls, "mosaic")
  )
  args = suite.inputs(seed, sizes=LARGE)
  run = _jitted()
  if where == "jit":
    out = run(*args)
  else:
    mesh = jax.make_mesh(
      (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    with jax.set_mesh(mesh):
      if where == "shard_map":
        data = jax.sharding.PartitionSpec("data")
        run = jax.jit(
          jax.shard_map(
            api.latent_attention,
            in_specs=(data, data, jax.sharding.PartitionSpec()),
            out_specs=data,
            check_vma=False,
          )
        )
      out = run(*args)
  _check(args, out)
  # Lowered as it is, run on a small input, and then traced for the call.
  assert [c[2] for c in calls] == [300, 72, 300]
  jax.jit(lambda *args: 2 * api.latent_attention(*args))(*args)
  assert len(calls) == 4
  assert not warnings


@pytest.mark.parametrize(
  ("kernel", "told"),
  [
    (_wrong, r"it is 0.1\d* away from xla_chunked on a small input; 0.02 is"),
    (_not_finite, "it is inf away"),
    (_does_not_compile, "it fails on a small input: .*videomla_no_such_target"),
  ],
)
def test_a_kernel_that_fails_its_check_is_passed_over_with_a_warning(
  seed, gpu, monkeypatch, warnings, kernel, told
):
  gpu(10.0)
  calls = []
  monkeypatch.setitem(api.IMPLEMENTATIONS, "pallas_mosaic_gpu", kernel)
  monkeypatch.setitem(api.IMPLEMENTATIONS, "cudnn", _spy(calls, "cudnn"))
  args = suite.inputs(seed, sizes=LARGE)
  for _ in range(2):
    _check(args, _jitted()(*args))
  assert calls
  (warning,) = warnings
  assert warning.startswith(
    "the expanded form by pallas_mosaic_gpu is passed over on NVIDIA "
  )
  assert re.search(told, warning), warning


def test_a_kernel_with_a_record_is_not_run_before(seed, gpu, monkeypatch):
  gpu(9.0)
  calls = []
  monkeypatch.setitem(api.IMPLEMENTATIONS, "cudnn", _spy(calls, "cudnn"))
  args = suite.inputs(seed, sizes=LARGE)
  _jitted()(*args)
  assert [c[2] for c in calls] == [300, 300]  # lowered, and traced


def test_a_device_that_is_absent_is_not_asked(seed, monkeypatch, warnings):
  calls = []
  monkeypatch.setitem(
    api.IMPLEMENTATIONS, "pallas_mosaic_gpu", _spy(calls, "mosaic", _wrong)
  )
  args = suite.inputs(seed, sizes=LARGE)
  mesh = jax.sharding.AbstractMesh(
    (1,),
    ("data",),
    axis_types=jax.sharding.AxisType.Auto,
    abstract_device=jax.sharding.AbstractDevice("NVIDIA B200", 148, "cuda"),
  )
  with jax.sharding.use_abstract_mesh(mesh):
    jax.eval_shape(api.latent_attention, *args)
  assert [c[2] for c in calls] == [300, 300]
  assert not warnings


@pytest.mark.parametrize(
  "broken",
  [
    _does_not_lower,
    _raises(AttributeError("module has no attribute")),
    _raises(ImportError("libcudnn.so.9: no such file")),
    _raises(ValueError("an option that this version lacks")),
  ],
)
def test_a_broken_backend_is_a_reason_and_no_crash(
  seed, gpu, monkeypatch, broken
):
  gpu(9.0)
  calls = []
  for name in ("cudnn", "pallas_triton"):
    run = broken if name == "cudnn" else _spy(calls, name)
    monkeypatch.setitem(api.IMPLEMENTATIONS, name, run)
  args = suite.inputs(seed, sizes=LARGE)
  _check(args, _jitted()(*args))
  assert calls
  found = api.explain_latent(*args)
  assert found.option.choice == ("pallas_triton", "expanded")
  reason, of_mosaic = found.passed_over
  assert reason.startswith("expanded: ")
  assert "pallas_mosaic_gpu: dtype float32" in of_mosaic


def test_a_broken_cudnn_and_no_triton_leave_plain_xla(seed, gpu, monkeypatch):
  gpu(9.0)
  broken = _raises(RuntimeError("cuDNN is not detected."))
  monkeypatch.setitem(api.LIBRARIES, "cudnn", lambda: broken)
  args = suite.inputs(seed, sizes=LARGE)
  _check(args, _jitted()(*args))
  found = api.explain_latent(*args)
  assert str(found) == (
    "expanded form by xla_chunked (no kernel of the table can run)"
  )
  assert "RuntimeError: cuDNN is not detected." in found.passed_over[0]
  # Named, the reason is the error.
  with pytest.raises(NotImplementedError, match="cuDNN is not detected"):
    api.latent_attention(*args, implementation="cudnn")


def test_a_triton_of_another_version_is_a_reason(seed, gpu, monkeypatch):
  gpu(8.0)
  error = AttributeError("'_Stub' object has no attribute 'backend'")
  stub = pytypes.SimpleNamespace(triton_call=_raises(error))
  monkeypatch.setattr(triton, "jax_triton", stub, raising=False)
  monkeypatch.setattr(triton, "tl", stub)
  monkeypatch.setattr(triton, "_constants", lambda *args: {})
  sizes = suite.Sizes(d_c=64, length=2)
  args = suite.inputs(seed, sizes=sizes)
  found = api.explain_latent(*args)
  reasons = [r for r in found.passed_over if "_Stub" in r]
  assert reasons == [f"absorbed: AttributeError: {error}"]
  _check(args, _jitted()(*args))
  with pytest.raises(NotImplementedError, match="triton: AttributeError: '_S"):
    api.latent_attention(*args, form="absorbed", implementation="triton")


def test_a_fault_of_plain_code_is_not_hidden(seed, monkeypatch):
  monkeypatch.setitem(
    api.IMPLEMENTATIONS, "xla_chunked", _raises(AttributeError("a fault"))
  )
  args = suite.inputs(seed)
  for name in (None, "xla_chunked"):
    with pytest.raises(AttributeError, match="a fault"):
      api.latent_attention(*args, implementation=name)


@pytest.mark.parametrize("stored", [None, "int8"])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_gradient_has_its_own_row(seed, gpu, monkeypatch, stored, jitted):
  gpu(9.0)
  rows = (
    selection.Row(
      problem="latent", choices=(selection.Choice("triton"),), source="x"
    ),
    selection.Row(
      problem="latent",
      choices=(selection.Choice("cudnn"),),
      source="x",
      gradient=True,
    ),
  )
  monkeypatch.setitem(selection.TABLE, 9, rows)
  calls = []
  for name in ("triton", "cudnn"):
    monkeypatch.setitem(api.IMPLEMENTATIONS, name, _spy(calls, name))
  args = suite.inputs(seed, sizes=LARGE)
  if stored:
    args = suite.in_eight_bits(args, stored)
  run = _jitted() if jitted else api.latent_attention
  _check(args, run(*args))
  assert {c[0] for c in calls} == {"triton"}
  out, pull = jax.vjp(run, *args)
  expected, expected_pull = jax.vjp(reference.latent_attention, *args)
  assert calls[-1][0] == "cudnn"
  tolerances.assert_close(out, expected)
  for a, b in zip(
    jax.tree.leaves(pull(out)), jax.tree.leaves(expected_pull(expected))
  ):
    assert a.dtype == b.dtype
    if a.dtype == jnp.float32:
      tolerances.assert_close(a, b, "float32_gradient")


@pytest.mark.parametrize("wrong", [False, True])
def test_a_gradient_without_a_record_is_checked_as_well(
  seed, gpu, monkeypatch, warnings, wrong
):
  gpu(10.0)

  @jax.custom_vjp
  def changed(x):
    return x

  changed.defvjp(lambda x: (x, None), lambda _, d: (2 * d if wrong else d,))

  def kernel(*args, form):
    return changed(_right(*args, form=form))

  monkeypatch.setitem(api.IMPLEMENTATIONS, "cudnn", kernel)
  args = suite.inputs(seed, sizes=LARGE)
  found = api.explain_latent(*args, gradient=True)
  name = "xla_chunked" if wrong else "cudnn"
  assert found.option.choice.implementation == name
  assert len(warnings) == wrong
  for warning in warnings:
    assert warning.startswith("the gradient of the expanded form by cudnn")
    assert "away from xla_chunked" in warning


def test_eight_bits_are_checked_in_eight_bits(seed, gpu, monkeypatch):
  gpu(10.0)
  seen = []

  def kernel(queries, keys, up, *, form):
    seen.append(type(keys[0].content).__name__)
    return _right(queries, keys, up, form=form)

  monkeypatch.setitem(api.IMPLEMENTATIONS, "pallas_mosaic_gpu", kernel)
  args = suite.in_eight_bits(suite.inputs(seed, sizes=LARGE), "int8")
  found = api.explain_latent(*args)
  assert found.option.choice.implementation == "pallas_mosaic_gpu"
  assert seen == ["Quantised"] * 2


@pytest.mark.parametrize("holes", [True, False])
@pytest.mark.parametrize("wrong", [False, True])
def test_dense_kernels_are_checked_as_well(
  seed, gpu, monkeypatch, warnings, holes, wrong
):
  gpu(8.0)

  def kernel(query, key, value, valid, *, scale):
    # What is empty is seen, or only a part of all keys.
    seen = None if holes else jnp.ones((2, 2), bool).at[:, 0].set(False)
    valid = seen if wrong else valid
    return api.DENSE["reference"](query, key, value, valid, scale=scale)

  monkeypatch.setitem(api.DENSE, "cudnn", kernel)
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  args = draw(2, 5, 3, 8), draw(2, 12, 3, 8), draw(2, 12, 3, 8)
  valid = jnp.asarray([[True, False], [True, True]]) if holes else None
  found = api.explain_dense(*args, valid, scale=0.4)
  name = "xla_chunked" if wrong else "cudnn"
  assert found.option.choice.implementation == name
  assert len(warnings) == wrong
  expected = api.DENSE["reference"](*args, valid, scale=0.4)
  tolerances.assert_close(
    api.dense_attention(*args, valid, scale=0.4), expected
  )
