"""Our text encoder and tokenizer against transformers'.

`make test-peers` runs `umt5_peer.py` first, beside PyTorch.
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
from videomla_jax.conversion.names import umt5 as names
from videomla_jax.models import tokenizer
from videomla_jax.models import umt5
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

_FOLDER = os.environ.get("VIDEOMLA_PEERS_DIR")

pytestmark = pytest.mark.skipif(
  _FOLDER is None, reason="run `make test-peers`: it needs PyTorch"
)


@pytest.mark.parametrize("size", ["narrow", "wide"])
def test_embeddings_equal_the_peers(size: str) -> None:
  path = pathlib.Path(_FOLDER) / f"umt5_{size}.safetensors"
  with safetensors.safe_open(path, framework="numpy") as file:
    sizes = json.loads(file.metadata()["config"])
    print(f"weights of VIDEOMLA_SEED={file.metadata()['seed']}")
    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
  config = umt5.Umt5Config(
    vocabulary=sizes["vocab_size"],
    width=sizes["d_model"],
    num_heads=sizes["num_heads"],
    head_dim=sizes["d_kv"],
    ffn_width=sizes["d_ff"],
    num_layers=sizes["num_layers"],
    dtype="float32",
    param_dtype="float32",
  )
  prefix = "param/"
  arrays = names.table_of(config).read(
    {k.removeprefix(prefix): x for k, x in tensors.items() if prefix in k}
  )
  model = umt5.abstract(config)
  model_folder.update_model(model, tree_names.nested_dict(arrays))
  lengths = tensors["in/lengths"]
  valid = jnp.arange(40) < jnp.asarray(lengths)[:, None]
  run = jax.jit(lambda m, *x: m(*x))
  hidden = run(model, jnp.asarray(tensors["in/ids"]), valid)
  tolerances.assert_close(hidden, tensors["out/hidden"], "peer")


def test_published_names_and_shapes_equal_the_peers() -> None:
  text = (pathlib.Path(_FOLDER) / "umt5_xxl.json").read_text()
  shapes = {k: tuple(s) for k, s in json.loads(text).items()}
  names.table_of(umt5.umt5_xxl()).originals(shapes)  # raises unless equal


def test_ids_and_cleaning_equal_the_peers() -> None:
  folder = pathlib.Path(_FOLDER)
  peer = json.loads((folder / "tokenizer.json").read_text())
  assert [tokenizer.clean(t) for t in peer["texts"]] == peer["cleaned"]
  ids, _ = tokenizer.Tokenizer.load(folder / "tokenizer")(peer["texts"])
  np.testing.assert_array_equal(ids, peer["ids"])
