"""Batches of a stage: where they come from, and how many examples they hold."""

from typing import Any

import jax

from videomla_jax.data import moving_digits
from videomla_jax.data import pipeline

KINDS = ("moving_digits",)


def check(config: Any) -> None:
  """Refuses data that does not exist."""
  if config.data.kind not in KINDS:
    raise ValueError(
      f"data.kind={config.data.kind!r} is unknown; use one of {KINDS}."
    )


def examples_per_step(config: Any) -> int:
  """Examples that a step consumes: those of all its updates."""
  updates = 1
  if config.stage == "dmd":
    updates += config.optim.critic_updates
  return config.data.batch_size * updates


def loader(config: Any, split: str) -> Any:
  """This process's part of every batch; its iterator can be saved."""
  data, training = config.data, split == "train"
  made = pipeline.make_loader(
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


def _prompts_only(example: dict[str, Any]) -> dict[str, Any]:
  return {name: x for name, x in example.items() if name != "video"}
