"""Tests of names that training code has wrapped."""

import numpy as np
import pytest

from tests import tiny_release
from videomla_jax.conversion.names import detect
from videomla_jax.conversion.names import umt5 as umt5_names
from videomla_jax.conversion.names import vae as vae_names

_TABLES = {
  "dit": tiny_release.dit_table(),
  "vae": vae_names.table_of(tiny_release.VAE),
  "umt5": umt5_names.table_of(tiny_release.UMT5),
}
_PREFIXES = (
  "module.",
  "model.",
  "model.diffusion_model.",
  "diffusion_model.",
  "_orig_mod.",
  "net.0.a_trainer_of_2031.",
)
_INSIDE = (
  "_checkpoint_wrapped_module",
  "_fsdp_wrapped_module",
  "_orig_mod",
  "module",
)


def _shapes(table, rename) -> dict[str, tuple[int, ...]]:
  return {rename(n): t.shape for n, t in table.tensors.items()}


@pytest.mark.parametrize("network", _TABLES)
@pytest.mark.parametrize(
  "prefix", [*_PREFIXES, "".join(_PREFIXES), "".join(_PREFIXES[::-1])]
)
def test_every_prefix_is_taken_off(network: str, prefix: str) -> None:
  table = _TABLES[network]
  shapes = _shapes(table, lambda n: prefix + n)
  found = detect.detect(shapes, num_heads=tiny_release.HEADS)
  names = found.table.originals(shapes)
  assert names == {prefix + n: n for n in table.tensors}


def test_wrappers_of_single_layers_are_taken_off(seed: int) -> None:
  rng = np.random.default_rng(seed)
  wrapper = {}  # a module is wrapped once, with all that is in it

  def rename(name: str) -> str:
    parts = name.split(".")
    result = []
    for i, part in enumerate(parts[:-1]):
      result.append(part)
      path = ".".join(parts[: i + 1])
      if path not in wrapper:
        count = int(rng.integers(3))
        wrapper[path] = [_INSIDE[rng.integers(len(_INSIDE))]] * count
      result += wrapper[path]
    return ".".join(["model", *result, parts[-1]])

  table = _TABLES["dit"]
  shapes = _shapes(table, rename)
  assert len(shapes) == len(table.tensors)
  assert shapes.keys() != table.tensors.keys()
  found = detect.detect(shapes, num_heads=tiny_release.HEADS)
  names = found.table.originals(shapes)
  assert names == {rename(n): n for n in table.tensors}


@pytest.mark.parametrize("extra", ["delta", "lora_A", "base_layer"])
def test_a_module_beside_others_is_no_wrapper(extra: str) -> None:
  table = _TABLES["dit"]
  shapes = _shapes(table, lambda n: n)
  shape = shapes.pop("blocks.0.self_attn.q.weight")
  shapes[f"blocks.0.self_attn.q.{extra}.weight"] = shape
  with pytest.raises(ValueError, match=f"unmatched: .*{extra}.*1 missing"):
    table.originals(shapes)
