"""Tests of converted networks: a trained one, on clips it was not fitted to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import noisy_clips
from tests import tiny_model
from tests import tolerances
from videomla_jax.conversion import calibration
from videomla_jax.conversion import moments
from videomla_jax.conversion import to_latent as model_lib
from videomla_jax.models import attention
from videomla_jax.models import wan_config
from videomla_jax.small_world import model
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names


@functools.cache
def _trained() -> model.VideoModel:
  return model.load("shipped:small_dense")


def test_real_latents_lower_the_error_of_a_trained_network(seed: int) -> None:
  dense = _trained().dit
  config = model_lib.latent_config(dense.config, d_c=16, d_rope=8, d_q=64)
  fit, held_out = (
    noisy_clips.draw(_trained(), count=n, num_frames=7, seed=seed + n)
    for n in (24, 8)
  )
  tokens = calibration.collect(dense, *fit)
  errors = {}
  for name, kwargs in dict(
    random=dict(method="random"),
    plain=dict(method="spectral"),
    aware=dict(method="spectral", tokens=tokens),
  ).items():
    latent, _ = model_lib.to_latent(dense, config, **kwargs)
    errors[name] = calibration.output_errors(dense, latent, *held_out)
  print(errors)
  means = {name: np.mean(e) for name, e in errors.items()}
  assert means["aware"] < means["plain"] < means["random"]


@pytest.mark.parametrize("method", ["spectral", "random"])
def test_all_but_self_attention_is_kept(method: str, seed: int) -> None:
  dense = tiny_model.build("dense", np.random.default_rng(seed))
  config = model_lib.latent_config(dense.config, d_c=10, d_rope=6, d_q=14)
  latent, reports = model_lib.to_latent(dense, config, method=method)
  assert len(reports) == dense.config.num_layers
  before, after = (
    tree_names.flat_dict(model_folder.model_arrays(m)) for m in (dense, latent)
  )
  kept = [n for n in after if not n.startswith(model_lib.SELF_ATTENTION)]
  assert kept
  for name in kept:
    np.testing.assert_array_equal(after[name], before[name])
  out = model_lib.SELF_ATTENTION
  np.testing.assert_array_equal(
    after[f"{out}w_o/kernel"], before[f"{out}out/kernel"]
  )


def test_inputs_are_those_of_a_forward_pass(seed: int) -> None:
  # The last block's input, pushed on by hand, must give the network's output.
  rng = np.random.default_rng(seed)
  dense = tiny_model.build("dense", rng)
  latents = tiny_model.normal(rng, 2, 3, *tiny_model.FRAME)
  text = tiny_model.normal(rng, 2, *tiny_model.TEXT)
  sigma = jnp.asarray([0.3, 0.9], jnp.float32)
  seen = [*calibration.inputs(dense, latents, sigma, text)]
  assert len(seen) == dense.config.num_layers
  changed = latents.at[:, -1].add(1)
  other = [*calibration.inputs(dense, changed, sigma, text)]
  # Layer 0 sees its own frame only, layer 1 every frame through attention.
  same = np.abs(seen[0] - other[0]).max(axis=(0, 2, 3))
  assert (same[:-1] == 0).all() and same[-1] > 0
  assert (np.abs(seen[1] - other[1]).max(axis=(0, 2, 3)) > 0).all()


def test_collected_tokens_survive_a_file(tmp_path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  layers = [rng.standard_normal((9, 5)).astype(np.float32) for _ in range(3)]
  path = tmp_path / "tokens.safetensors"
  moments.save(path, layers)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]
  for i, tokens in enumerate(layers):
    np.testing.assert_allclose(moments.load(path, i), tokens, rtol=1e-3)
  with pytest.raises(ValueError, match="no tokens of layer 3"):
    moments.load(path, 3)
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(ValueError, match="write them with python -m"):
    moments.load(path, 0)


def test_predicted_moments_are_those_of_modulated_norms(seed: int) -> None:
  rng = np.random.default_rng(seed)
  width = 12
  dense = {
    f"{n}/{k}": rng.standard_normal((width,) * (2 - (k == "bias")))
    for n in ("query", "key", "value")
    for k in ("kernel", "bias")
  }
  shift, scale = rng.standard_normal((2, 4, width))
  found = moments.predicted(dense, shift, scale)
  normal = rng.standard_normal((4, 50_000, width))
  x = (normal * (1 + scale[:, None]) + shift[:, None]).reshape(-1, width)
  np.testing.assert_allclose(found.mean, x.mean(0), atol=0.05)
  np.testing.assert_allclose(found.moment, x.T @ x / len(x), atol=0.1)
  for name, value in (("query", found.query_scale), ("key", found.key_scale)):
    square = np.mean(np.square(moments.project(dense, name, x)))
    assert value == pytest.approx(1 / np.sqrt(square), rel=0.02)


def test_only_dense_networks_are_converted() -> None:
  config = tiny_model.config("latent")
  with pytest.raises(ValueError, match="must be 'dense' to be converted"):
    model_lib.latent_config(config, d_c=8, d_rope=6, d_q=8)


def test_a_spectral_start_keeps_the_frequencies_of_the_dense_layers(
  seed: int,
) -> None:
  sizes = dict(d_c=10, d_rope=6, d_q=14, rope_ladder="fresh")
  with pytest.raises(ValueError, match="keeps rotated pairs.*init='random'"):
    model_lib.Recipe(method="spectral", **sizes)
  dense = tiny_model.build("dense", np.random.default_rng(seed))
  config = model_lib.latent_config(dense.config, **sizes)
  with pytest.raises(ValueError, match="use 'wan', or init='random'"):
    model_lib.to_latent(dense, config, method="spectral")
  latent, _ = model_lib.to_latent(dense, config, method="random")
  assert latent.config.attention.rope_ladder == "fresh"


def test_converted_network_runs_close_to_the_dense_one(seed: int) -> None:
  # All ranks full: what is left are norms and lost rotations.
  rng = np.random.default_rng(seed)
  dense = tiny_model.build("dense", rng)
  config = model_lib.latent_config(dense.config, d_c=24, d_rope=6, d_q=24)
  latent, _ = model_lib.to_latent(dense, config, method="spectral")
  control, _ = model_lib.to_latent(dense, config, method="random")
  latents = tiny_model.normal(rng, 2, 3, *tiny_model.FRAME)
  text = tiny_model.normal(rng, 2, *tiny_model.TEXT)
  sigma = jnp.asarray([0.3, 0.9], jnp.float32)
  errors = [
    np.mean(calibration.output_errors(dense, m, latents, sigma, text))
    for m in (latent, control)
  ]
  assert errors[0] < errors[1]
  jax.tree.map(np.testing.assert_array_equal, latent.head, dense.head)
  tolerances.assert_close(
    latent.head_modulation[...], dense.head_modulation[...]
  )


@pytest.mark.parametrize("head_dim", [4, 6, 8, 10, 12, 20, 128])
def test_usual_positional_channels_work(head_dim: int) -> None:
  """They are pairs, and a quarter of a head may be odd."""
  d_rope = model_lib.usual_d_rope(head_dim)
  assert d_rope % 2 == 0 and abs(d_rope - head_dim / 4) <= 1
  sizes = attention.AttentionConfig(
    kind="dense", width=2 * head_dim, num_heads=2
  )
  dense = wan_config.tiny(kind="dense", learned_grid=None)
  dense = dataclasses.replace(dense, attention=sizes)
  latent = model_lib.latent_config(dense, d_c=4, d_rope=d_rope, d_q=4)
  assert sum(map(len, latent.attention.bands)) == d_rope // 2
  for bad in (head_dim // 4 * 2 + 1, head_dim, head_dim + 2):
    with pytest.raises(
      ValueError, match=f"d_rope={bad} .*use --d_rope={d_rope}"
    ):
      model_lib.latent_config(dense, d_c=4, d_rope=bad, d_q=4)


@pytest.mark.parametrize("head_dim", [1, 2, 3, 7])
def test_heads_without_pairs_are_refused(head_dim: int) -> None:
  with pytest.raises(ValueError, match=f"the source has {head_dim}"):
    model_lib.usual_d_rope(head_dim)
