"""Which implementation and which form a call takes, and why not another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from tests.ops.latent_attention import small_call
from videomla_jax.costs import attention_shapes
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import selection_check
from videomla_jax.ops.latent_attention import types

B, L, S, N, _, R, DN, D = small_call.SIZES
GPU_ONLY = (*api.KERNELS, *api.LIBRARIES)


@pytest.mark.parametrize("form", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize("implementation", [None, *api.IMPLEMENTATIONS])
def test_api_gives_one_answer_for_every_choice(seed, form, implementation):
  queries, keys, up, _ = small_call.inputs(seed)
  run = functools.partial(
    api.latent_attention, form=form, implementation=implementation
  )
  reason = None
  if implementation == "reference" and form == "absorbed":
    reason = "has no absorbed form"
  if implementation in GPU_ONLY:
    reason = f"{implementation}: needs an NVIDIA GPU .* this is cpu"
  if implementation == "tpu_flash":
    reason = "tpu_flash: needs a TPU, this is cpu"
  if reason:
    with pytest.raises(NotImplementedError, match=reason):
      run(queries, keys, up)
    return
  expected = reference.latent_attention(queries, (keys,), up)
  tolerances.assert_close(jax.jit(run)(queries, keys, up), expected)


def test_reasons_of_all_are_reported_together(seed):
  queries, keys, up, _ = small_call.inputs(seed)
  with pytest.raises(NotImplementedError) as error:
    api.latent_attention(queries, keys, up, implementation=GPU_ONLY)
  for form in ("expanded", "absorbed"):
    for name in GPU_ONLY:
      assert f"{form}: {name}: needs an NVIDIA GPU" in str(error.value)


def _mesh_of(kind):
  return jax.sharding.use_abstract_mesh(
    jax.sharding.AbstractMesh(
      (1,),
      ("data",),
      axis_types=jax.sharding.AxisType.Auto,
      abstract_device=jax.sharding.AbstractDevice(kind, 148, "cuda"),
    )
  )


@pytest.fixture
def taken(monkeypatch):
  """Names of the kernels that were asked for; none of them can run."""
  names = []
  selection_check.forget()

  def importing(name):
    names.append(name.rsplit(".", 1)[1])
    raise NotImplementedError("stop")

  monkeypatch.setattr(api.importlib, "import_module", importing)
  yield names
  selection_check.forget()


@pytest.mark.parametrize(
  ("kind", "first"),
  [
    ("NVIDIA B200", "pallas_mosaic_gpu"),
    # cuDNN, which comes before it, is not here.
    ("NVIDIA H100", "pallas_mosaic_gpu"),
    ("NVIDIA A100-SXM4-80GB", "pallas_triton"),
  ],
)
def test_the_device_of_the_mesh_decides(taken, kind, first):
  args = attention_shapes.SHAPES["480p"].arguments(jnp.bfloat16)
  with _mesh_of(kind):
    # At last plain XLA takes it.
    jax.eval_shape(api.latent_attention, *args)
  assert taken[0] == first
  assert ("pallas_mosaic_gpu" in taken) == ("A100" not in kind)
  assert "pallas_triton" in taken


@pytest.mark.parametrize("holes", [True, False])
@pytest.mark.parametrize("kind", ["NVIDIA H100", None])
def test_dense_attention_asks_for_a_kernel_on_a_gpu_only(
  seed, taken, kind, holes
):
  args, valid = _dense_call(seed)
  valid = valid if holes else None
  run = functools.partial(api.dense_attention, scale=0.4)
  if kind:
    with _mesh_of(kind):
      jax.eval_shape(run, *args, valid)
  out = run(*args, valid)
  assert taken == (["pallas_triton"] if kind else [])
  tolerances.assert_close(out, _dense_truth(args, valid))


def _dense_call(seed):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  args = draw(B, L, N, 6), draw(B, S, N, 6), draw(B, S, N, D)
  return args, jnp.asarray([[True, False], [True, True]])


def _dense_truth(args, valid):
  flags = jnp.ones((B, 1), bool) if valid is None else valid
  seen = jnp.repeat(flags, S // flags.shape[1], axis=1)
  return reference.attention(*args, seen, scale=0.4)


@pytest.mark.parametrize("implementation", api.DENSE)
def test_dense_attention_takes_the_named_or_says_why_not(seed, implementation):
  args, valid = _dense_call(seed)
  run = functools.partial(
    api.dense_attention, *args, valid, scale=0.4, implementation=implementation
  )
  if implementation in GPU_ONLY:
    reason = f"{implementation}: needs an NVIDIA GPU .* this is cpu"
  elif implementation == "tpu_flash":
    reason = "tpu_flash: needs a TPU, this is cpu"
  else:
    reason = None
  if reason:
    with pytest.raises(NotImplementedError, match=reason):
      run()
    return
  tolerances.assert_close(run(), _dense_truth(args, valid))


def test_dense_attention_refuses_what_has_no_dense_kernel(seed):
  args, valid = _dense_call(seed)
  with pytest.raises(ValueError, match=r"'triton'.*use one of.*xla_chunked"):
    api.dense_attention(*args, valid, scale=0.4, implementation="triton")


@pytest.mark.parametrize("implementation", [None, "xla_chunked", "triton"])
def test_sizes_that_do_not_fit_are_an_error_and_no_reason(seed, implementation):
  queries, keys, up, _ = small_call.inputs(seed)
  run = functools.partial(api.latent_attention, implementation=implementation)
  with pytest.raises(ValueError, match=r"keys\[0\].content has shape .* must"):
    run(queries, keys._replace(content=keys.content[..., 1:]), up)
  with pytest.raises(ValueError, match=r"valid has shape \(2, 3\)"):
    run(queries, keys._replace(valid=keys.valid[:, :3]), up)
  query, key, value = jax.eval_shape(lambda: _dense_call(seed)[0])
  with pytest.raises(ValueError, match=r"shapes .* do not fit together"):
    api.explain_dense(
      query, key, value.update(shape=key.shape[1:]), None, scale=1.0
    )


def test_a_cpu_explains_its_choice_without_computing(seed):
  args = attention_shapes.SHAPES["480p"].arguments(jnp.bfloat16)
  for gradient in (False, True):
    found = api.explain_latent(*args, gradient=gradient)
    assert str(found) == ("expanded form by xla_chunked (the device is a CPU)")
  few = attention_shapes.SHAPES["few_queries"].arguments(jnp.bfloat16)
  assert str(api.explain_latent(*few)).startswith(
    "absorbed form by xla_chunked"
  )
  dense = jax.eval_shape(lambda: _dense_call(seed)[0])
  assert "xla_chunked" in str(api.explain_dense(*dense, None, scale=1.0))


def test_api_tries_names_in_order(seed):
  queries, keys, up, _ = small_call.inputs(seed)
  out = api.latent_attention(
    queries,
    keys,
    up,
    form="absorbed",
    implementation=("reference", "xla_chunked"),
  )
  expected = reference.latent_attention(queries, (keys,), up)
  tolerances.assert_close(out, expected)


def test_api_refuses_an_unknown_implementation_and_lists_the_known(seed):
  queries, keys, up, _ = small_call.inputs(seed)
  with pytest.raises(ValueError, match=r"'cuda_magic'.*use one of.*reference"):
    api.latent_attention(queries, keys, up, implementation="cuda_magic")


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_auto_picks_the_cheaper_form(monkeypatch, form):
  taken = []

  def spy(queries, keys, up, *, form):
    taken.append(form)
    return queries.content

  monkeypatch.setitem(api.IMPLEMENTATIONS, "xla_chunked", spy)
  length = {"expanded": 64, "absorbed": 1}[form]
  zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
  api.latent_attention(
    types.Queries(zeros(1, length, 4, 16), zeros(1, length, 4, 4)),
    types.Keys(zeros(1, 64, 16), zeros(1, 64, 4), jnp.ones((1, 64), bool)),
    types.UpProjections(zeros(16, 4, 16), zeros(16, 4, 16)),
  )
  assert taken == [form]
