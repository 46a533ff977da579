"""Our tiny decoder against PyTorch's layers, from its files to its pixels.

`make test-peers` runs `tiny_decoder_peer.py` first, beside PyTorch.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests import tiny_release
from tests import tolerances
from videomla_jax import convert
from videomla_jax.models import released
from videomla_jax.models import tiny_decoder

_FOLDER = os.environ.get("VIDEOMLA_PEERS_DIR")

pytestmark = pytest.mark.skipif(
  _FOLDER is None, reason="run `make test-peers`: it needs PyTorch"
)


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pixels_equal_the_peers(
  dtype: str, kind: str, at_once: int, tmp_path: pathlib.Path
) -> None:
  source = pathlib.Path(_FOLDER) / f"tiny_decoder_{dtype}.{kind}"
  convert.convert(
    tiny_release.options(source=str(source), output=str(tmp_path / "model"))
  )
  model = released.load(tmp_path / "model", "tiny_decoder")
  assert model.config == tiny_decoder.tiny()
  tensors = safetensors_numpy.load_file(
    pathlib.Path(_FOLDER) / f"tiny_decoder_{dtype}_pixels.safetensors"
  )
  latents, theirs = (
    np.moveaxis(tensors[name], 1, -1)[None] for name in ("latents", "pixels")
  )
  state = model.start(1, *latents.shape[2:4])
  step = jax.jit(lambda m, x, state: m.decode_chunk(x, state))
  pieces = []
  for i in range(0, latents.shape[1], at_once):
    pixels, state = step(model, jnp.asarray(latents[:, i : i + at_once]), state)
    pieces.append(pixels)
  assert theirs.shape == (1, 4 * 3 + 1, 24, 40, 3)
  tolerances.assert_close(jnp.concatenate(pieces, axis=1), theirs, "peer")
