"""Golden files: tensors that the original PyTorch code computed.

Layouts of the files: latents `[..., F, C, H, W]`, ours `[..., T, H, W, C]`.
"""

import functools
import json
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.conversion.names import dit as names
from videomla_jax.models import attention
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib

_FOLDER = pathlib.Path(__file__).parents[1] / "goldens"


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
  with np.load(_FOLDER / f"{name}.npz") as file:
    return dict(file)


def config(name: str) -> dict[str, typing.Any]:
  return json.loads(str(load(name)["config_json"]))


def channels_last(x: np.ndarray) -> jax.Array:
  """[..., F, C, H, W] to [..., T, H, W, C]."""
  return jnp.moveaxis(x, -3, -1)


def parameters(name: str) -> dict[str, np.ndarray]:
  prefix = "param/"
  return {
    k.removeprefix(prefix): x
    for k, x in load(name).items()
    if k.startswith(prefix)
  }


def network_config(
  sizes: dict[str, typing.Any], *, scan_blocks: bool = True
) -> wan_config.WanConfig:
  return wan_config.WanConfig(
    attention=attention.AttentionConfig(
      kind="dense", width=sizes["dim"], num_heads=sizes["num_heads"]
    ),
    num_layers=sizes["num_layers"],
    ffn_width=sizes["ffn_dim"],
    channels=sizes["in_dim"],
    freq_dim=sizes["freq_dim"],
    text_dim=sizes["text_dim"],
    text_tokens=sizes["text_len"],
    dtype="float32",
    scan_blocks=scan_blocks,
  )


@functools.cache
def model(name: str) -> wan.WanDiT:
  return names.load_dense(network_config(config(name)), parameters(name))


def window(run: dict[str, typing.Any]) -> window_lib.Window:
  """The originals' window counts the sink; `local_frames` does not."""
  frames, sink = run["local_attn_size"], run["sink_size"]
  return window_lib.Window(
    chunk_frames=run["chunk"],
    sink_frames=sink,
    local_frames=None if frames < 0 else frames - sink,
  )
