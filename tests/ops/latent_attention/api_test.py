"""Latent attention: one suite over implementations and forms."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import specs
from videomla_jax.ops.latent_attention import xla_chunked

B, L, S, N, C, R, DN, D = 2, 5, 22, 3, 7, 4, 6, 10
AT_480P = dict(
  keys=10920, heads=12, content_latent=192, rope=32, content=96, value=128
)

# 22 keys: blocks of 8 leave a tail of 6, of 11 none; 512 is one block.
CASES = {
  f"{form}-{block}": functools.partial(
    xla_chunked.latent_attention, form=form, block=block
  )
  for form in ("expanded", "absorbed")
  for block in (8, 11, 512)
}
suite = pytest.mark.parametrize("case", CASES)
GPU_ONLY = (
  "triton",
  "pallas_mosaic_gpu",
  "pallas_triton",
  "cudnn",
  "tokamax",
)


def _validity(kind, rng):
  """Valid slots; no query goes without a key."""
  if kind == "full":
    return np.ones((B, S), bool)
  if kind == "part-filled":
    return np.arange(S) < np.asarray([[5], [17]])
  if kind == "single":
    return np.arange(S) == rng.integers(0, S, (B, 1))
  if kind == "empty first block":
    return np.broadcast_to(np.arange(S) >= 9, (B, S))
  if kind == "empty middle block":
    return np.broadcast_to((np.arange(S) < 3) | (np.arange(S) > 18), (B, S))
  # A ring in the middle of a write: holes anywhere.
  return (rng.random((B, S)) < 0.5) | (np.arange(S) == 21)


VALIDITY = [
  "full",
  "part-filled",
  "single",
  "empty first block",
  "empty middle block",
  "wrapped",
]


def _inputs(seed, validity="wrapped"):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  queries = api.Queries(draw(B, L, N, DN), draw(B, L, N, R))
  keys = api.Keys(
    draw(B, S, C), draw(B, S, R), jnp.asarray(_validity(validity, rng))
  )
  up = api.UpProjections(0.5 * draw(C, N, DN), 0.5 * draw(C, N, D))
  return queries, keys, up, draw(B, L, N, D)


@functools.cache
def _value_and_gradient(function: Callable):
  def run(queries, keys, up, cotangent):
    def of(queries, content, rope, up):
      seen = keys._replace(content=content, rope=rope)
      return function(queries, (seen,), up)

    out, pull = jax.vjp(of, queries, keys.content, keys.rope, up)
    return out, pull(cotangent.astype(out.dtype))

  return jax.jit(run)


def _run(function, inputs):
  return jax.tree.map(np.asarray, _value_and_gradient(function)(*inputs))


def _plain(queries, keys, up):
  """The paper's Eq. (7) in float64, example by example and head by head."""
  queries, keys, up = jax.tree.map(
    lambda x: np.asarray(x, np.float64 if x.dtype != bool else bool),
    (queries, keys, up),
  )
  out = np.zeros((B, L, N, D))
  for b in range(B):
    seen = keys.valid[b]
    latent, rope = keys.content[b, seen], keys.rope[b, seen]
    for n in range(N):
      score = queries.content[b, :, n] @ (latent @ up.key[:, n]).T
      score = (score + queries.rope[b, :, n] @ rope.T) / np.sqrt(DN + R)
      weight = np.exp(score - score.max(-1, keepdims=True))
      weight /= weight.sum(-1, keepdims=True)
      out[b, :, n] = weight @ (latent @ up.value[:, n])
  return out


@pytest.mark.parametrize("validity", VALIDITY)
def test_reference_equals_the_paper_in_float64(seed, validity):
  queries, keys, up, _ = _inputs(seed, validity)
  out = jax.jit(reference.latent_attention)(queries, (keys,), up)
  tolerances.assert_close(out, _plain(queries, keys, up))


@suite
@pytest.mark.parametrize("validity", VALIDITY)
def test_value_and_gradient_equal_the_reference(seed, case, validity):
  inputs = _inputs(seed, validity)
  out, gradient = _run(CASES[case], inputs)
  expected, expected_gradient = _run(reference.latent_attention, inputs)
  tolerances.assert_close(out, expected)
  # The gradient of scores vanishes with a single key, up to its rounding.
  scale = max(np.abs(g).max() for g in jax.tree.leaves(gradient))
  for ours, theirs in zip(
    jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)
  ):
    if validity == "single" and np.abs(theirs).max() < 1e-5 * scale:
      assert np.abs(ours).max() < 1e-5 * scale
    else:
      tolerances.assert_close(ours, theirs)


@suite
def test_segments_of_frames_equal_one_segment_of_keys(seed, case):
  queries, keys, up, _ = _inputs(seed)
  frame = jnp.asarray([[True, False, True], [False, True, True]])
  ring = jax.tree.map(lambda x: x[:, :15], keys)._replace(valid=frame)
  own = jax.tree.map(lambda x: x[:, 15:], keys)
  own = own._replace(valid=jnp.ones((B, 1), bool))
  whole = keys._replace(
    valid=jnp.concatenate([jnp.repeat(frame, 5, 1), jnp.ones((B, 7), bool)], 1)
  )
  out = jax.jit(CASES[case])(queries, (ring, own), up)
  expected = jax.jit(CASES[case])(queries, (whole,), up)
  tolerances.assert_close(out, expected)


@suite
def test_two_runs_are_bit_equal(seed, case):
  inputs = _inputs(seed)
  first, second = _run(CASES[case], inputs), _run(CASES[case], inputs)
  jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("case", [*CASES, "reference"])
def test_garbage_in_empty_slots_has_no_effect(seed, case):
  function = CASES.get(case, reference.latent_attention)
  queries, keys, up, cotangent = _inputs(seed)
  hole = ~keys.valid[..., None]
  dirty = keys._replace(
    content=jnp.where(hole, 1e10, keys.content),
    rope=jnp.where(hole, -1e10, keys.rope),
  )
  clean = _run(function, (queries, keys, up, cotangent))
  garbage = _run(function, (queries, dirty, up, cotangent))
  jax.tree.map(np.testing.assert_array_equal, clean, garbage)


@pytest.mark.parametrize("case", [*CASES, "reference"])
def test_gradient_of_empty_slots_is_exactly_zero(seed, case):
  function = CASES.get(case, reference.latent_attention)
  inputs = _inputs(seed)
  _, (_, content, rope, _) = _run(function, inputs)
  valid = np.asarray(inputs[1].valid)
  for gradient in (np.asarray(content), np.asarray(rope)):
    assert (gradient[~valid] == 0).all()
    assert (gradient[valid] != 0).any(-1).all()


@suite
def test_bfloat16_stays_near_float32(seed, case):
  queries, keys, up, _ = _inputs(seed)
  halve = lambda x: x.astype(jnp.bfloat16) if x.dtype != bool else x
  half = jax.tree.map(halve, (queries, (keys,), up))
  back = lambda x: x.astype(jnp.float32) if x.dtype != bool else x
  # Rounding of inputs is no error of the implementation.
  expected = jax.jit(reference.latent_attention)(*jax.tree.map(back, half))
  out = jax.jit(CASES[case])(*half)
  assert out.dtype == jnp.bfloat16
  tolerances.assert_close(out, expected, "bfloat16")


@pytest.mark.parametrize("validity", VALIDITY)
@pytest.mark.parametrize("block", [8, 11, 512])
def test_dense_blocks_equal_plain_softmax(seed, validity, block):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  args = draw(B, L, N, 6), draw(B, S, N, 6), draw(B, S, N, D)
  valid = jnp.asarray(_validity(validity, rng))
  chunked = functools.partial(xla_chunked.attention, scale=0.4, block=block)
  plain = functools.partial(reference.attention, scale=0.4)
  out, expected = (jax.jit(f)(*args, valid) for f in (chunked, plain))
  tolerances.assert_close(out, expected)


@pytest.mark.parametrize("form", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize("implementation", [None, *api.IMPLEMENTATIONS])
def test_api_gives_one_answer_for_every_choice(seed, form, implementation):
  queries, keys, up, _ = _inputs(seed)
  run = functools.partial(
    api.latent_attention, form=form, implementation=implementation
  )
  reason = None
  if implementation == "reference" and form == "absorbed":
    reason = "has no absorbed form"
  if implementation in GPU_ONLY:
    reason = f"{implementation}: needs an NVIDIA GPU .* this is cpu"
  if reason:
    with pytest.raises(NotImplementedError, match=reason):
      run(queries, keys, up)
    return
  expected = reference.latent_attention(queries, (keys,), up)
  tolerances.assert_close(jax.jit(run)(queries, keys, up), expected)


def test_reasons_of_all_are_reported_together(seed):
  queries, keys, up, _ = _inputs(seed)
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

  def importing(name):
    names.append(name.rsplit(".", 1)[1])
    raise NotImplementedError("stop")

  monkeypatch.setattr(api.importlib, "import_module", importing)
  return names


@pytest.mark.parametrize(
  ("kind", "first"),
  [
    ("NVIDIA B200", "pallas_mosaic_gpu"),
    ("NVIDIA H100", "pallas_triton"),
    ("NVIDIA A100-SXM4-80GB", "pallas_triton"),
  ],
)
def test_the_device_of_the_mesh_decides(seed, taken, kind, first):
  queries, keys, up, _ = _inputs(seed)
  with _mesh_of(kind):
    # At last plain XLA takes it.
    jax.eval_shape(api.latent_attention, queries, keys, up)
  taken.remove("triton")  # asked first, it takes few rows only
  assert taken[0] == first
  assert ("pallas_mosaic_gpu" in taken) == (kind == "NVIDIA B200")


@pytest.mark.parametrize("kind", ["NVIDIA H100", None])
def test_dense_attention_asks_for_a_kernel_on_a_gpu_only(seed, taken, kind):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  args = draw(B, L, N, 6), draw(B, S, N, 6), draw(B, S, N, D)
  valid = jnp.asarray([[True, False], [True, True]])
  run = functools.partial(api.dense_attention, scale=0.4)
  if kind:
    with _mesh_of(kind):
      jax.eval_shape(run, *args, valid)
  out = run(*args, valid)
  assert taken == (["pallas_triton"] if kind else [])
  seen = jnp.repeat(valid, S // 2, axis=1)
  expected = reference.attention(*args, seen, scale=0.4)
  tolerances.assert_close(out, expected)


def test_waiting_for_memory_makes_absorbed_cheaper_for_longer():
  def switch(intensity):
    sizes = AT_480P | dict(keys=10920)
    return next(
      n
      for n in range(1, 3000)
      if specs.Spec(queries=n, **sizes).cheaper_form(intensity) == "expanded"
    )

  counted, waited = switch(float("inf")), switch(146.0)
  assert counted == 263
  assert counted < waited < 600
  print(f"expanded is cheaper from {waited} queries on a B200")


def test_bytes_are_those_of_the_arrays():
  # Latents in, keys and values out; read again with queries, output back.
  spec = specs.Spec(queries=40, **AT_480P)
  project, attend = spec.num_bytes("expanded")
  assert project == 2 * (10920 * 192 + 10920 * 12 * 224)
  assert attend == 2 * (10920 * (12 * 224 + 32) + 40 * 12 * 256)


@pytest.mark.parametrize("name", specs.SHAPES)
def test_real_shapes_are_consistent(name):
  shape = specs.SHAPES[name]
  queries, keys, up = shape.arguments(jnp.bfloat16)
  assert specs.spec_of(queries, keys, up) == shape.spec
  assert shape.spec.content + shape.spec.rope == shape.spec.value == 128


def test_api_tries_names_in_order(seed):
  queries, keys, up, _ = _inputs(seed)
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
  queries, keys, up, _ = _inputs(seed)
  with pytest.raises(ValueError, match=r"'cuda_magic'.*use one of.*reference"):
    api.latent_attention(queries, keys, up, implementation="cuda_magic")


def _multiply_adds(text):
  """Counts the multiply-adds of every product in a traced function."""
  total = 0
  for equation in text.eqns:
    if equation.primitive.name == "dot_general":
      (contract, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      inner = int(np.prod([left[i] for i in contract], dtype=np.int64))
      total += inner * int(np.prod(equation.outvars[0].aval.shape))
  return total


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_multiply_adds_are_those_of_the_traced_products(form):
  spec = specs.Spec(**(AT_480P | dict(keys=300)), queries=40)
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  queries = api.Queries(
    shape(1, 40, spec.heads, spec.content), shape(1, 40, spec.heads, spec.rope)
  )
  keys = api.Keys(
    shape(1, 300, spec.content_latent),
    shape(1, 300, spec.rope),
    jax.ShapeDtypeStruct((1, 300), bool),
  )
  up = api.UpProjections(
    shape(spec.content_latent, spec.heads, spec.content),
    shape(spec.content_latent, spec.heads, spec.value),
  )
  run = functools.partial(xla_chunked.latent_attention, form=form)
  traced = jax.make_jaxpr(run)(queries, (keys,), up)
  assert _multiply_adds(traced.jaxpr) == spec.multiply_adds(form)
  assert specs.spec_of(queries, (keys,), up) == spec


def test_480p_chunk_expanded_costs_at_most_165e9():
  spec = specs.Spec(queries=4680, **AT_480P)
  assert spec.multiply_adds("expanded") <= 165e9
  assert spec.multiply_adds("absorbed") > 250e9
  assert spec.cheaper_form() == "expanded"


def test_forms_switch_over_near_269_queries_at_1p3b():
  # With many keys; 10,920 of them lower it to 263.
  sizes = AT_480P | dict(keys=10**7)
  forms = [specs.Spec(queries=n, **sizes).cheaper_form() for n in range(1, 600)]
  switch = forms.index("expanded") + 1
  assert switch == 269
  assert set(forms[: switch - 1]) == {"absorbed"}
  assert set(forms[switch - 1 :]) == {"expanded"}


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
    api.Queries(zeros(1, length, 4, 16), zeros(1, length, 4, 4)),
    api.Keys(zeros(1, 64, 16), zeros(1, 64, 4), jnp.ones((1, 64), bool)),
    api.UpProjections(zeros(16, 4, 16), zeros(16, 4, 16)),
  )
  assert taken == [form]


def _peak(function, size):
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  queries = api.Queries(shape(1, size, 2, 8), shape(1, size, 2, 4))
  keys = api.Keys(
    shape(1, size, 8),
    shape(1, size, 4),
    jax.ShapeDtypeStruct((1, size), bool),
  )
  up = api.UpProjections(shape(8, 2, 8), shape(8, 2, 8))
  run = _value_and_gradient(function)
  compiled = run.lower(queries, keys, up, shape(1, size, 2, 8)).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_memory_is_linear_in_queries_plus_keys(form):
  # 4,096 x 4,096 scores alone would take 16 times those of 1,024 x 1,024.
  run = functools.partial(xla_chunked.latent_attention, form=form)
  small, large = (_peak(run, size) for size in (1024, 4096))
  assert large <= 4.4 * small
  assert large < 4 * 4096 * 4096 * 2
