"""Tests of converted layers: algebra, exact parts, what data improves."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from videomla_jax import shapes
from videomla_jax.conversion import latent_layer as layer_lib
from videomla_jax.conversion import low_rank
from videomla_jax.conversion import moments as moments_lib
from videomla_jax.models import attention
from videomla_jax.ops import rope
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

_WIDTH, _HEADS = 48, 2
_GRID = shapes.Grid(rows=3, columns=4)
_FRAMES = 2


def _config(**kwargs) -> attention.AttentionConfig:
  values = dict(d_c=16, d_rope=12, d_q=24) | kwargs
  return attention.AttentionConfig(
    kind="latent", width=_WIDTH, num_heads=_HEADS, **values
  )


def _dense(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """A dense layer with random weights, biases and gains."""
  arrays = {}
  for name in ("query", "key", "value", "out"):
    kernel = rng.standard_normal((_WIDTH, _WIDTH)) / _WIDTH**0.5
    arrays[f"{name}/kernel"] = kernel
    arrays[f"{name}/bias"] = 0.3 * rng.standard_normal(_WIDTH)
  for name in ("query_norm", "key_norm"):
    arrays[f"{name}/gain"] = 1 + 0.2 * rng.standard_normal(_WIDTH)
  return {n: x.astype(np.float32) for n, x in arrays.items()}


def _tokens(rng: np.random.Generator, count: int) -> np.ndarray:
  """Inputs with a spectrum of their own, as modulated features have."""
  basis = np.linalg.qr(np.random.default_rng(5).standard_normal((_WIDTH,) * 2))
  decay = np.exp(-np.arange(_WIDTH) / 6)
  x = rng.standard_normal((count, _WIDTH)) * decay @ basis[0].T
  x = x / np.sqrt(np.mean(x**2, -1, keepdims=True))  # as behind a LayerNorm
  return x + 0.3 * basis[0][0]


def _rows(dense, name: str, config, moments) -> np.ndarray:
  """Folded rows [heads, channels, E], by the definition."""
  scale = {"query": moments.query_scale, "key": moments.key_scale}[name]
  gain = scale * dense[f"{name}_norm/gain"].astype(np.float64)
  rows = dense[f"{name}/kernel"].T * gain[:, None]
  return rows.reshape(_HEADS, -1, _WIDTH)


def _content(dense, config, moments) -> np.ndarray:
  """[W_k content; W_v]."""
  keep = np.setdiff1d(
    np.arange(config.head_dim), layer_lib.rotated_channels(config)
  )
  key = _rows(dense, "key", config, moments)[:, keep]
  return np.concatenate([key.reshape(-1, _WIDTH), dense["value/kernel"].T])


def _composed(arrays) -> np.ndarray:
  """[W_uk; W_uv] W_dkv."""
  up = np.concatenate([arrays["w_uk/kernel"], arrays["w_uv/kernel"]], axis=1)
  return (arrays["w_dkv/kernel"].astype(np.float64) @ up).T


@pytest.mark.parametrize("rope_dim", [8, 12])
def test_rotated_channels_are_the_highest_frequencies(rope_dim: int) -> None:
  config = _config(d_rope=rope_dim)
  whole = rope.wan_bands(config.head_dim)
  every = np.repeat(np.concatenate(whole), 2)
  channels = layer_lib.rotated_channels(config)
  kept = np.repeat(np.concatenate(config.bands), 2)
  np.testing.assert_array_equal(every[channels], kept)
  assert len(set(channels.tolist())) == rope_dim


def test_full_rank_keeps_content_and_query_rows(seed: int) -> None:
  dense = _dense(np.random.default_rng(seed))
  config = _config(d_c=_WIDTH, d_q=_WIDTH)
  arrays, report = layer_lib.latent_layer(dense, config, method="spectral")
  moments = moments_lib.predicted(dense)
  content = _content(dense, config, moments)
  tolerances.assert_close(_composed(arrays), content)
  assert report.content_energy == pytest.approx(1)
  query = arrays["w_dq/kernel"] @ arrays["w_uq/kernel"]
  keep = np.setdiff1d(
    np.arange(config.head_dim), layer_lib.rotated_channels(config)
  )
  rows = _rows(dense, "query", config, moments)[:, keep]
  tolerances.assert_close(query.T, rows.reshape(-1, _WIDTH))


@pytest.mark.parametrize("d_c", [1, 7, 16, 40])
def test_error_at_a_rank_is_the_eckart_young_bound(d_c: int, seed: int) -> None:
  dense = _dense(np.random.default_rng(seed))
  config = _config(d_c=d_c)
  arrays, report = layer_lib.latent_layer(dense, config, method="spectral")
  content = _content(dense, config, moments_lib.predicted(dense))
  spectrum = np.linalg.svd(content, compute_uv=False)
  error = np.linalg.norm(_composed(arrays) - content)
  bound = np.sqrt(np.square(spectrum[d_c:]).sum())
  tolerances.assert_close(error, bound)
  kept = 1 - (bound / np.linalg.norm(spectrum)) ** 2
  assert report.content_energy == pytest.approx(kept, abs=1e-6)
  assert np.linalg.matrix_rank(_composed(arrays), tol=1e-4) == d_c


def test_queries_at_a_rank_are_the_best_of_that_rank(seed: int) -> None:
  dense = _dense(np.random.default_rng(seed))
  config = _config(d_q=10)
  arrays, report = layer_lib.latent_layer(dense, config, method="spectral")
  full, _ = layer_lib.latent_layer(
    dense, _config(d_q=_WIDTH), method="spectral"
  )

  def rows(arrays):
    up = np.concatenate([arrays["w_uq/kernel"], arrays["w_qr/kernel"]], axis=1)
    return arrays["w_dq/kernel"].astype(np.float64) @ up

  spectrum = np.linalg.svd(rows(full), compute_uv=False)
  error = np.linalg.norm(rows(arrays) - rows(full))
  bound = np.sqrt(np.square(spectrum[10:]).sum())
  tolerances.assert_close(error, bound, "float32_deep")
  assert report.query_energy == pytest.approx(
    1 - (bound / np.linalg.norm(spectrum)) ** 2, abs=1e-5
  )


@pytest.mark.parametrize("aware", [False, True])
def test_every_spectral_layer_has_rank_d_c(aware: bool, seed: int) -> None:
  rng = np.random.default_rng(seed)
  config = _config(d_c=9)
  arrays, _ = layer_lib.latent_layer(
    _dense(rng),
    config,
    method="spectral",
    tokens=_tokens(rng, 400) if aware else None,
  )
  values = np.linalg.svd(_composed(arrays), compute_uv=False)
  assert (values > 1e-6 * values[0]).sum() == 9


def _outputs(dense, config, arrays, x) -> tuple[np.ndarray, np.ndarray]:
  """Dense and latent attention over the tokens of `_FRAMES` frames."""
  frames = jnp.arange(_FRAMES)[None]
  shape = (1, _FRAMES, _GRID.tokens, _WIDTH)
  dense_config = attention.AttentionConfig(
    kind="dense", width=_WIDTH, num_heads=_HEADS
  )
  outs = []
  for module, sizes, values in (
    (attention.DenseSelfAttention, dense_config, dense),
    (attention.LatentSelfAttention, config, arrays),
  ):
    layer = module(sizes, dtype=jnp.float32, rngs=nnx.Rngs(0))
    model_folder.update_model(layer, tree_names.nested_dict(dict(values)))
    turn = rope.rotation(frames, grid=_GRID, bands=sizes.bands)
    valid = jnp.ones((1, _FRAMES), bool)
    tokens = jnp.asarray(x, jnp.float32).reshape(shape)
    rotations = attention.Rotations(turn, turn, valid)
    outs.append(
      np.asarray(layer.attend(tokens, [layer.project(tokens)], rotations))
    )
  return outs[0], outs[1]


def _error(dense, config, arrays, x) -> float:
  a, b = _outputs(dense, config, arrays, x)
  return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def _representable(rng: np.random.Generator, config) -> dict[str, np.ndarray]:
  """A dense layer that latent attention can be: low rank, shared rotated keys.

  Gains are zero where the latent layer has nothing, the rest is random.
  """
  dense = {n: x.astype(np.float64) for n, x in _dense(rng).items()}
  rotated = layer_lib.rotated_channels(config)
  # Queries do not look at content, whose rotation latent attention drops.
  query_gain = np.zeros((_HEADS, config.head_dim))
  query_gain[:, rotated] = 1 + 0.1 * rng.standard_normal((_HEADS, len(rotated)))
  shared = rng.standard_normal((len(rotated) // 2, _WIDTH + 1)) + (
    1j * rng.standard_normal((len(rotated) // 2, _WIDTH + 1))
  )
  factor = np.exp(1j * rng.uniform(0, 6, (_HEADS, len(rotated) // 2, 1)))
  pairs = factor * shared / _WIDTH**0.5
  key = np.zeros((_HEADS, config.head_dim, _WIDTH + 1))
  key[:, rotated[0::2]], key[:, rotated[1::2]] = pairs.real, pairs.imag
  key = key.reshape(_WIDTH, -1)
  dense["key/kernel"], dense["key/bias"] = key[:, :-1].T, key[:, -1]
  dense["key_norm/gain"] = np.ones(_WIDTH)
  dense["query_norm/gain"] = query_gain.reshape(-1)
  value = rng.standard_normal((_WIDTH, config.d_c)) @ rng.standard_normal(
    (config.d_c, _WIDTH)
  )
  dense["value/kernel"] = value.T / _WIDTH
  return {n: x.astype(np.float32) for n, x in dense.items()}


def test_shared_rotated_keys_are_found_and_biases_kept(seed: int) -> None:
  rng = np.random.default_rng(seed)
  config = _config(d_q=_WIDTH)
  dense = _representable(rng, config)
  arrays, report = layer_lib.latent_layer(dense, config, method="spectral")
  assert report.rope_energy == pytest.approx(1, abs=1e-6)
  # Scores of rotated channels, without norms: linear and therefore exact.
  moments = moments_lib.predicted(dense)
  x = rng.standard_normal((5, _WIDTH))
  rotated = layer_lib.rotated_channels(config)

  def folded(name, scale):
    gain = scale * dense[f"{name}_norm/gain"]
    y = gain * (x @ dense[f"{name}/kernel"] + dense[f"{name}/bias"])
    y = y.reshape(5, _HEADS, -1)[..., rotated]
    return y[..., 0::2] + 1j * y[..., 1::2]

  query = folded("query", moments.query_scale)
  key = folded("key", moments.key_scale)
  ours = x @ arrays["w_dq/kernel"] @ arrays["w_qr/kernel"]
  ours = (ours + arrays["w_qr/bias"]).reshape(5, _HEADS, -1)
  ours = ours[..., 0::2] + 1j * ours[..., 1::2]
  shared = x @ arrays["w_kr/kernel"] + arrays["w_kr/bias"]
  shared = shared[:, 0::2] + 1j * shared[:, 1::2]
  turn = np.exp(1j * rng.uniform(0, 6, key.shape[-1]))
  theirs = np.einsum("inp,jnp,p->nij", query.conj(), key, turn).real
  found = np.einsum("inp,jp,p->nij", ours.conj(), shared, turn).real
  tolerances.assert_close(found, theirs, "float32_deep")


def test_value_bias_and_key_bias_are_exact(seed: int) -> None:
  # With one token the softmax is 1 and the output is W_o v, whatever the keys.
  rng = np.random.default_rng(seed)
  config = _config(d_c=_WIDTH)
  dense = _dense(rng)
  dense["value/kernel"] = np.zeros_like(dense["value/kernel"])
  arrays, _ = layer_lib.latent_layer(dense, config, method="spectral")
  out = arrays["w_o/bias"]
  theirs = dense["value/bias"] @ dense["out/kernel"] + dense["out/bias"]
  tolerances.assert_close(out, theirs)


@pytest.mark.parametrize("d_c", [8, 16, 32])
def test_real_inputs_lower_the_error_on_held_out_ones(d_c: int, seed) -> None:
  rng = np.random.default_rng(seed)
  dense, config = _dense(rng), _config(d_c=d_c)
  held_out = _tokens(rng, _FRAMES * _GRID.tokens)
  errors = {}
  for name, kwargs in dict(
    random=dict(method="random"),
    plain=dict(method="spectral"),
    aware=dict(method="spectral", tokens=_tokens(rng, 2000)),
  ).items():
    arrays, _ = layer_lib.latent_layer(dense, config, **kwargs)
    errors[name] = _error(dense, config, arrays, held_out)
  print(f"{d_c=}: {errors}")
  assert errors["aware"] < errors["plain"] < errors["random"]


def test_random_keeps_the_output_projection_and_the_seed(seed: int) -> None:
  dense = _dense(np.random.default_rng(seed))
  layers = [
    layer_lib.latent_layer(dense, _config(), method="random", seed=s)[0]
    for s in (1, 1, 2)
  ]
  for name in ("w_o/kernel", "w_o/bias"):
    ours = dense[name.replace("w_o", "out")]
    np.testing.assert_array_equal(layers[0][name], ours)
  np.testing.assert_array_equal(
    layers[0]["w_dkv/kernel"], layers[1]["w_dkv/kernel"]
  )
  assert not np.allclose(layers[0]["w_dkv/kernel"], layers[2]["w_dkv/kernel"])


@pytest.mark.parametrize(
  ("kwargs", "words"),
  [
    (dict(d_c=49), "between 1 and 48; choose d_c"),
    (dict(d_q=60), "between 1 and 48"),
  ],
)
def test_impossible_sizes_are_refused(kwargs, words, seed) -> None:
  dense = _dense(np.random.default_rng(seed))
  with pytest.raises(ValueError, match=words):
    layer_lib.latent_layer(dense, _config(**kwargs), method="spectral")


def test_white_latents_have_unit_covariance(seed: int) -> None:
  rng = np.random.default_rng(seed)
  x = _tokens(rng, 500)
  metric = low_rank.metric(x.T @ x / len(x))
  factors = low_rank.factorise(
    rng.standard_normal((30, _WIDTH)), 6, inputs=metric
  )
  moment = metric.root @ metric.root
  tolerances.assert_close(
    factors.down @ moment @ factors.down.T, np.eye(6), "float32"
  )
