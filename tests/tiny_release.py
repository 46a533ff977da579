"""Checkpoints in the layouts of releases, with tiny random networks."""

import collections
import io
import json
import pathlib
import pickle
import sys
import types
from typing import Any
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from videomla_jax import convert
from videomla_jax.conversion.names import dit as dit_names
from videomla_jax.conversion.names import tensor_table
from videomla_jax.conversion.names import umt5 as umt5_names
from videomla_jax.conversion.names import vae as vae_names
from videomla_jax.models import tokenizer
from videomla_jax.models import umt5
from videomla_jax.models import vae_coders
from videomla_jax.models import wan_config

HEADS = 4
PROMPTS = ["a red fox runs through deep snow", "a cat on a sofa"]
Arrays = dict[str, np.ndarray]

DIT = wan_config.tiny(kind="dense")
VAE = vae_coders.tiny_vae(mean=(0.0,) * 4, std=(1.0,) * 4)
UMT5 = umt5.tiny_umt5(dtype="bfloat16", param_dtype="bfloat16")


def dit_table(config: wan_config.WanConfig = DIT) -> tensor_table.Table:
  return dit_names.table_of(config)


def draw(
  tensors: tensor_table.Table,
  rng: np.random.Generator,
  *,
  format_name: str = "original",
  dtype: Any = np.float32,
) -> Arrays:
  """Random tensors of a network under the names of a format."""
  arrays = {}
  for name, original in tensors.names(format_name).items():
    shape = tensors.tensors[original].shape
    normal = rng.standard_normal(shape)
    if len(shape) > 1:
      normal = normal / np.sqrt(np.prod(shape[1:]))
    if original.endswith("gamma") or "norm" in original.split(".")[-2]:
      normal = 1 + 0.2 * normal
    arrays[name] = normal.astype(dtype)
  return arrays


class _Storage:
  def __init__(self, array: np.ndarray, key: str):
    self.array, self.key = array, key


class _Tensor:
  def __init__(self, storage: _Storage, rebuild: Any):
    self.storage, self.rebuild = storage, rebuild

  def __reduce__(self):
    array = self.storage.array
    strides = tuple(s // array.itemsize for s in array.strides)
    hooks: Any = collections.OrderedDict()
    return self.rebuild, (self.storage, 0, array.shape, strides, False, hooks)


_STORAGE_NAMES = {
  np.dtype(np.float32): "FloatStorage",
  np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
  np.dtype(np.int64): "LongStorage",
}


def _fake_torch() -> dict[str, types.ModuleType]:
  """Modules whose names a pickle of tensors mentions."""
  torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

  def _rebuild_tensor_v2(*args):
    raise AssertionError("nothing is rebuilt here")

  _rebuild_tensor_v2.__module__ = "torch._utils"
  _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
  utils._rebuild_tensor_v2 = _rebuild_tensor_v2
  for name in _STORAGE_NAMES.values():
    setattr(torch, name, type(name, (), {"__module__": "torch"}))
  return {"torch": torch, "torch._utils": utils}


def write_pth(path: pathlib.Path, content: dict[str, Any]) -> None:
  """Writes what `torch.save` would, without PyTorch.

  Args:
    path: File to write.
    content: Arrays in (nested) dictionaries.
  """
  modules, storages = _fake_torch(), []
  rebuild = modules["torch._utils"]._rebuild_tensor_v2

  def convert(value):
    if isinstance(value, dict):
      pairs = ((k, convert(v)) for k, v in value.items())
      return collections.OrderedDict(pairs)
    if isinstance(value, np.ndarray):
      storages.append(_Storage(np.array(value, order="C"), str(len(storages))))
      return _Tensor(storages[-1], rebuild)
    return value

  class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
      if not isinstance(obj, _Storage):
        return None
      kind = getattr(modules["torch"], _STORAGE_NAMES[obj.array.dtype])
      return "storage", kind, obj.key, "cpu", obj.array.size

  with pytest.MonkeyPatch.context() as patch:
    for name, module in modules.items():
      patch.setitem(sys.modules, name, module)
    described = io.BytesIO()
    Pickler(described, protocol=2).dump(convert(content))
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", described.getvalue())
    archive.writestr("archive/byteorder", "little")
    for storage in storages:
      data = storage.array.reshape(-1).view(np.uint8).tobytes()
      archive.writestr(f"archive/data/{storage.key}", data)


def write_shards(folder: pathlib.Path, arrays: Arrays, count: int) -> None:
  """Writes shards and their index, as large releases come."""
  folder.mkdir(parents=True, exist_ok=True)
  names, where = [*arrays], {}
  for i in range(count):
    file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
    part = {n: arrays[n] for n in names[i::count]}
    safetensors_numpy.save_file(part, folder / file)
    where |= dict.fromkeys(part, file)
  index = dict(metadata={}, weight_map=where)
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  model = tokenizer.train_tokenizer(PROMPTS)._pieces
  path.write_bytes(model.serialized_model_proto())


def write_wan(folder: pathlib.Path, rng: np.random.Generator) -> None:
  """A release in Wan's own layout."""
  folder.mkdir(parents=True, exist_ok=True)
  safetensors_numpy.save_file(
    draw(dit_table(), rng),
    folder / "diffusion_pytorch_model.safetensors",
  )
  write_pth(folder / "Wan2.1_VAE.pth", draw(vae_names.table_of(VAE), rng))
  write_pth(
    folder / "models_t5_umt5-xxl-enc-bf16.pth",
    draw(umt5_names.table_of(UMT5), rng, dtype=ml_dtypes.bfloat16),
  )
  write_tokenizer(folder / "google" / "umt5-xxl" / tokenizer.FILE)


def write_diffusers(folder: pathlib.Path, rng: np.random.Generator) -> None:
  """A release in the layout of diffusers, two parts in shards."""
  other = dict(format_name="diffusers")
  write_shards(folder / "transformer", draw(dit_table(), rng, **other), 3)
  (folder / "vae").mkdir()
  safetensors_numpy.save_file(
    draw(vae_names.table_of(VAE), rng, **other),
    folder / "vae" / "diffusion_pytorch_model.safetensors",
  )
  text = draw(
    umt5_names.table_of(UMT5),
    rng,
    format_name="transformers",
    dtype=ml_dtypes.bfloat16,
  )
  text["encoder.embed_tokens.weight"] = text["shared.weight"]
  write_shards(folder / "text_encoder", text, 2)
  write_tokenizer(folder / "tokenizer" / tokenizer.FILE)


def options(**changes: Any) -> convert.Options:
  """Options of `convert` at their defaults, but for `changes`."""
  return convert.Options(**(dict(num_heads=HEADS) | changes))


def write_converted(folder: pathlib.Path, rng: np.random.Generator) -> None:
  """Writes FOLDER/wan, a converted dense release, and FOLDER/videomla."""
  write_wan(folder / "given", rng)
  for output, source, to in (
    ("wan", "given", "same"),
    ("videomla", "wan", "latent"),
  ):
    convert.convert(
      options(source=str(folder / source), output=str(folder / output), to=to)
    )
