"""Runs cases of Mosaic's interpreter in a process of their own.

The interpreter runs every GPU thread as a thread of a pool as large as the
machine has cores, and waits for ever if there are fewer cores than threads:
each case runs in a process that believes in 16.
"""

import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[3]


def run(module: str, *arguments: str, timeout: int = 300) -> str:
  """Returns what cases print.

  Args:
    module: File beside this one.
    *arguments: Which cases, and the seed.
    timeout: Seconds after which they hang.
  """
  done = subprocess.run(
    [sys.executable, "-m", f"{__package__}.{module}", *arguments],
    cwd=_ROOT,
    env=os.environ | {"NPROC": "16", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  print(done.stdout)
  return done.stdout
