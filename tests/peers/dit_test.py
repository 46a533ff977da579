"""Our DiT against PyTorch implementations with random weights.

`make test-peers` runs `dit_peer.py` first, beside PyTorch.
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
from tests.parity import goldens
from videomla_jax.conversion.names import dit as names
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

_FOLDER = os.environ.get("VIDEOMLA_PEERS_DIR")

pytestmark = pytest.mark.skipif(
  _FOLDER is None, reason="run `make test-peers`: it needs PyTorch"
)


def _read(name: str) -> tuple[wan_config.WanConfig, dict[str, np.ndarray]]:
  path = pathlib.Path(_FOLDER) / f"{name}.safetensors"
  with safetensors.safe_open(path, framework="numpy") as file:
    config = json.loads(file.metadata()["config"])
    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
  return goldens.network_config(config), tensors


@pytest.mark.parametrize("size", ["narrow", "wide"])
@pytest.mark.parametrize("peer", ["diffusers", "wan"])
def test_velocity_equals_the_peers(peer: str, size: str) -> None:
  config, tensors = _read(f"{peer}_{size}")
  prefix = "param/"
  parameters = {
    k.removeprefix(prefix): x
    for k, x in tensors.items()
    if k.startswith(prefix)
  }
  model = names.load_dense(config, parameters)
  run = jax.jit(
    lambda m, *x: m.velocity_and_entries(
      *x, context_of=lambda own, past: [own]
    )[0]
  )
  velocity = run(
    model,
    jnp.asarray(np.moveaxis(tensors["in/x"], 1, -1)[:, None]),
    jnp.asarray(tensors["in/t"][:, None]),
    jnp.asarray(tensors["in/text"]),
    window_lib.all_together(tensors["in/t"].shape[1]),
  )
  theirs = np.moveaxis(tensors["out/v"], 1, -1)
  tolerances.assert_close(velocity[:, 0], theirs, "peer")


def test_published_names_and_shapes_equal_the_peers() -> None:
  text = (pathlib.Path(_FOLDER) / "diffusers_1p3b.json").read_text()
  shapes = {k: tuple(s) for k, s in json.loads(text).items()}
  tensors = names.table_of(wan_config.wan_1p3b(kind="dense"))
  originals = tensors.originals(shapes)  # raises unless equal
  assert set(originals.values()) == tensors.tensors.keys()
