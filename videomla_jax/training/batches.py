"""Batches of a stage: where they come from and what they hold.

A source of data is a class of `settings.Data`; here are the checks, the shapes
and the loader of each one.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from videomla_jax.data import dataset
from videomla_jax.data import example_shape
from videomla_jax.data import reader
from videomla_jax.small_world import codecs
from videomla_jax.small_world import loader as loader_lib
from videomla_jax.small_world import moving_digits
from videomla_jax.small_world import stored_world
from videomla_jax.small_world import worlds
from videomla_jax.small_world.colour import latents
from videomla_jax.storage import train_states
from videomla_jax.training import settings as settings_lib


@runtime_checkable
class Batches(Protocol):
  """An iterator of batches whose position can be saved."""

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns this process's part of the next batch."""

  def get_state(self) -> train_states.IteratorState:
    """Returns the position, as plain values that can be saved."""

  def set_state(self, state: train_states.IteratorState) -> None:
    """Continues behind a position that was saved.

    Args:
      state: What `get_state` returned.
    """


def check(data: settings_lib.Data, *, clips: bool) -> None:
  """Refuses data that do not exist or do not fit.

  Args:
    data: Source of the data.
    clips: Whether the stage reads clips, or prompts alone.

  Raises:
    ValueError: With the way out.
  """
  if isinstance(data, settings_lib.SmallWorld):
    made = worlds.WORLDS[data.kind].latent_shape
    if data.latent_shape != made:
      raise ValueError(
        f"data.latent_shape={data.latent_shape} must be {made}, the shape of "
        "frames of the small world; set it back."
      )
  if isinstance(data, settings_lib.ColourWorld):
    vae = codecs.open_vae(data.vae)
    worlds.WORLDS[data.kind].check_vae(vae, name="data.vae")
  if isinstance(data, settings_lib.PreparedClips):
    example_shape.check(data.root, _shapes(data, clips=clips))
    if data.verify:  # Hours for a large data set, so it is asked for.
      dataset.verify(data.root, digests=True)


def abstract_prompts(
  data: settings_lib.Data, examples: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of the prompts of a step.

  Args:
    data: Source of the data.
    examples: Examples of a step, over all processes.
  """
  if not isinstance(data, settings_lib.PreparedClips):
    tokens = (examples, worlds.WORLDS[data.kind].num_tokens)
    return {"tokens": jax.ShapeDtypeStruct(tokens, jnp.int32)}
  text = data.text_shape
  return {
    "text": jax.ShapeDtypeStruct((examples, *text), jnp.bfloat16),
    "negative": jax.ShapeDtypeStruct(text, jnp.bfloat16),
  }


def loader(
  data: settings_lib.Data,
  split: str,
  *,
  batch_size: int,
  seed: int,
  clips: bool,
) -> Batches:
  """Opens this process's part of every batch.

  Args:
    data: Source of the data.
    split: "train", whose prompts are dropped at random, or "test".
    batch_size: Examples of a batch, over all processes.
    seed: Seed of order and dropout.
    clips: Whether to read clips, or prompts alone.
  """
  # Held-out prompts stay whole, so that every evaluation is of the same task.
  training = split == "train"
  if isinstance(data, settings_lib.PreparedClips):
    prepared = reader.make_loader(
      data.root,
      batch_size=batch_size,
      shapes=_shapes(data, clips=clips),
      seed=seed,
      prompt_dropout=data.prompt_dropout if training else 0.0,
      split=split,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    return iter(prepared)
  assert isinstance(data, settings_lib.SmallWorld)
  # Order and dropout follow from seed and position, so every process finds its
  # share of a batch by itself.
  made = loader_lib.make_loader(
    data.root,
    batch_size=batch_size,
    num_frames=data.num_frames,
    seed=seed,
    prompt_dropout=data.prompt_dropout if training else 0.0,
    word_dropout=data.word_dropout if training else 0.0,
    split=split,
    config=_stored(data),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  return iter(made if clips else made.map(_prompts_only))


def _stored(data: settings_lib.SmallWorld) -> stored_world.StoredWorldConfig:
  """Returns the data set of a small world.

  Args:
    data: Source of the data.
  """
  clips, frames = data.num_clips, data.clip_frames
  if isinstance(data, settings_lib.ColourWorld):
    return latents.LatentsConfig(
      num_clips=clips, num_frames=frames, vae=data.vae
    )
  return moving_digits.MovingDigitsConfig(num_clips=clips, num_frames=frames)


def _shapes(
  data: settings_lib.PreparedClips, *, clips: bool
) -> example_shape.ExampleShape:
  """Returns the shapes that prepared data must have.

  Args:
    data: Source of the data.
    clips: Whether the stage reads clips, or prompts alone.
  """
  clip = (data.num_frames, *data.latent_shape)
  return example_shape.ExampleShape(
    latents=clip if clips else None, text=data.text_shape
  )


def _prompts_only(example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns an example without its clip, which would travel for nothing."""
  return {"tokens": example["tokens"]}
