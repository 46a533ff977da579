"""Tests of the table from PyTorch names to ours."""

import math

from flax import nnx
import numpy as np
import pytest

from videomla_jax.conversion.names import dit as names
from videomla_jax.models import attention
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

_CONFIG = wan_config.WanConfig(
  attention=attention.AttentionConfig(kind="dense", width=12, num_heads=2),
  num_layers=2,
  ffn_width=16,
  channels=3,
  freq_dim=4,
  text_dim=5,
  text_tokens=4,
  dtype="float32",
)


def _tensors(seed: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {
    name: rng.standard_normal(tensor.shape, np.float32)
    for name, tensor in names.table_of(_CONFIG).tensors.items()
  }


def _to_diffusers(name: str) -> str:
  """An independent list of the other names, docs/method.md, section 2.10."""
  if name == "head.modulation":
    return "scale_shift_table"
  for ours, theirs in (
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.head", "proj_out"),
    ("modulation", "scale_shift_table"),
    ("attn.q.", "attn.to_q."),
    ("attn.k.", "attn.to_k."),
    ("attn.v.", "attn.to_v."),
    ("attn.o.", "attn.to_out.0."),
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
  ):
    name = name.replace(ours, theirs)
  return name


def _leaves(model: wan.WanDiT) -> dict[str, np.ndarray]:
  return tree_names.flat_dict(model_folder.model_arrays(model))


@pytest.mark.parametrize(
  ("size", "count", "parameters"),
  [("wan_1p3b", 825, 1_418_996_800), ("wan_14b", 1095, 14_288_491_584)],
)
def test_table_counts_the_published_network(size, count, parameters) -> None:
  tensors = names.table_of(wan_config.SIZES[size](kind="dense")).tensors
  assert len(tensors) == count
  assert sum(math.prod(t.shape) for t in tensors.values()) == parameters


@pytest.mark.parametrize("kind", ["dense", "latent"])
@pytest.mark.parametrize("size", ["wan_1p3b", "wan_14b"])
def test_table_fills_every_parameter_once(size: str, kind: str) -> None:
  config = wan_config.SIZES[size](kind=kind)
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  wanted = {path: leaf.shape for path, leaf in _leaves(model).items()}
  tensors = names.table_of(config)
  assert tensors.our_shapes() == wanted
  places = [(t.path, t.block) for t in tensors.tensors.values()]
  assert len(set(places)) == len(places)


@pytest.mark.parametrize("format_name", ["original", "diffusers"])
def test_writing_inverts_reading_bit_for_bit(format_name, seed: int) -> None:
  tensors, names_of = _tensors(seed), names.table_of(_CONFIG)
  written = names_of.write(names_of.read(tensors), format_name=format_name)
  originals = names_of.names(format_name)
  assert {originals[name] for name in written} == tensors.keys()
  for name, x in written.items():
    np.testing.assert_array_equal(x, tensors[originals[name]])


def test_linear_weights_are_transposed_into_their_block(seed: int) -> None:
  tensors = _tensors(seed)
  model = names.load_dense(_CONFIG, tensors)
  kernel = model.blocks.ffn.into.kernel[...]
  for n in range(_CONFIG.num_layers):
    np.testing.assert_array_equal(
      kernel[n], tensors[f"blocks.{n}.ffn.0.weight"].T
    )


@pytest.mark.parametrize(
  "rename",
  [
    lambda n: f"model.{n}",
    lambda n: f"model._fsdp_wrapped_module.{n}",
    _to_diffusers,
  ],
  ids=["training", "sharded_training", "diffusers"],
)
def test_other_names_load_the_same_network(rename, seed: int) -> None:
  tensors = _tensors(seed)
  renamed = {rename(k): x for k, x in tensors.items()}
  assert len(renamed) == len(tensors)
  assert renamed.keys() != tensors.keys()
  a, b = (_leaves(names.load_dense(_CONFIG, t)) for t in (tensors, renamed))
  for path in a:
    np.testing.assert_array_equal(a[path], b[path])


def test_all_kinds_of_wrong_names_are_told_together(seed: int) -> None:
  tensors = _tensors(seed)
  missing = [k for k in tensors if k.startswith("blocks.1.cross_attn")]
  for name in missing:
    del tensors[name]
  tensors["blocks.0.norm2.weight"] = tensors["blocks.7.ffn.0.bias"] = np.ones(3)
  tensors["head.modulation"] = np.ones((1, 2, 5))
  with pytest.raises(ValueError) as info:
    names.load_dense(_CONFIG, tensors)
  message = str(info.value)
  assert "2 unmatched: blocks.0.norm2.weight, blocks.7.ffn.0.bias;" in message
  assert f"{len(missing)} missing: {sorted(missing)[0]}, " in message
  assert f" and {len(missing) - 3} more" in message
  assert "1 mis-shaped: head.modulation (1, 2, 5) not (1, 2, 12)" in message
  assert len(message) < 500


def test_affine_norm_of_the_wrong_name_is_unmatched(seed: int) -> None:
  renamed = {_to_diffusers(k): x for k, x in _tensors(seed).items()}
  renamed["blocks.0.norm3.weight"] = renamed.pop("blocks.0.norm2.weight")
  with pytest.raises(ValueError, match=r"unmatched.*missing: blocks\.0\.norm3"):
    names.load_dense(_CONFIG, renamed)


def test_two_networks_in_one_file_are_refused(seed: int) -> None:
  tensors = _tensors(seed)
  both = tensors | {f"model.{k}": x for k, x in tensors.items()}
  with pytest.raises(ValueError, match=r"unmatched: model\.blocks"):
    names.load_dense(_CONFIG, both)


@pytest.mark.parametrize("size", ["small", "wan_1p3b"])
def test_other_architectures_are_refused(size: str) -> None:
  kind = "dense" if size == "small" else "latent"
  with pytest.raises(ValueError, match="learned_grid|attention.kind"):
    names.load_dense(wan_config.SIZES[size](kind=kind), {})
