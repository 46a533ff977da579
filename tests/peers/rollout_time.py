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
import os
import pathlib
import statistics
import subprocess
import sys
import time

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
# Ours, theirs, and what is compared: sink and local frames.
WINDOWS = {"equal window": (1, 6), "every frame of 5 s": (0, 21)}


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

  def step() -> float:
    nonlocal state
    started = time.perf_counter()
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
    return time.perf_counter() - started

  for _ in range(8):  # compiles, and fills every window
    step()
  print(jax.default_backend(), flush=True)
  for _ in sys.stdin:
    print(step(), flush=True)


class Worker:
  """A process that runs one chunk for every line."""

  def __init__(self, *command: str) -> None:
    """Starts the process and waits until its window is full."""
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ
      | {
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        # Both processes live on one GPU.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
      },
    )
    self.device = self._answer()

  def _answer(self) -> str:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError("a process ended early; its error is above.")
    return line.strip()

  def __call__(self) -> float:
    """Returns the seconds of one chunk."""
    assert self._process.stdin is not None
    self._process.stdin.write("\n")
    self._process.stdin.flush()
    return float(self._answer())

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate("")


def _compare(python: str, wan: pathlib.Path, rounds: int) -> None:
  """Runs all variants in turns, and prints medians and ratios."""
  probe = "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"
  size = subprocess.run(
    [python, "-c", probe], capture_output=True, text=True, check=True
  ).stdout.strip()
  theirs = str(pathlib.Path(__file__).with_name("rollout_torch.py"))
  for title, (sink, local) in WINDOWS.items():
    ours = lambda kind, s=sink, n=local: Worker(
      *(sys.executable, "-m", "tests.peers.rollout_time", "--worker", kind),
      *("--size", size, "--window", str(s), str(n)),
    )
    torch_command = (python, theirs, str(wan), json.dumps(SIZES[size]))
    workers = {
      "PyTorch, dense": Worker(*torch_command, str(sink), str(local)),
      "ours, latent": ours("latent"),
      "ours, dense": ours("dense"),
    }
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
      for name, worker in workers.items():
        times[name].append(worker())
    print(f"{title}: sink {sink}, local {local}")
    peer = statistics.median(times["PyTorch, dense"])
    for name, worker in workers.items():
      median = statistics.median(times[name])
      print(
        f"  {name} ({worker.device}): {median:.3f} s a chunk, from"
        f" {min(times[name]):.3f} to {max(times[name]):.3f};"
        f" {peer / median:.2f} times PyTorch's speed",
        flush=True,
      )
      worker.close()


def main() -> None:
  """Parses the arguments and compares."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--wan", type=pathlib.Path, help="its checkout")
  parser.add_argument("--python", help="an interpreter that has PyTorch")
  parser.add_argument("--rounds", type=int, default=5)
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
  _compare(given.python, given.wan, given.rounds)


if __name__ == "__main__":
  main()
