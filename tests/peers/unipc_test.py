"""Our UniPC against the scheduler that Wan publishes.

`make test-peers` runs `unipc_peer.py` first, beside PyTorch.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tolerances
from videomla_jax.diffusion import sampling

_FOLDER = os.environ.get("VIDEOMLA_PEERS_DIR")

pytestmark = pytest.mark.skipif(
  _FOLDER is None, reason="run `make test-peers`: it needs PyTorch"
)


@pytest.mark.parametrize(("steps", "shift"), [(2, 5.0), (9, 8.0), (50, 8.0)])
def test_levels_and_every_step_equal_wans(steps: int, shift: float) -> None:
  path = pathlib.Path(_FOLDER) / f"unipc_{steps}_{shift:g}.safetensors"
  golden = safetensors_numpy.load_file(path)
  sampler = sampling.unipc(steps, shift=shift, guidance=None)
  sigmas = np.asarray([*sampler.sigmas, 0.0])
  tolerances.assert_close(sigmas, golden["sigmas"], "float32")
  start = jnp.asarray(golden["states"][0])
  noise = sampling.Noise(start, jnp.zeros((0, *start.shape)))
  calls = sampling.calls(sampler, noise)
  state = sampling.start(sampler, noise)
  for i, velocity in enumerate(golden["velocities"]):
    call = jax.tree.map(lambda leaf, i=i: leaf[i], calls)
    state = sampling.step(sampler, state, jnp.asarray(velocity), call)
    tolerances.assert_close(state.x, golden["states"][i + 1], "peer")
