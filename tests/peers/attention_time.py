"""Times attention on a CPU beside PyTorch's, turn by turn in one run.

  python -m tests.peers.attention_time .venv-peers/bin/python --rounds=9

Both get the expanded form's shapes at 480p, frame-wise: 1,560 queries, 4,096
keys, 12 heads of 128, float32. Machines are noisy: what counts is the ratio.
"""

import argparse
import functools
import os
import statistics
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import xla_chunked

QUERIES, KEYS, HEADS, WIDTH = 1560, 4096, 12, 128

# Answers every line of input with the seconds of one call.
_WORKER = f"""
import sys, time, torch
draw = lambda rows: torch.randn(1, {HEADS}, rows, {WIDTH})
q, k, v = draw({QUERIES}), draw({KEYS}), draw({KEYS})
call = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
with torch.inference_mode():
  call()
  for line in sys.stdin:
    start = time.perf_counter()
    call()
    print(time.perf_counter() - start, flush=True)
"""


class Torch:
  """PyTorch's scaled_dot_product_attention in a process of its own."""

  def __init__(self, python: str) -> None:
    """Starts the process."""
    threads = str(len(os.sched_getaffinity(0)))
    self._process = subprocess.Popen(
      [python, "-c", _WORKER],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {"OMP_NUM_THREADS": threads},
    )

  def __call__(self) -> float:
    """Seconds of one call."""
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    self._process.stdin.write("\n")
    self._process.stdin.flush()
    return float(self._process.stdout.readline())

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate()


def _ours(attend: Any) -> tuple[Any, int]:
  """A timed call of one of our implementations, and its temporary bytes."""
  rng = np.random.default_rng()
  draw = lambda rows: jnp.asarray(
    rng.standard_normal((1, rows, HEADS, WIDTH)), jnp.float32
  )
  args = draw(QUERIES), draw(KEYS), draw(KEYS), jnp.ones((1, KEYS), bool)
  program = jax.jit(attend).lower(*args).compile()
  program(*args).block_until_ready()

  def call() -> float:
    start = time.perf_counter()
    program(*args).block_until_ready()
    return time.perf_counter() - start

  return call, program.memory_analysis().temp_size_in_bytes


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser()
  parser.add_argument("python", help="an interpreter that has PyTorch")
  parser.add_argument("--rounds", type=int, default=9)
  given = parser.parse_args()
  scale = WIDTH**-0.5
  chunked, chunked_bytes = _ours(
    functools.partial(xla_chunked.attention, scale=scale)
  )
  naive, naive_bytes = _ours(
    functools.partial(reference.attention, scale=scale)
  )
  torch = Torch(given.python)
  calls = {"torch": torch, "xla_chunked": chunked, "naive XLA": naive}
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(given.rounds):
    for name, call in calls.items():
      seconds[name].append(call())
  torch.close()
  memory = {"xla_chunked": chunked_bytes, "naive XLA": naive_bytes}
  base = seconds["torch"]
  for name, times in seconds.items():
    held = (
      f", temporaries {memory[name] / 1e6:.0f} MB" if name in memory else ""
    )
    print(
      f"{name}: {statistics.median(times) * 1e3:.0f} ms, "
      f"{statistics.median(times) / statistics.median(base):.2f} of PyTorch's"
      f" median, {min(times) / min(base):.2f} of its minimum{held}"
    )


if __name__ == "__main__":
  main()
