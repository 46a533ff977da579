"""Damaged LoRAs, and damaged descriptions beside them."""

import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors_numpy

from tests import checkpoint_fuzz
from tests import mutations
from tests import tiny_lora
from tests import tiny_release
from tests.storage import fuzz_safetensors
from videomla_jax.conversion import lora
from videomla_jax.conversion import lora_files
from videomla_jax.conversion.names import detect
from videomla_jax.storage import lazy_tensor


def _seeds(
  folder: pathlib.Path, rng: np.random.Generator
) -> list[mutations.Seed]:
  seeds = []
  for name in ("kohya", "peft"):
    path = folder / name
    path.mkdir()
    tensors, _ = tiny_lora.draw(rng, name, layers=tiny_lora.LAYERS[:2])
    about = {"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"q": 3}}
    metadata = {"lora_adapter_metadata": json.dumps(about)}
    file = path / "lora.safetensors"
    if name == "peft":
      file = path / "adapter_model.safetensors"
      described = path / "adapter_config.json"
      described.write_text(json.dumps(dict(peft_type="LORA", lora_alpha=4)))
      seeds.append(mutations.Seed(path, described))
    safetensors_numpy.save_file(tensors, file, metadata=metadata)
    seeds.append(mutations.Seed(file, file))
  return seeds


def _mutate(data: bytes, rng: np.random.Generator) -> bytes:
  if data.startswith(b"{"):
    return mutations.mutated(data, rng)
  return fuzz_safetensors.READER.mutate(data, rng)


def _read(path: pathlib.Path) -> None:
  network = detect.network_of(tiny_release.DIT)
  tensors = {}
  for name, tensor in network.table.tensors.items():
    zeros = np.zeros(tensor.shape, np.float32)
    tensors[name] = lazy_tensor.LazyTensor(
      zeros.shape, zeros.dtype, lambda zeros=zeros: zeros
    )
  loras = lora_files.parse(str(path), "1.0", strict=True)
  with lora.merged(network, tensors, loras, dtype="source") as merged:
    checkpoint_fuzz.read_all(merged.tensors)


READER = checkpoint_fuzz.reader(_seeds, _mutate, _read)
