"""Trains a model: data, model, state, step, loop, in this order.

  python -m videomla_jax.train --config=configs/teacher_forcing.py:latent \
    --workdir=runs/latent

Stopping and starting the same command continues where it stopped, exactly:
parameters, EMA, optimiser, data order and noise are those of a run that never
stopped. The EMA model is written to WORKDIR/model.
"""

import functools
import json
import pathlib
import sys
import time
from typing import Any, NamedTuple

from absl import logging
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree
import optax

from videomla_jax import checkpoint
from videomla_jax import cli
from videomla_jax import metrics
from videomla_jax import video
from videomla_jax.data import moving_digits
from videomla_jax.data import pipeline
from videomla_jax.data import prompts
from videomla_jax.diffusion import flow
from videomla_jax.diffusion import teacher_forcing
from videomla_jax.models import cache
from videomla_jax.models import video_model


class TrainState(NamedTuple):
  """Everything that a step changes; a key is derived from `step`."""

  model: video_model.VideoModel
  ema: PyTree
  optimiser: PyTree
  step: Array


def make_optimiser(
  config: Any,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """AdamW with warm-up, cosine decay and clipping by global norm."""
  schedule = optax.warmup_cosine_decay_schedule(
    0.0,
    config.learning_rate,
    config.warmup_steps,
    config.steps,
    config.learning_rate * config.final_fraction,
  )
  optimiser = optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      schedule,
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
    ),
  )
  return optimiser, schedule


def update_ema(ema: PyTree, model: PyTree, step: Array, decay: float) -> PyTree:
  """Moves the average towards the model; young averages move faster."""
  rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda a, b: rate * a + (1 - rate) * b, ema, model)


def loss_of_batch(
  model: video_model.VideoModel,
  batch: dict[str, Array],
  key: Array,
  *,
  config: Any,
  first_chunk: int | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, "B T"]]:
  """Teacher-forcing loss of clips at random noise levels."""
  window = cache.Window(**config.window)
  clean = model.codec.encode(batch["video"])
  key_noise, key_sigma = jax.random.split(key)
  sigma = teacher_forcing.sample_sigma(
    key_sigma,
    batch=clean.shape[0],
    chunks=clean.shape[1] // window.chunk_frames,
    chunk_frames=window.chunk_frames,
    s=config.diffusion.shift,
  )
  weight = {
    "none": None,
    "bell": flow.training_weight(sigma, s=config.diffusion.shift),
  }[config.diffusion.loss_weight]
  return teacher_forcing.loss(
    model.dit,
    clean,
    jax.random.normal(key_noise, clean.shape, jnp.float32),
    sigma,
    model.encode_text(batch["tokens"]),
    window=window,
    first_chunk=first_chunk,
    weight=weight,
  )


def train_step(
  state: TrainState,
  batch: dict[str, Array],
  key: Array,
  *,
  config: Any,
  first_chunk: int | None,
) -> tuple[TrainState, dict[str, Array]]:
  """One update: `(state, batch, key) -> (state, metrics)`."""
  optimiser, schedule = make_optimiser(config.optim)
  loss_function = functools.partial(
    loss_of_batch, config=config, first_chunk=first_chunk
  )
  (loss, per_frame), gradient = jax.value_and_grad(loss_function, has_aux=True)(
    state.model, batch, jax.random.fold_in(key, state.step)
  )
  updates, opt_state = optimiser.update(gradient, state.optimiser, state.model)
  model = optax.apply_updates(state.model, updates)
  ema = update_ema(state.ema, model, state.step, config.optim.ema_decay)
  chunk = config.window.chunk_frames
  scalars = {
    "train/loss": loss,
    "train/loss_first_chunk": per_frame[:, :chunk].mean(),
    "train/loss_later_chunks": per_frame[:, chunk:].mean(),
    "train/grad_norm": optax.global_norm(gradient),
    "train/learning_rate": schedule(state.step),
  }
  return TrainState(model, ema, opt_state, state.step + 1), scalars


def make_model_config(config: Any) -> video_model.VideoModelConfig:
  """The model of a training config, on frames of the small world."""
  world = moving_digits.World()
  # A codec block of the small model is 4 pixels.
  latent = world.frame_size // 4
  return video_model.VideoModelConfig(
    size=config.model.size,
    kind=config.model.kind,
    d_c=config.model.d_c or None,
    vocabulary=prompts.vocabulary_size(),
    latent_height=latent,
    latent_width=latent,
    fps=float(world.fps),
    shift=config.diffusion.shift,
    window=cache.Window(**config.window),
  )


def init_state(config: Any) -> TrainState:
  """A fresh model, its EMA copy and optimiser state."""
  model_config = make_model_config(config)
  model = video_model.VideoModel(model_config, rngs=nnx.Rngs(config.seed))
  optimiser, _ = make_optimiser(config.optim)
  return TrainState(
    model,
    jax.tree.map(jnp.copy, model),
    optimiser.init(model),
    jnp.zeros((), jnp.int32),
  )


def check_config(config: Any) -> None:
  """Refuses what cannot be trained, before anything is built or compiled."""
  window = cache.Window(**config.window)
  teacher_forcing.plan(config.data.num_frames, window=window)
  make_model_config(config).network  # noqa: B018  Refuses sizes and kinds.
  for name in ("log", "eval", "checkpoint"):
    if config[name].every < 1:
      raise ValueError(
        f"{name}.every={config[name].every} must be at least 1; for never, "
        "use more than optim.steps."
      )
  if config.diffusion.loss_weight not in ("none", "bell"):
    raise ValueError(
      f"diffusion.loss_weight={config.diffusion.loss_weight!r} is unknown; "
      "use 'none' or 'bell'."
    )
  if config.optim.steps <= config.optim.warmup_steps:
    raise ValueError(
      f"optim.steps={config.optim.steps} must exceed "
      f"warmup_steps={config.optim.warmup_steps}; train longer."
    )


def _loader(config: Any, split: str):
  data = config.data
  return pipeline.make_loader(
    data.root,
    batch_size=data.batch_size,
    num_frames=data.num_frames,
    seed=config.seed,
    prompt_dropout=data.prompt_dropout if split == "train" else 0.0,
    word_dropout=data.word_dropout if split == "train" else 0.0,
    split=split,
    config=moving_digits.MovingDigitsConfig(
      num_clips=data.num_clips, num_frames=data.clip_frames
    ),
  )


def _make_evaluate(config: Any):
  """Loss of the EMA model on fixed held-out clips and noise."""
  batches = iter(_loader(config, "test"))
  held_out = [next(batches) for _ in range(config.eval.batches)]
  loss = jax.jit(functools.partial(loss_of_batch, config=config))

  def evaluate(ema) -> dict[str, float]:
    start = time.monotonic()
    losses = [
      float(loss(ema, batch, jax.random.key(i))[0])
      for i, batch in enumerate(held_out)
    ]
    return {
      "eval/loss": sum(losses) / len(losses),
      "perf/eval_seconds": time.monotonic() - start,
    }

  return evaluate


def _frozen(config: Any):
  """The config as an immutable argument of jit."""
  return type(config)(config).copy_and_resolve_references()


def train(config: Any, workdir: str) -> None:
  """Runs or continues one training run.

  Args:
    config: See configs/teacher_forcing.py.
    workdir: Folder of checkpoints, metrics and the finished model.

  Raises:
    ValueError: If the config or the folder cannot work.
  """
  check_config(config)
  root = pathlib.Path(workdir)
  video.check_output_folder(root)
  logging.info("config: %s", config.to_json())
  batches = iter(_loader(config, "train"))
  state = init_state(config)
  with checkpoint.TrainCheckpoints(
    root / "checkpoints",
    keep=config.checkpoint.keep,
    save_every=config.checkpoint.every,
  ) as checkpoints:
    restored = checkpoints.restore_latest(state)
    if restored is not None:
      state = restored.state
      batches.set_state(restored.iterator_state)
      logging.info("continuing after step %d", restored.step)
    state = _loop(config, root, state, batches, checkpoints)
  video_model.save(
    root / "model",
    state.ema,
    training=json.loads(config.to_json()),
    command=" ".join(["python", "-m", "videomla_jax.train", *sys.argv[1:]]),
    steps=int(state.step),
  )


def _loop(config, root, state, batches, checkpoints) -> TrainState:
  """Steps from the state's step to the last."""
  key = jax.random.key(config.seed)
  every = config.diffusion.first_frame_every

  @functools.cache
  def compiled(first_chunk):
    step = functools.partial(train_step, config=config, first_chunk=first_chunk)
    return jax.jit(step, donate_argnums=0)

  evaluate = _make_evaluate(config)
  start, total = int(state.step), config.optim.steps
  with (
    metrics.MetricWriter(root, resumed_step=start) as writer,
    metrics.Progress(total, "teacher forcing", initial=start) as progress,
  ):
    clock, since = time.monotonic(), start
    for done in range(start + 1, total + 1):
      given = 1 if every and done % every == 0 else None
      state, scalars = compiled(given)(state, next(batches), key)
      progress.update()
      saves = done % config.checkpoint.every == 0 or done == total
      if done % config.log.every == 0 or saves:  # a saved state is finite
        now = time.monotonic()
        values = {name: float(x) for name, x in scalars.items()}
        values["perf/step_seconds"] = (now - clock) / (done - since)
        clock, since = now, done
        writer.scalars(done, values)
        progress.update(0, loss=values["train/loss"])
        if not jnp.isfinite(values["train/loss"]):
          raise ValueError(
            f"train/loss is not finite at step {done}; lower "
            "optim.learning_rate, or continue from the last checkpoint."
          )
      if done % config.eval.every == 0 or done == total:
        writer.scalars(done, evaluate(state.ema))
      if saves:
        checkpoints.save(
          done, state, batches.get_state(), json.loads(config.to_json())
        )
  return state


if __name__ == "__main__":
  cli.run(train, workdir=True)
