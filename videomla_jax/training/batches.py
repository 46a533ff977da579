"""Batches of a stage: where they come from, and how many examples they hold."""

from typing import Any

import jax
import jax.numpy as jnp

from videomla_jax.data import dataset
from videomla_jax.data import reader
from videomla_jax.small_world import loader as loader_lib
from videomla_jax.small_world import moving_digits
from videomla_jax.small_world import prompts
from videomla_jax.training import long_tuning

KINDS = ("moving_digits", "latents")


def check(config: Any) -> None:
  """Refuses data that do not exist or do not fit.

  Raises:
    ValueError: With the way out.
  """
  data = config.data
  if data.kind not in KINDS:
    raise ValueError(f"data.kind={data.kind!r} is unknown; use one of {KINDS}.")
  if data.kind == "latents":
    reader.check(data.root, _shapes(config))
    if data.verify:
      dataset.verify(data.root, digests=True)


def examples_per_step(config: Any) -> int:
  """Examples that a step consumes: those of all its updates."""
  updates = 1
  if config.stage == "dmd" and not long_tuning.is_on(config):
    updates += config.optim.critic_updates
  return config.data.batch_size * updates


def abstract_prompts(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the prompts of a step, over all processes."""
  size = examples_per_step(config)
  if config.data.kind == "moving_digits":
    tokens = (size, prompts.NUM_TOKENS)
    return {"tokens": jax.ShapeDtypeStruct(tokens, jnp.int32)}
  text = tuple(config.data.text_shape)
  return {
    "text": jax.ShapeDtypeStruct((size, *text), jnp.bfloat16),
    "negative": jax.ShapeDtypeStruct(text, jnp.bfloat16),
  }


def loader(config: Any, split: str) -> Any:
  """This process's part of every batch; its iterator can be saved."""
  if config.data.kind == "latents":
    return _prepared(config, split)
  data, training = config.data, split == "train"
  made = loader_lib.make_loader(
    data.root,
    batch_size=examples_per_step(config) if training else data.batch_size,
    num_frames=data.num_frames,
    seed=config.seed,
    prompt_dropout=data.prompt_dropout if training else 0.0,
    word_dropout=data.word_dropout if training else 0.0,
    split=split,
    config=moving_digits.MovingDigitsConfig(
      num_clips=data.num_clips, num_frames=data.clip_frames
    ),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  # Rollouts start from noise, so only prompts are read.
  return made.map(_prompts_only) if config.stage == "dmd" else made


def _prepared(config: Any, split: str) -> Any:
  data, training = config.data, split == "train"
  return reader.make_loader(
    data.root,
    batch_size=examples_per_step(config) if training else data.batch_size,
    shapes=_shapes(config),
    seed=config.seed,
    prompt_dropout=data.prompt_dropout if training else 0.0,
    split=split,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def _shapes(config: Any) -> reader.ExampleShape:
  data = config.data
  clip = (data.num_frames, *data.latent_shape)
  return reader.ExampleShape(
    latents=None if config.stage == "dmd" else clip, text=(*data.text_shape,)
  )


def _prompts_only(example: dict[str, Any]) -> dict[str, Any]:
  return {name: x for name, x in example.items() if name != "video"}
