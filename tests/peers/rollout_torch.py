"""The chunk step of a causal Wan in PyTorch, one chunk per line of input.

  python rollout_torch.py FOLDER SIZE SINK LOCAL

FOLDER is a checkout of Self-Forcing, whose own code runs here: four denoising
passes and the one that stores clean keys. It runs on a GPU if PyTorch sees one.
Every answer is the seconds of one chunk behind a full window.
"""

import functools
import json
import pathlib
import sys
import time
import types

import torch


def _network_class(folder: pathlib.Path, device: str, dtype: torch.dtype):
  """Imports the network alone: its package asks for more than it needs."""
  for name in ("wan", "wan.modules"):
    package = types.ModuleType(name)
    package.__path__ = [str(folder.joinpath(*name.split(".")))]
    sys.modules[name] = package
  if device == "cpu":
    # The code asks for a GPU when it is imported, and computes in bfloat16.
    torch.cuda.current_device = lambda: "cpu"
  from wan.modules import attention
  from wan.modules import model

  # Without flash-attn its own fallback is PyTorch's attention.
  plain = functools.partial(attention.attention, dtype=dtype)
  model.flash_attention = lambda q, k, v, k_lens=None, **_: plain(q, k, v)
  from wan.modules import causal_model

  causal_model.attention = plain
  return causal_model.CausalWanModel


def main() -> None:
  """Builds the network and answers line by line."""
  folder, size = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
  sink, local = int(sys.argv[3]), int(sys.argv[4])
  device = "cuda" if torch.cuda.is_available() else "cpu"
  dtype = torch.bfloat16 if device == "cuda" else torch.float32
  network = _network_class(folder, device, dtype)
  torch.manual_seed(0)
  with torch.device(device):
    model = network(
      # Its local size counts the sink; -1 is every frame of five seconds.
      local_attn_size=-1 if local == 21 else sink + local,
      sink_size=sink,
      text_dim=4096,
      dim=size["width"],
      ffn_dim=size["ffn_width"],
      num_heads=size["heads"],
      num_layers=size["layers"],
    )
  model = model.to(dtype).eval().requires_grad_(False)
  model.num_frame_per_block = 3
  rows, columns = size["frame"]
  tokens, heads = rows * columns // 4, size["heads"]
  frames = 21 if local == 21 else sink + local
  for block in model.blocks:
    block.self_attn.max_attention_size = frames * tokens
  make = functools.partial(torch.zeros, dtype=dtype, device=device)
  zero = lambda count: make(1, count, heads, size["width"] // heads)
  index = lambda: torch.tensor([0], device=device)
  cache = [
    dict(
      k=zero(frames * tokens),
      v=zero(frames * tokens),
      global_end_index=index(),
      local_end_index=index(),
    )
    for _ in model.blocks
  ]
  cross = [dict(k=zero(512), v=zero(512), is_init=False) for _ in model.blocks]
  text = torch.randn(1, 512, 4096, dtype=dtype, device=device)

  def velocity(x, timestep, chunk):
    out = model(
      x.permute(0, 2, 1, 3, 4),
      t=torch.full((1, 3), timestep, device=device),
      context=text,
      seq_len=32760,
      kv_cache=cache,
      crossattn_cache=cross,
      current_start=chunk * 3 * tokens,
    )
    return out.permute(0, 2, 1, 3, 4)

  def step(chunk):
    started = time.perf_counter()
    x = torch.randn(1, 3, 16, rows, columns, dtype=dtype, device=device)
    for timestep in (1000, 750, 500, 250):
      sigma = timestep / 1000
      clean = x - sigma * velocity(x, timestep, chunk)
      x = (1 - sigma) * clean + sigma * torch.randn_like(clean)
    velocity(clean, 0, chunk)
    if device == "cuda":
      torch.cuda.synchronize()
    return time.perf_counter() - started

  with torch.inference_mode():
    last = 6  # 21 frames: the window is full
    for chunk in range(last + 1):
      step(chunk)
    print(f"{device}, PyTorch {torch.__version__}", flush=True)
    for _ in sys.stdin:
      print(step(last), flush=True)


if __name__ == "__main__":
  main()
