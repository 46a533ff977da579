"""Tests that a missing device is not taken for a damaged file."""

import os
import pathlib
import subprocess
import sys

from tests import damage

_ROOT = pathlib.Path(__file__).parents[2]
_MODEL = _ROOT / "videomla_jax" / "checkpoints" / "small_latent"

_READ = """
import sys
from videomla_jax.runtime import cli
from videomla_jax.storage import model_folder, train_states
from videomla_jax import sharding
from tests import damage

def read_states():
  with train_states.TrainCheckpoints({states!r}) as saved:
    saved.restore_latest(damage.state(0))

def main():
  read_model = lambda: model_folder.load_model_state({model!r})
  for read in (read_model, read_states, sharding.make_mesh):
    try:
      read()
    except NotImplementedError as error:
      print(error)
  read_model()
cli.run_flags(main)
"""


def test_a_missing_platform_is_named(tmp_path) -> None:
  damage.save(tmp_path)
  text = _READ.format(states=str(tmp_path), model=str(_MODEL))
  done = subprocess.run(
    [sys.executable, "-c", text],
    cwd=_ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  said = [*done.stdout.splitlines(), done.stderr.splitlines()[-1]]
  assert len(said) == 4
  for line in said:
    assert "JAX_PLATFORMS='cuda'" in line and "JAX_PLATFORMS=cpu" in line
  assert "damaged" not in done.stderr and "Traceback" not in done.stderr
  assert {x.name for x in tmp_path.iterdir()} == {"2", "4", "6"}
