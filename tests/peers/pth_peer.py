"""Saves checkpoints with PyTorch, as training code does.

Collected by `make test-peers` only, in the environment of the peers; writes to
`$VIDEOMLA_PEERS_DIR` what `pth_test.py` reads.
"""

import os
import pathlib

import pytest
from safetensors import torch as safetensors_torch
import torch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_save(dtype: str, seed: int) -> None:
  torch.manual_seed(seed)
  kind = getattr(torch, dtype)
  model = torch.nn.Sequential(
    torch.nn.Linear(5, 7),
    torch.nn.Conv3d(2, 3, (1, 2, 2)),
    torch.nn.Linear(7, 1),
  ).to(kind)
  state = model.state_dict()
  state["view"] = torch.randn(6, 8).to(kind)[1:4, ::2].T  # shares its storage
  folder = pathlib.Path(os.environ["VIDEOMLA_PEERS_DIR"])
  torch.save(
    {"generator_ema": state, "generator": {}, "step": 7},
    folder / f"saved_{dtype}.pth",
  )
  torch.save(model, folder / f"module_{dtype}.pth")
  safetensors_torch.save_file(
    {k: x.contiguous() for k, x in state.items()},
    folder / f"saved_{dtype}.safetensors",
  )
