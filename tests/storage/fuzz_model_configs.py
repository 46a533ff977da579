"""Damaged `config.json` of a model folder, with digests that fit it.

Whoever sends a folder can compute digests, so they protect against accidents
only: what the config says is checked for itself.
"""

import json
import pathlib

import numpy as np

from tests import mutations
from videomla_jax.models import released
from videomla_jax.models import umt5
from videomla_jax.models import vae_coders
from videomla_jax.models import wan_config
from videomla_jax.small_world import model as small_model
from videomla_jax.storage import model_folder

_CONFIGS = {
  "wan_dit": wan_config.tiny(kind="latent"),
  "wan_vae": vae_coders.tiny_vae(),
  "umt5": umt5.tiny_umt5(),
}
_VALUES = (
  0,
  1,
  -1,
  7,
  10**9,
  10**30,
  1e308,
  -0.5,
  "",
  "x",
  "float64",
  "latent",
)
_VALUES += (None, True, False, [], [1], {}, {"a": 1}, [[]] * 50, "y" * 10_000)
_VALUES += (float("nan"), float("inf"))


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  seeds = []
  for architecture, config in _CONFIGS.items():
    path = folder / architecture
    arrays = {"a": rng.standard_normal((3, 4)).astype(np.float32)}
    about = dict(architecture=architecture, config=config.to_dict())
    model_folder.save_model(path, arrays, about)
    seeds.append(mutations.Seed(path, path / model_folder.CONFIG))
  shipped = small_model.checkpoint_path("shipped:small_student")
  path = folder / "small"
  about = model_folder.read_config(shipped)
  model_folder.save_model(path, {"a": np.zeros(1, np.float32)}, about)
  return [*seeds, mutations.Seed(path, path / model_folder.CONFIG)]


def _mutate(data: bytes, rng: np.random.Generator) -> bytes:
  """Changes one value, or bytes."""
  if rng.integers(4) == 0:
    return mutations.mutated(data, rng)
  values = json.loads(data)
  place = values
  while True:  # go down, and stop somewhere
    keys = [*place] if isinstance(place, dict) else [*range(len(place))]
    key = keys[rng.integers(len(keys))]
    inner = place[key]
    if not isinstance(inner, (dict, list)) or not inner or not rng.integers(4):
      break
    place = inner
  if rng.integers(8) == 0:
    del place[key]
  else:
    place[key] = _VALUES[rng.integers(len(_VALUES))]
  return json.dumps(values).encode()


def _read(path: pathlib.Path) -> None:
  """Reads the config and builds what it describes."""
  # Digests that fit say as little as none.
  (path / model_folder.DIGESTS).unlink(missing_ok=True)
  about = model_folder.read_config(path)
  if "model" in about and "architecture" not in about:
    config = small_model.VideoModelConfig.from_dict(about["model"])
    assert config.network.num_layers
    return
  assert released.config_at(path)


READER = mutations.Reader(
  seeds=_seeds, read=_read, mutate=_mutate, names_file=False
)
