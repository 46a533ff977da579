"""Measures what float8 changes, layer by layer and after a rollout.

  python -m tests.float8_errors

Adds lines to docs/float8_errors.jsonl for the shipped networks, whose weights are
trained, and for a few layers of the 1.3B network with random weights. Errors are |a - b| / |b|, b being the
float32 network and norms going over all tokens. A layer's is that of what the
block adds to its input, which all networks take from the float32 one; rollouts
are made of the same noise. Bfloat16 stands beside float8 for comparison.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
import pathlib
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny_model
from videomla_jax.conversion import calibration
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.generation import sources
from videomla_jax.measuring import record
from videomla_jax.models import released
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.ops import quantise

SHIPPED = ("dense", "latent", "student")
RECORD = pathlib.Path(__file__).parents[1] / "docs" / "float8_errors.jsonl"
SIGMA = 0.5  # noise level at which layers are compared


class Case(NamedTuple):
  """A network, and how it makes videos.

  Attributes:
    model: The network, in float32.
    text: Text of one video.
    sampler: How chunks are denoised, without guidance.
    frame: H, W, C of a latent frame.
    window: Which frames a chunk sees.
  """

  model: wan.WanDiT
  text: jax.Array
  sampler: sampling.Sampler
  frame: tuple[int, int, int]
  window: window_lib.Window


class Errors(NamedTuple):
  """Errors of each layer, of the first chunk, and of the last one."""

  layers: list[float]
  first: float
  last: float


def shipped(name: str) -> Case:
  """Returns a shipped model of the small world and a prompt."""
  source = sources.open_small(f"shipped:small_{name}")
  text = source.embed(["a slow three moving horizontally"], negative=None)
  sampler = sampling.few_step((1000, 750, 500, 250))
  if not source.distilled:
    sampler = sampling.euler(10, shift=source.shift, guidance=None)
  frame = source.model.latent_shape()
  model = source.model.dit
  # A loop over blocks compiles in a quarter of the time.
  model.config = dataclasses.replace(model.config, scan_blocks=True)
  return Case(model, text, sampler, frame, source.window)


def random_1p3b(seed: int, *, num_layers: int, kind: str = "latent") -> Case:
  """Returns some layers of the 1.3B network with random weights."""
  rng = np.random.default_rng(seed)
  config = wan_config.wan_1p3b(
    kind=kind, num_layers=num_layers, dtype="float32", text_tokens=64
  )
  abstract = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  return Case(
    tiny_model.fill(abstract, rng),
    tiny_model.normal(rng, 1, 64, config.text_dim),
    sampling.few_step((1000, 750, 500, 250)),
    (8, 12, config.channels),
    window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=6),
  )


def in_bfloat16(model: wan.WanDiT) -> wan.WanDiT:
  """Returns the network with products in bfloat16."""
  config = dataclasses.replace(model.config, dtype="bfloat16")
  other = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  nnx.update(other, nnx.state(model))
  return other


VARIANTS: dict[str, Callable[[wan.WanDiT], wan.WanDiT]] = {
  "bfloat16": in_bfloat16,
} | {
  name: functools.partial(released.with_products, products=name)
  for name in quantise.PRODUCTS
  if name
}


def _error(a: jax.Array, b: jax.Array) -> float:
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _layer_errors(
  case: Case, other: wan.WanDiT, clean: jax.Array
) -> Iterator[float]:
  """Yields the error of each block on one noisy chunk."""
  clean = clean[:, : case.window.chunk_frames]
  noise = jax.random.normal(jax.random.key(7), clean.shape)
  sigma = jnp.full((len(clean),), SIGMA)
  noisy = flow.add_noise(clean, noise, sigma[:, None])
  positions = window_lib.all_together(noisy.shape[1])
  clip = calibration.embed(
    case.model, noisy[:, None], sigma, case.text, positions
  )
  for n in range(case.model.config.num_layers):
    after, _ = calibration._block(case.model.blocks, jnp.int32(n), clip)
    found, _ = calibration._block(other.blocks, jnp.int32(n), clip)
    yield _error(found.tokens - clip.tokens, after.tokens - clip.tokens)
    clip = after


def measure(
  case: Case, *, num_frames: int, seed: int, variants: tuple[str, ...] = ()
) -> dict[str, Errors]:
  """Measures a network.

  Args:
    case: The network.
    num_frames: Latent frames of the rollout.
    seed: Seed of the noise.
    variants: Names in `VARIANTS`; all by default.
  """
  keys = jax.random.split(jax.random.key(seed), 1)

  def roll(model: wan.WanDiT) -> jax.Array:
    return rollout.generate(
      model,
      case.text,
      keys,
      num_frames=num_frames,
      sampler=case.sampler,
      frame=case.frame,
      window=case.window,
    )

  clean, found = roll(case.model), {}
  chunk = case.window.chunk_frames
  for name in variants or VARIANTS:
    other = VARIANTS[name](case.model)
    video = roll(other)
    found[name] = Errors(
      [*_layer_errors(case, other, clean)],
      _error(video[:, :chunk], clean[:, :chunk]),
      _error(video[:, -chunk:], clean[:, -chunk:]),
    )
  return found


def main() -> None:
  """Measures all networks, and adds what comes out to the record."""
  cases = {f"small_{name}": shipped(name) for name in SHIPPED}
  cases |= {
    f"3 layers of {kind} 1.3B, random": random_1p3b(0, num_layers=3, kind=kind)
    for kind in ("latent", "dense")
  }
  session = record.Session.here()
  for title, case in cases.items():
    for name, errors in measure(case, num_frames=24, seed=0).items():
      line = dict(name="float8_errors", network=title, products=name)
      record.add(RECORD, session, [line | errors._asdict()])
      print(title, name, errors, flush=True)


if __name__ == "__main__":
  main()
