"""Our VAE against diffusers' with random weights, whole and in pieces.

`make test-peers` runs `vae_peer.py` first, beside PyTorch.
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from tests import tolerances
from videomla_jax.conversion.names import vae as names
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

_FOLDER = os.environ.get("VIDEOMLA_PEERS_DIR")

pytestmark = pytest.mark.skipif(
  _FOLDER is None, reason="run `make test-peers`: it needs PyTorch"
)


def _read(size: str) -> tuple[vae.WanVAE, dict[str, np.ndarray]]:
  path = pathlib.Path(_FOLDER) / f"vae_{size}.safetensors"
  with safetensors.safe_open(path, framework="numpy") as file:
    sizes = json.loads(file.metadata()["config"])
    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
  config = vae_coders.wan_vae(
    width=sizes["base_dim"],
    channels=sizes["z_dim"],
    num_blocks=sizes["num_res_blocks"],
    mean=(0.0,) * sizes["z_dim"],  # their pipeline normalises, not the VAE
    std=(1.0,) * sizes["z_dim"],
  )
  prefix = "param/"
  arrays = names.table_of(config).read(
    {k.removeprefix(prefix): x for k, x in tensors.items() if prefix in k}
  )
  model = vae.abstract(config)
  model_folder.update_model(model, tree_names.nested_dict(arrays))
  return model, {
    k: np.moveaxis(x, 1, -1) for k, x in tensors.items() if prefix not in k
  }


@pytest.mark.parametrize("size", ["narrow", "wide"])
def test_latents_equal_the_peers(size: str) -> None:
  model, tensors = _read(size)
  video = jnp.asarray(tensors["in/video"])
  state = model.start_encode(1, *video.shape[2:4])
  pixels = video.astype(jnp.float32) / 127.5 - 1
  mean, variance, _ = jax.jit(lambda m, x: m.moments(x, state))(model, pixels)
  tolerances.assert_close(mean, tensors["out/mean"], "peer")
  # The peer keeps log variances within bounds that ours never reach.
  clipped = np.clip(variance, -30, 20)
  tolerances.assert_close(clipped, tensors["out/logvar"], "peer")
  latents = jax.jit(lambda m, x: m.encode(x))(model, video)
  tolerances.assert_close(latents, tensors["out/mean"], "peer")


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("size", ["narrow", "wide"])
def test_pixels_equal_the_peers(size: str, at_once: int) -> None:
  model, tensors = _read(size)
  latents = jnp.asarray(tensors["in/latents"])
  state = model.start(1, *latents.shape[2:4])
  step = jax.jit(lambda m, x, state: m.decode_chunk(x, state))
  pieces = []
  for i in range(0, latents.shape[1], at_once):
    pixels, state = step(model, latents[:, i : i + at_once], state)
    pieces.append(pixels)
  theirs = 0.5 * tensors["out/pixels"] + 0.5  # clipped to [-1, 1]
  tolerances.assert_close(jnp.concatenate(pieces, axis=1), theirs, "peer")


def test_published_names_shapes_and_statistics_equal_the_peers() -> None:
  path = pathlib.Path(_FOLDER) / "vae_published.json"
  published = json.loads(path.read_text())
  config = vae_coders.wan_vae()
  shapes = {k: tuple(s) for k, s in published["shapes"].items()}
  names.table_of(config).originals(shapes)  # raises unless equal
  assert [list(config.mean), list(config.std)] == published["statistics"]
