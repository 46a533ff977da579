"""What a trained model of the small world is worth: loss, ranks, videos."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32
import numpy as np

from videomla_jax.ablations import plan
from videomla_jax.ablations import real_clips
from videomla_jax.ablations import trainer as trainer_lib
from videomla_jax.analysis import operators
from videomla_jax.conversion import low_rank
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import window as window_lib
from videomla_jax.small_world import codecs
from videomla_jax.small_world import judge_network
from videomla_jax.small_world import measures as measures_lib
from videomla_jax.small_world import model as model_lib
from videomla_jax.small_world import prompts as prompts_lib
from videomla_jax.training import inputs
from videomla_jax.training import rank_metrics
from videomla_jax.training import settings as settings_lib
from videomla_jax.training.stages import stage as stage_lib

Measured = dict[str, float]
Model = model_lib.VideoModel

# Of the judge's measures, which of them a table shows is its own affair.
MEASURES = (
  *("identity", "identity_whole", "consistency", "count", "direction"),
  *("speed_ratio", "steps", "on_path", "ink"),
)
_GUIDANCE = 3.0
_HELD_OUT_KEY = 0  # the same clips and noise for every model


@functools.partial(jax.jit, static_argnames=("trainer", "batches"))
def held_out_loss(
  model: Model,
  films: real_clips.Films | None = None,
  *,
  trainer: trainer_lib.Trainer,
  batches: int,
) -> Float32[Array, ""]:
  """Returns the loss on clips that training did not show.

  Handwriting, prompts, clips and noise are the same for every model.

  Args:
    model: A trained model.
    films: Films that it was trained on; None stands for moving digits.
    trainer: Knows the stage, which has such a loss, and its settings.
    batches: Batches of `data.batch_size` clips.
  """
  assert trainer.stage.held_out_loss is not None
  loss = trainer.stage.held_out_loss(trainer.settings)

  def one(key: Array) -> Array:
    key_clips, key_loss = jax.random.split(key)
    batch = trainer.batch(key_clips, films, split="test")
    return loss(model, batch, key_loss, frozen={})

  keys = jax.random.split(jax.random.key(_HELD_OUT_KEY), batches)
  return jax.lax.map(one, keys).mean()


def ranks(model: inputs.Network) -> Measured:
  """Returns the 99 % rank of keys and values, a mean over layers.

  The largest and the smallest of a layer, the highest rank that there could be,
  and the entropy rank stand beside it. The last one moves where the first
  stands still: it is exp(-sum p log p) of the shares p of the energy.

  Args:
    model: A network with attention.
  """
  stacked = {
    name: np.asarray(x) for name, x in rank_metrics.weights(model).items()
  }
  found, entropies, highest = [], [], 1
  for n in range(len(next(iter(stacked.values())))):
    operator = operators.operator_of({k: x[n] for k, x in stacked.items()})
    spectrum = operator.spectrum()
    found.append(low_rank.effective_rank(spectrum))
    entropies.append(_entropy_rank(spectrum))
    highest = operator.size
  return dict(
    rank=float(np.mean(found)),
    rank_least=float(min(found)),
    rank_most=float(max(found)),
    rank_highest=float(highest),
    rank_entropy=round(float(np.mean(entropies)), 4),
  )


def _entropy_rank(spectrum: operators.Spectrum) -> float:
  share = np.square(spectrum) / np.square(spectrum).sum()
  share = share[share > 0]
  return float(np.exp(-(share * np.log(share)).sum()))


def roll_out(
  model: Model,
  prompts: Sequence[prompts_lib.Prompt],
  *,
  seed: int,
  num_frames: int,
  sampler: sampling.Sampler,
  window: window_lib.Window,
  cache_dtype: str = "",
) -> Float[np.ndarray, "V T 24 24 1"]:
  """Generates a video for each prompt, in [0, 1].

  Args:
    model: A trained model.
    prompts: One for each video.
    seed: Seed of the noise.
    num_frames: Frames of every video.
    sampler: How chunks are denoised.
    window: Which frames the cache keeps.
    cache_dtype: Dtype of the stored entries; empty is the model's own.
  """
  tokens = prompts_lib.tokenize_batch([p.text() for p in prompts])
  text = model.encode_text(jnp.asarray(tokens))
  if sampler.guidance is not None:
    text = jnp.concatenate([text, jnp.zeros_like(text)])  # padding alone
  latents = rollout.generate(
    model.dit,
    text,
    jax.random.key(seed),
    frame=model.latent_shape(),
    num_frames=num_frames,
    window=window,
    sampler=sampler,
    cache_dtype=cache_dtype or None,
  )
  return np.asarray(codecs.PixelCodec().decode(latents))


def judged(
  videos: Float[np.ndarray, "V T 24 24 1"],
  prompts: Sequence[prompts_lib.Prompt],
  judge: judge_network.Judge,
) -> Measured:
  """Returns the judge's measures, each a mean over whole videos.

  Args:
    videos: Generated videos in [0, 1].
    prompts: What each of them should show.
    judge: A trained judge.
  """
  values = measures_lib.measure(videos, prompts, judge)
  return {n: round(float(values[f"{n}/all"].mean()), 6) for n in MEASURES}


def sampler_of_training(
  stage: stage_lib.Stage, settings: settings_lib.Training
) -> sampling.Sampler:
  """Returns how models of a stage are judged: a student by its own few steps.

  Args:
    stage: The stage that was the last.
    settings: Its settings.
  """
  if stage.distilled:
    return stage.sampler(settings)
  return sampling.euler(10, shift=settings.diffusion.shift, guidance=_GUIDANCE)


def sampler_of(row: plan.Rollout, model: Model) -> sampling.Sampler:
  """Returns the sampler of a rollout of a model that is trained already.

  Args:
    row: How to roll out.
    model: The model.
  """
  shift = model.config.shift
  if row.model == "student":
    n = row.num_steps
    steps = tuple(1000 * (n - i) / n for i in range(n))
    sampler = sampling.few_step(steps, shift=shift)
  else:
    sampler = sampling.euler(row.num_steps, shift=shift, guidance=_GUIDANCE)
  return dataclasses.replace(sampler, commit=row.commit)
