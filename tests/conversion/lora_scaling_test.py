"""Tests of the strength that a LoRA has."""

import json
import math
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from videomla_jax.conversion import lora_scaling


def _write(folder: pathlib.Path, about: object) -> pathlib.Path:
  path = folder / "adapter_model.safetensors"
  safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, path)
  (folder / "adapter_config.json").write_text(json.dumps(about))
  return path


def test_nothing_said_is_a_factor_of_one(tmp_path) -> None:
  path = tmp_path / "lora.safetensors"
  safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, path)
  scaling = lora_scaling.read(path)
  assert scaling.of("blocks.0.ffn.0", 8, None) == 1
  assert scaling.of("blocks.0.ffn.0", 8, 2.0) == 0.25
  # The description of another file of the folder does not count.
  (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 64}')
  assert lora_scaling.read(path).of("blocks.0.ffn.0", 8, None) == 1


def test_peft_describes_its_adapter_beside_it(tmp_path) -> None:
  about = dict(
    peft_type="LORA", lora_alpha=16, alpha_pattern={"self_attn.q": 4}
  )
  scaling = lora_scaling.read(_write(tmp_path, about))
  assert scaling.of("base_model.model.blocks.0.ffn.0", 8, None) == 2
  assert scaling.of("base_model.model.blocks.0.self_attn.q", 8, None) == 0.5
  stable = about | dict(use_rslora=True)
  scaling = lora_scaling.read(_write(tmp_path, stable))
  assert scaling.of("blocks.0.ffn.0", 8, None) == 16 / math.sqrt(8)


def test_diffusers_describes_it_in_the_header(tmp_path) -> None:
  path = tmp_path / "pytorch_lora_weights.safetensors"
  about = {"transformer.lora_alpha": 32, "transformer.r": 8}
  safetensors.numpy.save_file(
    {"x": np.zeros(1, np.float32)},
    path,
    metadata={"lora_adapter_metadata": json.dumps(about)},
  )
  assert lora_scaling.read(path).of("blocks.0.attn1.to_q", 8, None) == 4


@pytest.mark.parametrize(
  ("about", "words"),
  [
    (dict(peft_type="LOHA"), "of the method LOHA"),
    (dict(use_dora=True), "of the method DoRA"),
    ([], "has JSON that is a list and no object"),
    (dict(lora_alpha="much"), "does not describe an adapter"),
    (dict(lora_alpha=math.nan), "does not describe an adapter"),
    (dict(alpha_pattern=3), "does not describe an adapter"),
    (dict(alpha_pattern=[3]), "does not describe an adapter"),
    (dict(lora_alpha=10**400), "does not describe an adapter"),
    (dict(alpha_pattern={".*q": 3}), "alpha_pattern that is no name"),
  ],
)
def test_other_descriptions_are_refused(about, words, tmp_path) -> None:
  path = _write(tmp_path, about)
  with pytest.raises(ValueError, match=words):
    lora_scaling.read(path)


def test_damaged_descriptions_are_named(tmp_path) -> None:
  path = _write(tmp_path, {})
  (tmp_path / "adapter_config.json").write_bytes(b"\xff{")
  with pytest.raises(ValueError, match=r"adapter_config\.json' is damaged"):
    lora_scaling.read(path)
