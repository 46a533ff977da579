"""Tests of the table from PyTorch names to ours."""

import math

from flax import nnx
import numpy as np
import pytest

from videomla_jax import checkpoint
from videomla_jax import tree_names
from videomla_jax.models import attention
from videomla_jax.models import names
from videomla_jax.models import wan

_CONFIG = wan.WanConfig(
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
  shapes = names.expected_shapes(_CONFIG)
  return {k: rng.standard_normal(s, np.float32) for k, s in shapes.items()}


def _to_diffusers(name: str) -> str:
  """An independent list of the other names, spec/wan.md A7."""
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
  return tree_names.flat_dict(checkpoint.model_arrays(model))


def test_expected_shapes_count_the_published_network() -> None:
  shapes = names.expected_shapes(wan.wan_1p3b(kind="dense"))
  assert len(shapes) == 825
  assert sum(map(math.prod, shapes.values())) == 1_418_996_800


@pytest.mark.parametrize("size", ["wan_1p3b", "wan_14b"])
def test_table_fills_every_parameter_once(size: str) -> None:
  config = wan.SIZES[size](kind="dense")
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  wanted = {}
  for path, leaf in _leaves(model).items():
    stacked = path.startswith("blocks/")
    for n in range(config.num_layers) if stacked else [None]:
      wanted[path, n] = leaf.shape[1:] if stacked else leaf.shape
  filled = {}
  for name, shape in names.expected_shapes(config).items():
    place = names.target(name)
    assert (place.path, place.block) not in filled, name
    # A broadcast scalar has the shape and no memory.
    tensor = np.broadcast_to(np.float32(0), shape)
    filled[place.path, place.block] = place.transform(tensor).shape
  assert filled == wanted


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
  assert names.to_wan_names(renamed).keys() == tensors.keys()
  a, b = (_leaves(names.load_dense(_CONFIG, t)) for t in (tensors, renamed))
  for path in a:
    np.testing.assert_array_equal(a[path], b[path])


def test_all_wrong_names_are_listed_together(seed: int) -> None:
  tensors = _tensors(seed)
  missing = [k for k in tensors if k.startswith("blocks.1.cross_attn")]
  for name in missing:
    del tensors[name]
  tensors["blocks.0.norm2.weight"] = tensors["blocks.7.ffn.0.bias"] = np.ones(3)
  tensors["head.modulation"] = np.ones((1, 2, 5))
  with pytest.raises(
    ValueError, match="unmatched.*missing.*mis-shaped"
  ) as info:
    names.load_dense(_CONFIG, tensors)
  message = str(info.value)
  for name in (*missing, "blocks.0.norm2.weight", "blocks.7.ffn.0.bias"):
    assert name in message
  assert "head.modulation (1, 2, 5) instead of (1, 2, 12)" in message


def test_affine_norm_of_the_wrong_name_is_unmatched(seed: int) -> None:
  renamed = {_to_diffusers(k): x for k, x in _tensors(seed).items()}
  renamed["blocks.0.norm3.weight"] = renamed.pop("blocks.0.norm2.weight")
  with pytest.raises(ValueError, match=r"unmatched.*missing: blocks\.0\.norm3"):
    names.load_dense(_CONFIG, renamed)


def test_two_networks_in_one_file_are_refused(seed: int) -> None:
  tensors = _tensors(seed)
  both = tensors | {f"model.{k}": x for k, x in tensors.items()}
  with pytest.raises(ValueError, match="give one network"):
    names.to_wan_names(both)


@pytest.mark.parametrize("size", ["small", "wan_1p3b"])
def test_other_architectures_are_refused(size: str) -> None:
  kind = "dense" if size == "small" else "latent"
  with pytest.raises(ValueError, match="learned_grid|attention.kind"):
    names.load_dense(wan.SIZES[size](kind=kind), {})


@pytest.mark.parametrize(
  "name",
  [
    "",
    "blocks.0",
    "blocks.x.modulation",
    "modulation",
    "self_attn.q.weight",
    "blocks.0.head.modulation",
    "blocks.0.self_attn.norm_q.bias",
    "N.modulation",
  ],
)
def test_unknown_names_have_no_target(name: str) -> None:
  assert names.target(name) is None
