"""Singular values of keys and values against plain definitions."""

import numpy as np

from videomla_jax.analysis import operators
from videomla_jax.conversion import low_rank

E, D_C, N = 24, 6, 200


def _dense(rng):
  return {f"{n}/kernel": rng.standard_normal((E, E)) for n in ("key", "value")}


def _latent(rng):
  return {
    "w_dkv/kernel": rng.standard_normal((E, D_C)),
    "content_norm/gain": rng.uniform(0.5, 2, D_C),
    "w_uk/kernel": rng.standard_normal((D_C, 18)),
    "w_uv/kernel": rng.standard_normal((D_C, E)),
  }


def _matrix(layer):
  """The operator as one matrix."""
  if "w_dkv/kernel" not in layer:
    return np.concatenate([layer["key/kernel"].T, layer["value/kernel"].T])
  up = np.concatenate([layer["w_uk/kernel"].T, layer["w_uv/kernel"].T])
  return up @ np.diag(layer["content_norm/gain"]) @ layer["w_dkv/kernel"].T


def test_spectra_are_those_of_the_whole_matrix(seed):
  rng = np.random.default_rng(seed)
  for layer, rank in ((_dense(rng), E), (_latent(rng), D_C)):
    operator = operators.operator_of(layer)
    expected = np.linalg.svd(_matrix(layer), compute_uv=False)
    assert operator.size == rank == len(operator.spectrum())
    np.testing.assert_allclose(operator.spectrum(), expected[:rank], rtol=1e-6)
    np.testing.assert_allclose(expected[rank:], 0, atol=1e-9)


def test_a_latent_whose_directions_repeat_occupies_fewer(seed):
  layer = _latent(np.random.default_rng(seed))
  layer["w_dkv/kernel"][:, 3:] = layer["w_dkv/kernel"][:, :3]
  spectrum = operators.operator_of(layer).spectrum()
  assert low_rank.effective_rank(spectrum) <= 3
  assert low_rank.energy_kept(spectrum, 3) > 1 - 1e-12


def test_a_layer_of_zeros_is_kept_by_any_rank():
  layer = {f"{n}/kernel": np.zeros((E, E)) for n in ("key", "value")}
  spectrum = operators.operator_of(layer).spectrum()
  assert low_rank.energy_kept(spectrum, 1) == 1.0
  assert low_rank.effective_rank(spectrum) == 1


def test_activations_have_the_spectrum_of_their_covariance(seed):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((N, E)) * rng.uniform(0.1, 3, E) + 5
  dense, latent = _dense(rng), _latent(rng)
  latent["w_dkv/bias"] = rng.standard_normal(D_C)
  content = x @ latent["w_dkv/kernel"] + latent["w_dkv/bias"]
  content /= np.sqrt(np.mean(content**2, axis=1, keepdims=True) + 1e-6)
  content *= latent["content_norm/gain"]
  outputs = {
    "dense": x @ _matrix(dense).T,
    "latent": np.concatenate(
      [content @ latent["w_uk/kernel"], content @ latent["w_uv/kernel"]], 1
    ),
  }
  for name, layer, rank in (("dense", dense, E), ("latent", latent, D_C)):
    covariance = np.cov(outputs[name].T, bias=True)
    expected = np.sqrt(np.linalg.eigvalsh(covariance)[::-1][:rank])
    found = operators.spectrum_on(layer, x)
    np.testing.assert_allclose(found[:rank], expected, rtol=1e-6)


def test_fewer_tokens_than_channels_have_the_same_spectrum(seed):
  rng = np.random.default_rng(seed)
  layer, x = _dense(rng), rng.standard_normal((7, E))
  found = operators.spectrum_on(layer, x)
  twice = operators.spectrum_on(layer, np.tile(x, (9, 1)))
  np.testing.assert_allclose(found[:6], twice[:6], rtol=1e-6)
  assert found[6] < 1e-6 * found[0]
