"""Times attention on a CPU beside PyTorch's, turn by turn in one run.

  python -m tests.peers.attention_time .venv-peers/bin/python --rounds=9

Random float32 of three shapes: the expanded form at 480p, frame-wise, and the
two calls of `rollout_time` on a CPU. Machines are noisy: what counts is the
ratio.
"""

import argparse
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.peers import turns
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import xla_chunked

# Queries, keys, heads and their width.
SHAPES = {
  "480p, frame-wise": (1560, 4096, 12, 128),
  "the small rollout, 7 frames": (1170, 2730, 6, 64),
  "the small rollout, 21 frames": (1170, 8190, 6, 64),
}
_OURS = {"xla_chunked": xla_chunked.attention, "reference": reference.attention}


def _work(name: str, shape: tuple[int, int, int, int]) -> None:
  """Answers every line of input with the seconds of one of our calls."""
  queries, keys, heads, width = shape
  rng = np.random.default_rng()
  draw = lambda rows: jnp.asarray(
    rng.standard_normal((1, rows, heads, width)), jnp.float32
  )
  args = draw(queries), draw(keys), draw(keys), jnp.ones((1, keys), bool)
  attend = functools.partial(_OURS[name], scale=width**-0.5)
  program = jax.jit(attend).lower(*args).compile()
  program(*args).block_until_ready()
  memory = program.memory_analysis().temp_size_in_bytes
  turns.answer_lines(
    sys.stdin,
    lambda: program(*args).block_until_ready(),
    f"JAX {jax.__version__}, temporaries {memory / 1e6:.0f} MB",
  )


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("python", help="an interpreter that has PyTorch")
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument(
    "--record", type=pathlib.Path, help="file that gets a line per program"
  )
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  parser.add_argument("--shape", help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.worker:
    _work(given.worker, SHAPES[given.shape])
    return
  if given.rounds < 1:
    parser.error(f"--rounds={given.rounds} must be at least 1; use 9.")
  theirs = str(pathlib.Path(__file__).with_name("attention_torch.py"))
  lines = []
  for title, shape in SHAPES.items():
    commands = {"PyTorch": (given.python, theirs, *map(str, shape))} | {
      f"ours, {name}": (
        *(sys.executable, "-m", "tests.peers.attention_time", given.python),
        *("--worker", name, "--shape", title),
      )
      for name in _OURS
    }
    seconds, about = turns.take(commands, rounds=given.rounds)
    lines += turns.report("attention", title, seconds, about)
  if given.record:
    turns.add(given.record, lines)


if __name__ == "__main__":
  main()
