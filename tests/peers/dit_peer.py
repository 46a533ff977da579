"""Runs PyTorch implementations of the DiT, with weights drawn afresh.

Collected by `make test-peers` only, in the environment of the peers; writes to
`$VIDEOMLA_PEERS_DIR` what `dit_test.py` compares with.
"""

import importlib
import importlib.metadata
import json
import os
import pathlib
import sys
import types
import typing

import diffusers
import pytest
from safetensors import torch as safetensors_torch
import torch

# Heads of 12 channels rotate 4 + 4 + 4 of them, of 16 channels 8 + 4 + 4.
_SIZES = {
  "narrow": dict(
    dim=24,
    num_heads=2,
    num_layers=2,
    ffn_dim=40,
    freq_dim=16,
    text_dim=20,
    text_len=6,
    in_dim=4,
  ),
  "wide": dict(
    dim=48,
    num_heads=3,
    num_layers=3,
    ffn_dim=64,
    freq_dim=32,
    text_dim=12,
    text_len=9,
    in_dim=5,
  ),
}
_VIDEO = {"narrow": (3, 4, 6), "wide": (5, 6, 4)}  # frames, rows, columns


def _redraw(model: torch.nn.Module) -> None:
  """Fresh networks have zeros and ones, which hide errors."""
  with torch.no_grad():
    for parameter in model.parameters():
      fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
      gain = parameter.ndim == 1 and parameter.std() == 0 and parameter[0] == 1
      parameter.normal_(std=fan_in**-0.5)
      if gain:
        parameter.add_(1)


def _inputs(size: str) -> dict[str, torch.Tensor]:
  sizes, video = _SIZES[size], _VIDEO[size]
  return {
    "in/x": torch.randn(2, sizes["in_dim"], *video),
    "in/text": torch.randn(2, sizes["text_len"], sizes["text_dim"]),
    "in/t": 1000 * torch.rand(2)[:, None].repeat(1, video[0]),
  }


def _write(
  name: str,
  size: str,
  model: torch.nn.Module,
  tensors: dict[str, torch.Tensor],
) -> None:
  folder = pathlib.Path(os.environ["VIDEOMLA_PEERS_DIR"])
  tensors |= {f"param/{k}": p.detach() for k, p in model.named_parameters()}
  safetensors_torch.save_file(
    {k: x.contiguous() for k, x in tensors.items()},
    folder / f"{name}_{size}.safetensors",
    metadata={"config": json.dumps(_SIZES[size])},
  )


def _diffusers_model(sizes: dict[str, int]) -> torch.nn.Module:
  return diffusers.WanTransformer3DModel(
    num_attention_heads=sizes["num_heads"],
    attention_head_dim=sizes["dim"] // sizes["num_heads"],
    in_channels=sizes["in_dim"],
    out_channels=sizes["in_dim"],
    text_dim=sizes["text_dim"],
    freq_dim=sizes["freq_dim"],
    ffn_dim=sizes["ffn_dim"],
    num_layers=sizes["num_layers"],
  )


@pytest.mark.parametrize("size", _SIZES)
def test_diffusers(size: str, seed: int) -> None:
  torch.manual_seed(seed)
  model = _diffusers_model(_SIZES[size]).eval()
  _redraw(model)
  given = _inputs(size)
  with torch.no_grad():
    out = model(given["in/x"], given["in/t"][:, 0], given["in/text"]).sample
  _write("diffusers", size, model, {**given, "out/v": out})


def test_diffusers_published_shapes() -> None:
  published = dict(
    dim=1536,
    num_heads=12,
    num_layers=30,
    ffn_dim=8960,
    freq_dim=256,
    text_dim=4096,
    in_dim=16,
  )
  with torch.device("meta"):
    model = _diffusers_model(published)
  shapes = {k: list(p.shape) for k, p in model.named_parameters()}
  folder = pathlib.Path(os.environ["VIDEOMLA_PEERS_DIR"])
  (folder / "diffusers_1p3b.json").write_text(json.dumps(shapes))


def _wan_modules() -> tuple[typing.Any, typing.Any]:
  """Imports the published Wan code without its package's heavy start-up."""
  root = importlib.metadata.distribution("wan22").locate_file("wan")
  for name, path in (("wan", root), ("wan.modules", root / "modules")):
    module = types.ModuleType(name)
    module.__path__ = [str(path)]
    sys.modules[name] = module
  attention = importlib.import_module("wan.modules.attention")
  return attention, importlib.import_module("wan.modules.model")


@pytest.mark.parametrize("size", _SIZES)
def test_wan(size: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
  torch.manual_seed(seed)
  attention, modules = _wan_modules()

  def float32_attention(q, k, v, **kwargs):
    del kwargs  # Lengths and windows: no sequence here is padded.
    return attention.attention(q, k, v, dtype=torch.float32)

  monkeypatch.setattr(modules, "flash_attention", float32_attention)
  sizes = _SIZES[size]
  model = modules.WanModel(**sizes, out_dim=sizes["in_dim"]).eval()
  _redraw(model)
  given = _inputs(size)
  # This edition takes a timestep per token, so every frame has its own.
  given["in/t"] = 1000 * torch.rand(given["in/t"].shape)
  frames, rows, columns = _VIDEO[size]
  tokens = rows * columns // 4
  per_token = given["in/t"].repeat_interleave(tokens, dim=1)
  with torch.no_grad():
    out = model(
      list(given["in/x"]), per_token, list(given["in/text"]), frames * tokens
    )
  _write("wan", size, model, {**given, "out/v": torch.stack(out)})
