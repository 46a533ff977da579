"""What commands say of the attention that a network takes."""

import dataclasses

import jax
import pytest

from videomla_jax.costs import attention_choice
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import selection
from videomla_jax.ops.latent_attention import selection_check

SIZES = dict(rows=1, tokens=1560, window=window_lib.Window(), max_frames=81)


@pytest.mark.parametrize("kind", ["latent", "dense"])
@pytest.mark.parametrize("gradient", [False, True])
def test_a_cpu_takes_plain_xla_and_says_why(kind, gradient):
  config = wan_config.wan_1p3b(kind=kind)
  found = attention_choice.of(
    config, rows=1, tokens=1560, chunk_frames=3, gradient=gradient
  )
  why = "expanded form by xla_chunked (the device is a CPU)"
  assert found == dict(self_attention=why, text_attention=why)
  assert attention_choice.lines(found) == [
    f"attention: {why}",
    f"attention to the text: {why}",
  ]


@pytest.mark.parametrize("cache_dtype", [None, "float32", "int8"])
def test_a_rollout_on_hopper_follows_the_record(monkeypatch, cache_dtype):
  here = device.Device(kind="NVIDIA H100", platform="gpu", capability=9.0)
  monkeypatch.setattr(device, "current", lambda: here)
  monkeypatch.setattr(selection_check, "refusal", lambda *args: None)
  found = attention_choice.of_rollout(
    wan_config.wan_1p3b(), **SIZES, cache_dtype=cache_dtype
  )
  assert found == dict(
    self_attention=f"expanded form by cudnn (record {selection.H100})",
    text_attention="expanded form by cudnn (computed)",
  )


@pytest.mark.parametrize("kind", ["latent", "dense"])
def test_what_the_config_names_is_said(kind):
  config = wan_config.wan_1p3b(kind=kind)
  sizes = dataclasses.replace(config.attention, implementation="reference")
  config = dataclasses.replace(config, attention=sizes)
  found = attention_choice.of_rollout(config, **SIZES)
  said = "reference, form 'auto' (named in the config)"
  assert found["self_attention"] == said


@pytest.mark.parametrize(
  ("kind", "capability", "words"),
  [
    ("NVIDIA H100", 9.0, "in float8"),
    ("NVIDIA A100", 8.0, "widened to bfloat16 since NVIDIA A100 does not"),
  ],
)
def test_products_in_float8_are_said_to_be_multiplied_or_widened(
  monkeypatch, kind, capability, words
):
  here = device.Device(kind=kind, platform="gpu", capability=capability)
  monkeypatch.setattr(device, "current", lambda: here)
  monkeypatch.setattr(selection_check, "refusal", lambda *args: None)
  config = wan_config.wan_1p3b(products="float8_per_token")
  found = attention_choice.of_rollout(config, **SIZES)
  assert attention_choice.lines(found)[2].startswith(
    f"products: float8_per_token, {words}"
  )


def test_nothing_is_computed(monkeypatch):
  monkeypatch.setattr(jax, "jit", None)
  assert attention_choice.of_rollout(wan_config.wan_1p3b(), **SIZES)
