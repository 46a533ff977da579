"""Our VAE against the original's activations, whole and in pieces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests import tolerances
from tests.parity import goldens
from videomla_jax.conversion.names import vae as names
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

_NAME = "wan_vae"


@functools.cache
def _model() -> vae.WanVAE:
  sizes, golden = goldens.config(_NAME), goldens.load(_NAME)
  config = vae_coders.VaeConfig(
    width=sizes["dim"],
    channels=sizes["z_dim"],
    multipliers=tuple(sizes["dim_mult"]),
    num_blocks=sizes["num_res_blocks"],
    temporal=tuple(sizes["temperal_downsample"]),
    mean=tuple(golden["in/mean"].tolist()),
    std=tuple(golden["in/std"].tolist()),
  )
  arrays = names.table_of(config).read(goldens.parameters(_NAME))
  model = vae.abstract(config)
  model_folder.update_model(model, tree_names.nested_dict(arrays))
  return model


def _golden(name: str) -> jax.Array:
  """[B, C, T, H, W] to [B, T, H, W, C]."""
  return jnp.moveaxis(goldens.load(_NAME)[name], 1, -1)


def test_moments_equal_the_originals() -> None:
  clip = _golden("in/clip")

  @jax.jit
  def moments(model, clip):
    state = model.start_encode(clip.shape[0], *clip.shape[2:4])
    return model.moments(clip, state)[:2]

  mean, log_variance = moments(_model(), clip)
  tolerances.assert_close(mean, _golden("enc/mu"), "golden")
  tolerances.assert_close(log_variance, _golden("enc/logvar"), "golden")


def test_encode_normalises_as_the_original() -> None:
  # The clip has values between those of bytes, so start behind the scaling.
  clip, model = _golden("in/clip"), _model()
  state = model.start_encode(clip.shape[0], *clip.shape[2:4])
  mean = jax.jit(lambda m, x: m.moments(x, state)[0])(model, clip)
  normalised = (mean - model._mean) / model._std
  tolerances.assert_close(normalised, _golden("enc/mu_normalised"), "golden")


def _decode(latents: jax.Array, *, at_once: int) -> tuple[jax.Array, list[int]]:
  model = _model()
  step = jax.jit(lambda m, x, state: m.decode_unclipped(x, state))
  state = model.start(latents.shape[0], *latents.shape[2:4])
  pieces = []
  for i in range(0, latents.shape[1], at_once):
    pixels, state = step(model, latents[:, i : i + at_once], state)
    pieces.append(pixels)
  return jnp.concatenate(pieces, axis=1), [p.shape[1] for p in pieces]


def test_decode_equals_the_originals() -> None:
  for latents, pixels in (
    ("enc/mu_normalised", "dec/of_mu_normalised"),
    ("in/z", "dec/of_z"),
  ):
    ours, _ = _decode(_golden(latents), at_once=99)
    tolerances.assert_close(ours, _golden(pixels), "golden")


def test_streaming_decode_equals_the_originals() -> None:
  ours, frames = _decode(_golden("in/z"), at_once=1)
  tolerances.assert_close(ours, _golden("stream/of_z"), "golden")
  counts = goldens.load(_NAME)["stream/frames_per_call"]
  np.testing.assert_array_equal(frames, counts)


def test_clipped_pixels_are_between_zero_and_one() -> None:
  golden = np.clip(0.5 * _golden("dec/of_z") + 0.5, 0, 1)
  pixels = jax.jit(lambda m, z: m.decode(z))(_model(), _golden("in/z"))
  tolerances.assert_close(pixels, golden, "golden")
