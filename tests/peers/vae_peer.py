"""Runs diffusers' VAE, with weights drawn afresh.

Collected by `make test-peers` only, in the environment of the peers; writes to
`$VIDEOMLA_PEERS_DIR` what `vae_test.py` compares with.
"""

import json
import os
import pathlib

import diffusers
import pytest
from safetensors import torch as safetensors_torch
import torch

_SIZES = {
  "narrow": dict(base_dim=8, z_dim=4, num_res_blocks=1),
  "wide": dict(base_dim=12, z_dim=6, num_res_blocks=2),
}
_VIDEO = {"narrow": (9, 16, 24), "wide": (5, 24, 16)}  # frames, rows, columns


def _redraw(model: torch.nn.Module) -> None:
  """Fresh networks have zeros and ones, which hide errors."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name.endswith("gamma"):
        parameter.normal_(mean=1, std=0.2)
      elif parameter.ndim == 1:
        parameter.normal_(std=0.1)
      else:
        parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)


def _folder() -> pathlib.Path:
  return pathlib.Path(os.environ["VIDEOMLA_PEERS_DIR"])


@pytest.mark.parametrize("size", _SIZES)
def test_diffusers(size: str, seed: int) -> None:
  torch.manual_seed(seed)
  model = diffusers.AutoencoderKLWan(**_SIZES[size]).eval()
  _redraw(model)
  frames, rows, columns = _VIDEO[size]
  video = torch.randint(0, 256, (1, 3, frames, rows, columns))
  latents = torch.randn(1, _SIZES[size]["z_dim"], 3, rows // 8, columns // 8)
  with torch.no_grad():
    moments = model.encode(video / 127.5 - 1).latent_dist
    pixels = model.decode(latents).sample
  tensors = {
    "in/video": video.to(torch.uint8),
    "in/latents": latents,
    "out/mean": moments.mean,
    "out/logvar": moments.logvar,
    "out/pixels": pixels,
  }
  tensors |= {f"param/{k}": p.detach() for k, p in model.named_parameters()}
  safetensors_torch.save_file(
    {k: x.contiguous() for k, x in tensors.items()},
    _folder() / f"vae_{size}.safetensors",
    metadata={"config": json.dumps(_SIZES[size])},
  )


def test_diffusers_published_shapes() -> None:
  with torch.device("meta"):
    model = diffusers.AutoencoderKLWan()
  shapes = {k: list(p.shape) for k, p in model.named_parameters()}
  statistics = [list(model.config[f"latents_{k}"]) for k in ("mean", "std")]
  text = json.dumps(dict(shapes=shapes, statistics=statistics))
  (_folder() / "vae_published.json").write_text(text)
