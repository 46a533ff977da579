"""Times a rollout beside Self-Forcing's in PyTorch, turn by turn in one run.

  git clone https://github.com/guandeh17/Self-Forcing
  make bench-peer WAN=Self-Forcing

Random weights; one chunk is four denoising passes and the commit, behind a full
window. Where PyTorch sees a GPU both run Wan-1.3B at 480 x 832 in bfloat16,
elsewhere a smaller network in float32. Machines are noisy: what counts is the
ratio.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from tests.peers import turns

# A GPU's sizes are those of Wan-1.3B; d_c, d_rope and d_q are the paper's.
SIZES = {
  "cuda": dict(
    width=1536,
    heads=12,
    layers=30,
    ffn_width=8960,
    frame=(60, 104),
    latent=(192, 32, 768),
  ),
  "cpu": dict(
    width=384,
    heads=6,
    layers=6,
    ffn_width=1536,
    frame=(30, 52),
    latent=(48, 16, 192),
  ),
}
# Sink and local frames of each program, the peer first.
CASES = {
  "equal window, 1 + 6 frames": {
    "PyTorch, dense": (1, 6),
    "ours, latent": (1, 6),
    "ours, dense": (1, 6),
  },
  "the peer's default, every frame of 5 s": {
    "PyTorch, dense": (0, 21),
    "ours, latent, 1 + 6 frames": (1, 6),
    "ours, latent, every frame": (0, 21),
    "ours, dense, every frame": (0, 21),
  },
}


def _ours(kind: str, size: str, sink: int, local: int) -> None:
  """Answers every line of input with the seconds of one of our chunks."""
  from flax import nnx
  import jax
  import jax.numpy as jnp

  from videomla_jax.diffusion import rollout
  from videomla_jax.diffusion import sampling
  from videomla_jax.measuring import random_networks
  from videomla_jax.models import attention
  from videomla_jax.models import wan
  from videomla_jax.models import wan_config
  from videomla_jax.models import window as window_lib

  sizes, on_gpu = SIZES[size], size == "cuda"
  d_c, d_rope, d_q = sizes["latent"]
  config = wan_config.WanConfig(
    attention=attention.AttentionConfig(
      kind=kind,
      width=sizes["width"],
      num_heads=sizes["heads"],
      d_c=d_c,
      d_rope=d_rope,
      d_q=d_q,
    ),
    num_layers=sizes["layers"],
    ffn_width=sizes["ffn_width"],
    dtype="bfloat16" if on_gpu else "float32",
    scan_blocks=on_gpu,
    spare_memory=False,
  )
  model = random_networks.make(
    lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)), halve=on_gpu
  )
  window = window_lib.Window(
    chunk_frames=3, sink_frames=sink, local_frames=local
  )
  sampler = sampling.few_step((1000, 750, 500, 250))
  frame = (*sizes["frame"], 16)
  text = jax.random.normal(
    jax.random.key(1), (1, 512, 4096), jnp.dtype(config.dtype)
  )
  state = rollout.start(
    model,
    text,
    jax.random.split(jax.random.key(0), 1),
    frame=frame,
    window=window,
    sampler=sampler,
    max_frames=3000,
  )

  def step() -> None:
    nonlocal state
    latents, state = rollout.scan_chunks(
      model,
      state,
      text,
      window=window,
      sampler=sampler,
      chunks=1,
      frame=frame,
    )
    jax.block_until_ready(latents)

  for _ in range(8):  # compiles, and fills every window
    step()
  about = f"{jax.default_backend()}, JAX {jax.__version__}"
  turns.answer_lines(sys.stdin, step, about)


def _compare(given: argparse.Namespace) -> None:
  """Runs all variants in turns, and prints medians and ratios."""
  probe = "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"
  size = subprocess.run(
    [given.python, "-c", probe], capture_output=True, text=True, check=True
  ).stdout.strip()
  theirs = str(pathlib.Path(__file__).with_name("rollout_torch.py"))
  lines = []
  for title, windows in CASES.items():
    commands = {}
    for program, window in windows.items():
      kind = program.split(", ")[1]
      commands[program] = (
        (given.python, theirs, str(given.wan), json.dumps(SIZES[size]))
        if program.startswith("PyTorch")
        else (sys.executable, "-m", "tests.peers.rollout_time")
        + ("--worker", kind, "--size", size, "--window")
      ) + tuple(map(str, window))
    seconds, about = turns.take(commands, rounds=given.rounds)
    lines += turns.report("rollout_chunk", title, seconds, about)
  if given.record:
    turns.add(given.record, lines)


def main() -> None:
  """Parses the arguments and compares."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--wan", type=pathlib.Path, help="its checkout")
  parser.add_argument("--python", help="an interpreter that has PyTorch")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument(
    "--record", type=pathlib.Path, help="file that gets a line per program"
  )
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  parser.add_argument("--size", help=argparse.SUPPRESS)
  parser.add_argument("--window", nargs=2, type=int, help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.worker:
    _ours(given.worker, given.size, *given.window)
    return
  if given.rounds < 1:
    parser.error(f"--rounds={given.rounds} must be at least 1; use 5.")
  if not given.wan or not (given.wan / "wan/modules/causal_model.py").exists():
    parser.error(
      f"--wan={given.wan} is no checkout of Self-Forcing; clone"
      " https://github.com/guandeh17/Self-Forcing and name its folder."
    )
  _compare(given)


if __name__ == "__main__":
  main()
