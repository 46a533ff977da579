"""Tests that a missing device is not taken for a damaged file."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests import damage

_ROOT = pathlib.Path(__file__).parents[2]
_MODEL = _ROOT / "videomla_jax" / "checkpoints" / "small_latent"

_READ = """
import sys
from videomla_jax.runtime import cli
from videomla_jax.storage import model_folder, train_states
from videomla_jax import sharding
from tests import damage
def main():
  if {what!r} == "model":
    model_folder.load_model_state({path!r})
  elif {what!r} == "states":
    with train_states.TrainCheckpoints({path!r}) as saved:
      saved.restore_latest(damage.state(0))
  else:
    sharding.make_mesh()
cli.run_flags(main)
"""


@pytest.mark.parametrize("what", ["model", "states", "mesh"])
def test_a_missing_platform_is_named(tmp_path, what) -> None:
  path = _MODEL
  if what == "states":
    damage.save(tmp_path / "pristine")
    path = shutil.copytree(tmp_path / "pristine", tmp_path / "states")
  done = subprocess.run(
    [sys.executable, "-c", _READ.format(what=what, path=str(path))],
    cwd=_ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  last = done.stderr.splitlines()[-1]
  assert "JAX_PLATFORMS='cuda'" in last and "JAX_PLATFORMS=cpu" in last
  assert "damaged" not in done.stderr and "Traceback" not in done.stderr
  if what == "states":
    assert {x.name for x in path.iterdir()} == {"2", "4", "6"}
