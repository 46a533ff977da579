"""Measures a pass and a chunk of the whole network with each attention.

  python -m tests.pass_errors [--size=1.3b|tiny] [--side=N] [NAME...]

NAME is a key of `BACKENDS`; all by default. Kernels run in their interpreters
on a CPU, so frames are small; layers and widths are those of the network, whose
weights are random. Errors are |a - b| / |b|, b being the network in float32
with attention by `xla_chunked` (`error_rows`): of the velocity of one pass, and
of the latents of a chunk after the four passes of the sampler.

Lines at 1.3b are added to docs/pass_errors.jsonl. What has a line of this
commit and these versions is left out, so that a run that was stopped goes on.
Three backends are wrong on purpose, to show what such errors would be.
`triton` is left out where jax-triton is absent (extra `aot`). Each backend has
a process of its own: some interpreters change JAX, or need variables from the
start of the process.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import types as python_types
from typing import NamedTuple
from unittest import mock

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from videomla_jax.measuring import error_rows
from videomla_jax.measuring import record
from videomla_jax.measuring import rollout_rows
from videomla_jax.models import attention
from videomla_jax.models import wan_config
from videomla_jax.ops.latent_attention import api
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import library_tpu
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_config
from videomla_jax.ops.latent_attention import pallas_mosaic_gpu_hopper_config
from videomla_jax.ops.latent_attention import pallas_triton
from videomla_jax.ops.latent_attention import types
from videomla_jax.ops.latent_attention import xla_chunked

ROOT = pathlib.Path(__file__).parents[1]
RECORD = ROOT / "docs" / "pass_errors.jsonl"
SAMPLER = rollout_rows.SAMPLER
WRONG = "wrong on purpose"
ONE, BOTH = ("expanded",), ("expanded", "absorbed")

Segments = tuple[types.Keys, ...]
Open = Callable[[], contextlib.AbstractContextManager[types.Implementation]]


class Case(NamedTuple):
  """A network and its frames.

  Attributes:
    network: Its name.
    config: Its sizes.
    frame: H, W, C of a latent frame.
    kept: Whether its lines belong into the record.
  """

  network: str
  config: wan_config.WanConfig
  frame: tuple[int, int, int]
  kept: bool


def _tiny() -> wan_config.WanConfig:
  """The narrowest network whose attention all kernels take."""
  sizes = attention.AttentionConfig(
    kind="latent", width=128, num_heads=2, d_c=64, d_rope=16, d_q=32
  )
  return dataclasses.replace(wan_config.tiny(text_tokens=8), attention=sizes)


CASES = {
  "1.3b": Case("Wan-1.3B", wan_config.wan_1p3b(), (16, 16, 16), True),
  "tiny": Case("tiny", _tiny(), (8, 8, 4), False),
}


def _by_xla(name: str) -> Open:
  return lambda: contextlib.nullcontext(api.IMPLEMENTATIONS[name])


@contextlib.contextmanager
def _pallas_triton() -> Iterator[types.Implementation]:
  flash = functools.partial(pallas_triton.flash, interpret=True)
  yield functools.partial(forms.attend, flash)


@contextlib.contextmanager
def _mosaic(plan: python_types.ModuleType) -> Iterator[types.Implementation]:
  """The kernel of one generation; races are looked for in its own tests."""
  # A module of that kernel's tests, which teaches products to the interpreter.
  from tests.ops.latent_attention import mosaic_wgmma

  def flash(queries, segments, *, scale):
    widths = pallas_mosaic_gpu._widths(queries, segments)
    batch, rows, heads, _ = queries.content.shape
    return pallas_mosaic_gpu.flash(
      queries,
      segments,
      scale=scale,
      config=plan.config_of(widths, rows=rows, heads=batch * heads),
      interpret=plgpu.InterpretGPUParams(),
    )

  if plan is pallas_mosaic_gpu_hopper_config:
    mosaic_wgmma.install()
  yield functools.partial(forms.attend, flash)


@contextlib.contextmanager
def _triton() -> Iterator[types.Implementation]:
  # Only where Triton is, and in a process that interprets it.
  from tests.aot import triton_interpreter

  triton_interpreter.install()
  yield functools.partial(forms.attend, triton_interpreter.kernel.flash)


@contextlib.contextmanager
def _tpu_flash() -> Iterator[types.Implementation]:
  with pltpu.force_tpu_interpret_mode():
    yield library_tpu.latent_attention


def _wrong(
  change: Callable[[types.Queries, Segments], tuple[types.Queries, Segments]],
) -> Open:
  """Attention that is wrong on purpose, since its arguments are changed."""

  def run(queries, keys, up, *, form):
    args = change(queries, keys)
    return xla_chunked.latent_attention(*args, up, form=form)

  return lambda: contextlib.nullcontext(run)


def _without_values() -> contextlib.AbstractContextManager[
  types.Implementation
]:
  """Zeros in place of attention."""

  def run(queries, keys, up, *, form):
    right = xla_chunked.latent_attention(queries, keys, up, form=form)
    return jnp.zeros_like(right)

  return contextlib.nullcontext(run)


def _uniform(queries, keys):
  return jax.tree.map(jnp.zeros_like, queries), keys


def _without_a_frame(queries, keys):
  ring, own = keys
  return queries, (ring._replace(valid=ring.valid.at[:, 0].set(False)), own)


class Backend(NamedTuple):
  """An implementation, and how it runs on a CPU.

  Attributes:
    title: Its name in `api.IMPLEMENTATIONS`, with the GPU where it has several.
    forms: The forms that it has.
    run: "XLA", "interpreted", or "wrong on purpose".
    open: Returns what takes its place in the table, for the time of a block.
    environment: Variables that its process needs.
    needs: Module without which it is left out.
  """

  title: str
  forms: tuple[str, ...]
  run: str
  open: Open
  environment: Mapping[str, str] = {}
  needs: str = "jax"


# Mosaic's interpreter has a thread of a pool as large as the machine for every
# GPU thread, and waits for ever if there are fewer.
_MOSAIC = {"NPROC": "16"}
BACKENDS = {
  "reference": Backend("reference", ONE, "XLA", _by_xla("reference")),
  "xla_chunked": Backend("xla_chunked", BOTH, "XLA", _by_xla("xla_chunked")),
  "pallas_triton": Backend(
    "pallas_triton", BOTH, "interpreted", _pallas_triton
  ),
  "blackwell": Backend(
    "pallas_mosaic_gpu, Blackwell",
    BOTH,
    "interpreted",
    functools.partial(_mosaic, pallas_mosaic_gpu_config),
    _MOSAIC,
  ),
  "hopper": Backend(
    "pallas_mosaic_gpu, Hopper",
    BOTH,
    "interpreted",
    functools.partial(_mosaic, pallas_mosaic_gpu_hopper_config),
    _MOSAIC,
  ),
  "triton": Backend(
    "triton",
    ("absorbed",),
    "interpreted",
    _triton,
    {"TRITON_INTERPRET": "1"},
    "jax_triton",
  ),
  "tpu_flash": Backend("tpu_flash", ONE, "interpreted", _tpu_flash),
  "without_a_frame": Backend(
    "the first of four cached frames unseen",
    ONE,
    WRONG,
    _wrong(_without_a_frame),
  ),
  "uniform": Backend("all keys weighed alike", ONE, WRONG, _wrong(_uniform)),
  "without_values": Backend(
    "zeros in place of values", ONE, WRONG, _without_values
  ),
}


def truth(case: Case) -> error_rows.Outputs:
  """Computes what backends are compared with."""
  return error_rows.expected(case.config, case.frame, sampler=SAMPLER)


def measure(
  case: Case, name: str, form: str, expected: error_rows.Outputs
) -> dict[str, float]:
  """Runs the network with a backend in bfloat16.

  Args:
    case: The network.
    name: Key of `BACKENDS`.
    form: One of its forms.
    expected: What `truth` returned.

  Returns:
    Errors of the velocity and of the latents.
  """
  with contextlib.ExitStack() as stack:
    implementation = stack.enter_context(BACKENDS[name].open())
    table = {name: implementation}
    stack.enter_context(mock.patch.dict(api.IMPLEMENTATIONS, table))
    found = error_rows.run(
      case.config,
      case.frame,
      dtype="bfloat16",
      implementation=name,
      form=form,
      sampler=SAMPLER,
    )
  return {
    field: error_rows.relative_error(ours, theirs)
    for field, ours, theirs in zip(found._fields, found, expected, strict=True)
  }


def _in_a_process(case: Case, path: pathlib.Path, *chosen: str) -> str:
  """Runs a worker; returns the last line that it prints."""
  size = next(k for k, x in CASES.items() if x.network == case.network)
  environment = BACKENDS[chosen[0]].environment if chosen else {}
  done = subprocess.run(
    [
      *(sys.executable, "-m", "tests.pass_errors", f"--size={size}"),
      *(f"--side={case.frame[0]}", f"--truth={path}", *chosen),
    ],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return done.stdout.splitlines()[-1]


def _work(case: Case, path: pathlib.Path, chosen: list[str]) -> None:
  """Writes the float32 outputs to a file, or compares a backend with them."""
  if not chosen:
    np.savez(path, **truth(case)._asdict())
    print("float32 outputs written")
    return
  with np.load(path) as stored:
    expected = error_rows.Outputs(**stored)
  start = time.monotonic()
  found = measure(case, *chosen, expected)
  print(json.dumps(found | dict(seconds=round(time.monotonic() - start, 1))))


def _is_there(
  session: record.Session, line: record.Line, kept: list[record.Line]
) -> bool:
  """Whether a record has a line of this commit, these versions and this case.

  The record itself changes while it is written, so "+" says nothing here.
  """
  plain = dataclasses.replace(session, commit=session.commit.rstrip("+"))
  return any(
    plain.made(x | dict(commit=str(x["commit"]).rstrip("+")))
    and all(x.get(k) == v for k, v in line.items())
    for x in kept
  )


def _todo(
  case: Case, names: list[str], session: record.Session
) -> Iterator[tuple[str, str, record.Line]]:
  """Yields backends and forms, and how their lines begin."""
  kept = record.read(RECORD) if case.kept else []
  for name in names or BACKENDS:
    backend = BACKENDS[name]
    if importlib.util.find_spec(backend.needs) is None:
      print(f"{name}: left out, there is no {backend.needs}", flush=True)
      continue
    for form in backend.forms:
      line = dict(
        name="pass_errors",
        network=case.network,
        shape=f"{case.frame[0]}x{case.frame[1]} latents",
        implementation=backend.title,
        form=form,
        run=backend.run,
        passes=len(SAMPLER.sigmas),
      )
      if not _is_there(session, line, kept):
        yield name, form, line


def main() -> None:
  """Measures what the record does not have."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", choices=CASES, default="1.3b")
  parser.add_argument(
    "--side", type=int, help="rows and columns of a latent frame"
  )
  parser.add_argument("--truth", type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument("names", nargs="*", metavar="NAME")
  args = parser.parse_args()
  case = CASES[args.size]
  if args.side:
    case = case._replace(frame=(args.side, args.side, case.frame[2]))
  if args.truth:  # a worker, whose names are a backend and its form
    jax.config.update("jax_platforms", "cpu")
    _work(case, args.truth, args.names)
    return
  record.check_names("NAME", args.names, BACKENDS, may_be_empty=True)
  session = record.Session.here()
  todo = [*_todo(case, args.names, session)]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "truth.npz"
    if todo:
      print(_in_a_process(case, path), flush=True)
    for name, form, line in todo:
      line |= json.loads(_in_a_process(case, path, name, form))
      print(
        f"{line['implementation']}, {form}: pass {line['velocity']:.2e}, "
        f"chunk {line['latents']:.2e}, {line['seconds']:.0f} s",
        flush=True,
      )
      if case.kept:
        record.add(RECORD, session, [line])


if __name__ == "__main__":
  main()
