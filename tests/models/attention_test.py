"""Dense and latent self-attention behind one interface."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests import tolerances
from videomla_jax import shapes
from videomla_jax.models import attention
from videomla_jax.models import wan_config
from videomla_jax.ops import rope
from videomla_jax.ops.latent_attention import api

KINDS = pytest.mark.parametrize("kind", list(attention.SELF_ATTENTION))
GRID = shapes.Grid(rows=2, columns=1)
T, K = 2, 5


def _layer(kind, rng, **kwargs):
  config = attention.AttentionConfig(
    kind=kind, width=24, num_heads=2, d_c=10, d_rope=6, d_q=14, **kwargs
  )
  make = lambda: attention.SELF_ATTENTION[kind](
    config, dtype=jnp.float32, rngs=nnx.Rngs(0)
  )
  return tiny_model.fill(nnx.eval_shape(make), rng)


def _rotations(config, query_frame, key_frame, valid):
  turn = lambda frame: rope.rotation(
    jnp.asarray([frame], jnp.int32), grid=GRID, bands=config.bands
  )
  valid = jnp.asarray([valid])
  return attention.Rotations(turn(query_frame), turn(key_frame), valid)


@jax.jit
def _attend(layer, x, seen, rotations):
  return layer.attend(x, [layer.project(seen)], rotations)


def _inputs(seed, kind, **kwargs):
  rng = np.random.default_rng(seed)
  layer = _layer(kind, rng, **kwargs)
  x = tiny_model.normal(rng, 1, T, GRID.tokens, 24)
  return layer, x, tiny_model.normal(rng, 1, K, GRID.tokens, 24)


def test_ladders_differ_in_their_denominators():
  for ladder, denominators in (("wan", (44, 42, 42)), ("fresh", (12, 10, 10))):
    sizes = wan_config.wan_1p3b(rope_ladder=ladder).attention
    for band, count, d in zip(sizes.bands, (6, 5, 5), denominators):
      expected = [10_000 ** (-2 * i / d) for i in range(count)]
      np.testing.assert_allclose(band, expected, rtol=1e-12)


@pytest.mark.parametrize("size", ["small", "wan_1p3b"])
def test_configs_without_a_ladder_have_wans(size):
  config = wan_config.SIZES[size](rope_ladder="fresh")
  stored = config.to_dict()
  assert wan_config.WanConfig.from_dict(stored) == config
  for key in ("rope_ladder", "down_bias"):  # folders of earlier versions
    del stored["attention"][key]
  older = wan_config.WanConfig.from_dict(stored)
  assert older == wan_config.SIZES[size]()


@KINDS
def test_order_of_key_frames_does_not_matter(seed, kind):
  layer, x, seen = _inputs(seed, kind)
  order = np.random.default_rng(seed).permutation(K)
  frames, valid = np.arange(K), np.asarray([True, True, False, True, True])
  out = _attend(layer, x, seen, _rotations(layer.config, [5, 6], frames, valid))
  rotations = _rotations(layer.config, [5, 6], frames[order], valid[order])
  tolerances.assert_close(_attend(layer, x, seen[:, order], rotations), out)


@KINDS
def test_hidden_frames_equal_absent_frames(seed, kind):
  layer, x, seen = _inputs(seed, kind)
  hidden = _rotations(layer.config, [3, 4], range(K), [True] * 3 + [False] * 2)
  absent = _rotations(layer.config, [3, 4], range(3), [True] * 3)
  out = _attend(layer, x, seen.at[:, 3:].set(1e6), hidden)
  tolerances.assert_close(out, _attend(layer, x, seen[:, :3], absent))


@KINDS
def test_common_offset_of_frames_changes_nothing(seed, kind):
  layer, x, seen = _inputs(seed, kind)
  outs = [
    _attend(
      layer,
      x,
      seen,
      _rotations(
        layer.config, np.arange(5, 7) + s, np.arange(K) + s, [True] * K
      ),
    )
    for s in (0, 40)
  ]
  tolerances.assert_close(*outs)


@pytest.mark.parametrize(
  ("form", "implementation"),
  [("expanded", None), ("absorbed", None), ("expanded", "reference")],
)
def test_latent_layer_has_one_answer_in_every_form(seed, form, implementation):
  outs = []
  for kwargs in ({}, dict(form=form, implementation=implementation)):
    layer, x, seen = _inputs(seed, "latent", **kwargs)
    rotations = _rotations(layer.config, [5, 6], range(K), [True] * K)
    outs.append(_attend(layer, x, seen, rotations))
  tolerances.assert_close(*outs)


@pytest.mark.parametrize("implementation", ["reference", "xla_chunked"])
def test_dense_layer_takes_the_implementation_that_is_named(
  seed, monkeypatch, implementation
):
  taken = []
  run = api.DENSE[implementation]
  monkeypatch.setitem(
    api.DENSE,
    implementation,
    lambda *args, **kwargs: (
      taken.append(implementation) or run(*args, **kwargs)
    ),
  )
  outs = []
  for name in (None, implementation):
    taken.clear()
    layer, x, seen = _inputs(seed, "dense", implementation=name)
    rotations = _rotations(layer.config, [5, 6], range(K), [True] * K)
    outs.append(_attend(layer, x, seen, rotations))
  assert taken == [implementation]
  tolerances.assert_close(*outs)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("implementation", "triton", "'triton' has no dense attention; use one of"),
    ("implementation", "magic", "'magic' has no dense attention; use one of"),
    ("form", "absorbed", "form='absorbed' is of latent attention"),
  ],
)
def test_dense_layer_refuses_what_it_does_not_read(field, value, message):
  with pytest.raises(ValueError, match=message):
    attention.AttentionConfig(
      kind="dense", width=24, num_heads=2, **{field: value}
    )


@KINDS
@pytest.mark.parametrize(
  ("size", "expected"),
  [("wan_1p3b", {"latent": 224, "dense": 3072}), ("small", None)],
)
def test_cached_scalars_are_the_trailing_sizes_of_entries(kind, size, expected):
  config = wan_config.SIZES[size](kind=kind)
  model = tiny_model.abstract(config)
  block = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), model.blocks
  )
  x = jax.ShapeDtypeStruct((1, 1, 4, config.width), jnp.dtype(config.dtype))
  entry = jax.eval_shape(lambda b, x: b.self_attention.project(x), block, x)
  measured = sum(leaf.shape[-1] for leaf in jax.tree.leaves(entry))
  assert measured == config.attention.cached_scalars
  if expected:
    assert measured == expected[kind]


@KINDS
def test_entries_depend_on_their_own_token_only(seed, kind):
  layer, x, _ = _inputs(seed, kind)
  other = x.at[:, 1].set(0.0)
  project = jax.jit(lambda layer, x: layer.project(x))
  for a, b in zip(project(layer, x), project(layer, other)):
    np.testing.assert_array_equal(a[:, 0], b[:, 0])


@KINDS
def test_what_is_cached_has_passed_its_norm(seed, kind):
  layer, x, _ = _inputs(seed, kind)
  entry = jax.jit(lambda layer, x: layer.project(x))(layer, 7.0 * x)
  key, norm = {
    "dense": lambda: (entry.key, layer.key_norm),
    "latent": lambda: (entry.content, layer.content_norm),
  }[kind]()
  square = jnp.mean((key / norm.gain[...]) ** 2, axis=-1)
  np.testing.assert_allclose(square, 1, rtol=1e-3)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(num_heads=5), "num_heads=5 must divide width=24"),
    (dict(kind="latent", d_rope=12), "d_rope=12 must be below the head dim 12"),
    (dict(kind="latent", d_rope=3), "rope_dim=3 of head_dim=12 must be even"),
    (dict(kind="latent", rope_ladder="own"), "use one of .*'wan', 'fresh'"),
    (dict(rope_ladder="fresh"), "is of latent attention.*use 'wan'"),
  ],
)
def test_bad_config_is_refused_with_the_way_out(fields, message):
  values = dict(kind="dense", width=24, num_heads=2, d_rope=6) | fields
  with pytest.raises(ValueError, match=message):
    attention.AttentionConfig(**values)
