"""Runs the layers of the tiny decoder in PyTorch, with weights drawn afresh.

They are written here from docs/method.md, section 4.8, under the published
names. Collected by `make test-peers` only, in the environment of the peers;
writes to `$VIDEOMLA_PEERS_DIR` what `tiny_decoder_test.py` compares with.
"""

import os
import pathlib

import pytest
from safetensors import torch as safetensors_torch
import torch
from torch import nn
from torch.nn import functional

_WIDTHS = (16, 12, 8, 8)
_FRAMES = (1, 2, 2)  # that one frame of each resolution becomes
_CHANNELS = 4


def _conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
  return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class _Bound(nn.Module):
  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return 3 * torch.tanh(x / 3)


class _Block(nn.Module):
  """Sees every frame of `[t, C, h, w]` beside the one before it."""

  def __init__(self, width: int) -> None:
    super().__init__()
    self.conv = nn.Sequential(
      _conv(2 * width, width),
      nn.ReLU(),
      _conv(width, width),
      nn.ReLU(),
      _conv(width, width),
    )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    before = functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]
    return torch.relu(x + self.conv(torch.cat([x, before], dim=1)))


class _Grow(nn.Module):
  """Makes some frames of each one."""

  def __init__(self, width: int, frames: int) -> None:
    super().__init__()
    self.conv = nn.Conv2d(width, frames * width, 1, bias=False)
    self.frames = frames

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    pieces = self.conv(x).chunk(self.frames, dim=1)
    return torch.stack(pieces, dim=1).flatten(0, 1)


class _Decoder(nn.Module):
  def __init__(self) -> None:
    super().__init__()
    layers: list[nn.Module] = [_Bound(), _conv(_CHANNELS, _WIDTHS[0])]
    layers.append(nn.ReLU())
    for i, frames in enumerate(_FRAMES):
      width = _WIDTHS[i]
      layers += [_Block(width) for _ in range(3)]
      layers += [nn.UpsamplingNearest2d(scale_factor=2), _Grow(width, frames)]
      layers.append(_conv(width, _WIDTHS[i + 1], bias=False))
    layers += [nn.ReLU(), _conv(_WIDTHS[-1], 3)]
    self.decoder = nn.Sequential(*layers)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    # What comes before the last frame of the first latent frame is dropped.
    return self.decoder(x)[3:].clamp(0, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layers(dtype: str, seed: int) -> None:
  torch.manual_seed(seed)
  model = _Decoder().to(getattr(torch, dtype))
  folder = pathlib.Path(os.environ["VIDEOMLA_PEERS_DIR"])
  state = model.state_dict()
  torch.save(state, folder / f"tiny_decoder_{dtype}.pth")
  safetensors_torch.save_file(
    state, folder / f"tiny_decoder_{dtype}.safetensors"
  )
  latents = torch.randn(4, _CHANNELS, 3, 5)
  with torch.no_grad():
    pixels = model.float()(latents)
  safetensors_torch.save_file(
    {"latents": latents, "pixels": pixels.contiguous()},
    folder / f"tiny_decoder_{dtype}_pixels.safetensors",
  )
