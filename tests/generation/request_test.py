"""Tests of requests: the config's door, its defaults, and mistakes."""

import dataclasses
from typing import Any

import pytest

from tests import tiny_project
from videomla_jax import sample
from videomla_jax.diffusion import sampling
from videomla_jax.generation import request as request_lib
from videomla_jax.generation import sampler_choice


def _values(**changes: Any) -> dict[str, Any]:
  return dict(checkpoint="somewhere", prompts="a; b") | changes


def test_defaults_are_the_values_of_the_config() -> None:
  config = tiny_project.config("sample", "latent")
  given = dict(checkpoint=config.checkpoint, prompts=config.prompts)
  assert request_lib.Request.from_config(
    config
  ) == request_lib.Request.from_config(given)


@pytest.mark.parametrize("variant", ["demo", "wan_1p3b", "wan_tiny"])
def test_every_key_of_the_config_reaches_a_field(variant: str) -> None:
  config = tiny_project.config("sample", variant)
  request = request_lib.Request.from_config(config)
  fields = dataclasses.asdict(request)
  fields |= fields.pop("networks")
  plain = config.to_dict()
  assert fields.pop("prompts") == tuple(
    p.strip() for p in plain.pop("prompts").split(";")
  )
  assert fields == plain


def test_seed_of_noise_is_not_that_of_random_weights() -> None:
  values = _values(seed=5, weights_seed=7)
  request = request_lib.Request.from_config(values)
  assert (request.seed, request.networks.weights_seed) == (5, 7)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(second=1.0), "second is unknown"),
    (dict(sampler=dict(steps=3)), "sampler.steps is unknown"),
    (dict(window=dict(local_frames=2)), "chunk_frames=3"),
    (dict(mode="acausal"), "'causal', 'bidirectional'"),
    (dict(cache_dtype="int4"), "cache_dtype='int4' is unknown"),
    (dict(image="a.png", clip="a.mp4"), "choose one"),
    (dict(mode="bidirectional", clip="a.mp4"), "takes no first frames"),
    (dict(output=dict(scale=0)), "output.scale=0"),
    (dict(output=dict(name="../x")), "output.name='../x' must be a name"),
    (dict(output=dict(name="/tmp/x")), "must be a name without folders"),
    (dict(prompts=()), "prompts is empty"),
    (dict(prompts=("7",) * 1001), "1001 texts.* at most 1000 at a time"),
  ],
)
def test_mistakes_end_at_the_door(changes: dict[str, Any], said: str) -> None:
  with pytest.raises(ValueError, match=said):
    request_lib.Request.from_config(_values(**changes))


def test_missing_prompts_end_at_the_door_of_the_command() -> None:
  with pytest.raises(ValueError, match="prompts is missing"):
    sample.sample(dict(checkpoint="shipped:small_student"))


@pytest.mark.parametrize(
  ("choice", "distilled", "sampler"),
  [
    (dict(), True, sampling.few_step(shift=2.0)),
    (dict(), False, sampling.euler(10, shift=2.0, guidance=3.0)),
    (dict(kind="few_step"), False, sampling.few_step(shift=2.0)),
    (
      dict(kind="unipc", num_steps=4, guidance=0, shift=7.0),
      True,
      sampling.unipc(4, shift=7.0, guidance=None),
    ),
  ],
)
def test_model_settles_what_the_user_leaves_open(
  choice: dict[str, Any], distilled: bool, sampler: sampling.Sampler
) -> None:
  made = sampler_choice.SamplerChoice(**choice)
  assert made.resolve(shift=2.0, distilled=distilled) == sampler


def test_unknown_sampler_is_refused() -> None:
  choice = sampler_choice.SamplerChoice(kind="ddim")
  with pytest.raises(ValueError, match="'euler', 'unipc', 'few_step'"):
    choice.resolve(shift=1.0, distilled=True)


def test_frames_are_counted_to_the_nearest() -> None:
  assert request_lib.count_frames(81 / 16, 16) == 81
  assert request_lib.count_frames(0.15, 4) == 1
  with pytest.raises(ValueError, match="less than one frame"):
    request_lib.count_frames(0.1, 4)
  for seconds in (float("inf"), float("nan")):
    with pytest.raises(ValueError, match="must be finite"):
      request_lib.count_frames(seconds, 4)
