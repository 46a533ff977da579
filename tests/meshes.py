"""Losses and gradients of every stage, and a video, on one mesh, as a program.

  python -m tests.meshes OUTPUT SEED STAGES data=8

STAGES are names in `TRAINED`, joined by commas, or "all". Run with eight (virtual) devices, in one process or in several. Writes an npz of
losses, gradients, latents of a rollout and the collectives of the step that
computes the gradients, as "kind elements".
"""

from collections.abc import Sequence
import functools
import pathlib
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from tests import tiny_model
from tests import tiny_project
from videomla_jax import sharding
from videomla_jax.costs import collectives
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import window as window_lib
from videomla_jax.runtime import distributed
from videomla_jax.storage import tree_names
from videomla_jax.training import distribution_matching
from videomla_jax.training import optim
from videomla_jax.training import regression
from videomla_jax.training.stages import consistency
from videomla_jax.training.stages import dmd
from videomla_jax.training.stages import pretraining
from videomla_jax.training.stages import table
from videomla_jax.training.stages import teacher_forcing

B, FRAMES, FRAME = 8, 4, (4, 4, 2)  # four tokens a frame
_SIZES = dict(width=32, num_heads=2, d_c=8, d_rope=6, d_q=16)


# Stage -> the network that has its gradient.
TRAINED = {
  "pretraining": "dense",
  "teacher_forcing": "model",
  "consistency": "model",
  "student": "model",
  "critic": "critic",
}


# What the losses read of a config.
_DIFFUSION = {
  "pretraining": dict(frame_levels=0.5),
  "teacher_forcing": dict(loss_weight="bell"),
  "consistency": dict(num_levels=8, guidance=3.0, timesteps=(1000, 500)),
  "dmd": dict(guidance=3.0, timesteps=(1000, 500)),
}


def settings(stage: str) -> Any:
  """A stage's settings for the networks here."""
  config = tiny_project.config(stage, "wan_1p3b")
  config.data.update(num_frames=FRAMES, latent_shape=FRAME)
  config.window.update(chunk_frames=2, sink_frames=1, local_frames=3)
  config.diffusion.update(shift=5.0, **_DIFFUSION[stage])
  if stage == "dmd":
    config.rollout.update(num_frames=FRAMES)
  return table.read(config)[1]


def networks(seed: int) -> dict[str, Any]:
  """Random networks of all roles; the same in every process."""
  rng = np.random.default_rng(seed)

  def make(kind):
    return tiny_model.build(
      kind, rng, num_layers=2, ffn_width=256, text_dim=8, sizes=_SIZES
    )

  roles = dict(model="latent", ema="latent", teacher="latent")
  roles |= dict(dense="dense", real="dense", critic="dense")
  return {role: make(kind) for role, kind in roles.items()}


def batch(seed: int) -> dict[str, np.ndarray]:
  """Latents and text embeddings of the whole batch."""
  rng = np.random.default_rng(seed + 1)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  return dict(
    latents=normal(B, FRAMES, *FRAME),
    text=normal(B, *tiny_model.TEXT),
    negative=normal(*tiny_model.TEXT),
  )


def losses(
  nets: Any, batch: Any, key: Any, *, stages: Sequence[str]
) -> dict[str, Any]:
  """Loss and gradient of each of some stages."""
  frozen = dict(teacher=nets["teacher"])

  def regress(stage, model):
    read = settings(stage.__name__.split(".")[-1])

    def loss(model):
      arguments = regression.LossArguments(
        model, nets["ema"], frozen, batch, key
      )
      return stage.loss(arguments, read)[0]

    return jax.value_and_grad(loss)(model)

  zero = jnp.zeros((), jnp.int32)
  state = distribution_matching.DmdState(
    *(optim.TrainState(nets[n], None, None, zero, zero)
      for n in ("model", "critic"))
  )  # fmt: skip
  updates = dmd.updates(settings("dmd"))

  def student():
    (value, _), gradient = updates.student_gradients(
      state, batch, key, frozen=dict(real=nets["real"])
    )
    return value, gradient

  compute = {
    "pretraining": lambda: regress(pretraining, nets["dense"]),
    "teacher_forcing": lambda: regress(teacher_forcing, nets["model"]),
    "consistency": lambda: regress(consistency, nets["model"]),
    "student": student,
    "critic": lambda: updates.critic_gradients(state, batch, key),
  }
  return {stage: compute[stage]() for stage in stages}


def video(nets: Any, batch: Any) -> dict[str, Any]:
  """Latents of two chunks, the second of which reads the first."""
  window = window_lib.Window(chunk_frames=2, sink_frames=1, local_frames=3)
  cache = rollout.empty_cache(
    nets["model"], batch=B, frame=FRAME, window=window, max_frames=FRAMES
  )
  chunks = []
  for start in jnp.split(batch["latents"], 2, axis=1):
    x0, cache = chunk_pass.chunk_step(
      nets["model"],
      cache,
      sampling.Noise(start, start[None, :, ::-1]),
      batch["text"],
      window=window,
      sampler=sampling.few_step((1000, 500)),
    )
    chunks.append(x0)
  return {"rollout": jnp.concatenate(chunks, axis=1)}


def _local(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """This process's part of the batch."""
  share = B // jax.process_count()
  part = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
  return {n: x if n == "negative" else x[part] for n, x in batch.items()}


def run(
  output: str, seed: int, stages: Sequence[str], sizes: dict[str, int]
) -> None:
  """Computes losses, gradients and a video on one mesh and writes them."""
  count = int(np.prod([*sizes.values()])) if -1 not in sizes.values() else -1
  devices = jax.devices() if count in (-1, len(jax.devices())) else None
  mesh = sharding.make_mesh(
    **({"data": 1} | sizes), devices=devices or jax.devices()[:count]
  )
  nets = networks(seed)
  placed = jax.tree.map(
    lambda x, where: jax.make_array_from_callback(
      x.shape, where, lambda index, x=x: np.asarray(x)[index]
    ),
    nets,
    sharding.shardings(nets, mesh),
  )
  given = sharding.put_batch(_local(batch(seed)), mesh)
  # Gradients lie as their parameters: that is where they are used.
  scalar = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  where = sharding.shardings(nets, mesh)
  layout = {stage: (scalar, where[TRAINED[stage]]) for stage in stages}
  with jax.set_mesh(mesh):
    some = functools.partial(losses, stages=stages)
    jitted = jax.jit(some, out_shardings=layout)
    program = jitted.lower(placed, given, jax.random.key(seed)).compile()
    result = program(placed, given, jax.random.key(seed))
    result |= jax.jit(video)(placed, given)
  found = {
    f"{c.kind} {size}"
    for c in collectives.of(program.as_text())
    for size in c.sizes
  }
  if jax.process_count() > 1:
    result = multihost_utils.process_allgather(result, tiled=True)
  if jax.process_index() == 0:
    arrays = {
      name: np.asarray(x) for name, x in tree_names.flat_tree(result).items()
    }
    np.savez(pathlib.Path(output), collectives=sorted(found), **arrays)


if __name__ == "__main__":
  distributed.initialize()
  run(
    sys.argv[1],
    int(sys.argv[2]),
    [*TRAINED] if sys.argv[3] == "all" else sys.argv[3].split(","),
    {n: int(v) for n, v in (x.split("=") for x in sys.argv[4:])},
  )
