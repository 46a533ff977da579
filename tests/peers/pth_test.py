"""Our reading of `.pth` against what PyTorch wrote.

`make test-peers` runs `pth_peer.py` first, beside PyTorch.
"""

import os
import pathlib

import numpy as np
import pytest

from videomla_jax.storage import tensor_files

_FOLDER = os.environ.get("VIDEOMLA_PEERS_DIR")

pytestmark = pytest.mark.skipif(
  _FOLDER is None, reason="run `make test-peers`: it needs PyTorch"
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tensors_of_pytorch_are_read_bit_for_bit(dtype: str) -> None:
  folder = pathlib.Path(_FOLDER)
  with (
    tensor_files.open_tensors(folder / f"saved_{dtype}.pth") as pickled,
    tensor_files.open_tensors(folder / f"saved_{dtype}.safetensors") as plain,
  ):
    assert pickled.keys() == plain.keys()
    assert len(plain) == 7
    for name, tensor in plain.items():
      assert pickled[name].dtype == tensor.dtype
      np.testing.assert_array_equal(pickled[name].read(), tensor.read())


def test_a_pickled_module_is_refused() -> None:
  path = pathlib.Path(_FOLDER) / "module_float32.pth"
  with (
    pytest.raises(ValueError, match="asks to run torch.nn.*it was refused"),
    tensor_files.open_tensors(path),
  ):
    pass
