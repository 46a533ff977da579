"""Runs Wan's published UniPC scheduler on velocities drawn at random.

Collected by `make test-peers` only, in the environment of the peers; writes to
`$VIDEOMLA_PEERS_DIR` what `unipc_test.py` compares with.
"""

import importlib.metadata
import importlib.util
import os
import pathlib

import pytest
from safetensors import torch as safetensors_torch
import torch


def _scheduler(shift: float):
  root = importlib.metadata.distribution("wan22").locate_file("wan")
  path = root / "utils" / "fm_solvers_unipc.py"
  spec = importlib.util.spec_from_file_location("fm_solvers_unipc", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.FlowUniPCMultistepScheduler(
    num_train_timesteps=1000, shift=1, use_dynamic_shifting=False
  )


@pytest.mark.parametrize(("steps", "shift"), [(2, 5.0), (9, 8.0), (50, 8.0)])
def test_wan_scheduler(steps: int, shift: float, seed: int) -> None:
  torch.manual_seed(seed)
  scheduler = _scheduler(shift)
  scheduler.set_timesteps(steps, device="cpu", shift=shift)
  x = torch.randn(1, 3, 2, 4, 4)
  velocities = torch.randn(steps, *x.shape)
  states = []
  for t, velocity in zip(scheduler.timesteps, velocities, strict=True):
    states.append(x)
    x = scheduler.step(velocity, t, x, return_dict=False)[0]
  folder = pathlib.Path(os.environ["VIDEOMLA_PEERS_DIR"])
  safetensors_torch.save_file(
    {
      "sigmas": scheduler.sigmas,
      "velocities": velocities,
      "states": torch.stack([*states, x]),
    },
    folder / f"unipc_{steps}_{shift:g}.safetensors",
  )
