"""Tests of the authors' early layout, against its layer in float64 NumPy."""

from flax import nnx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests import early_release
from tests import tiny_release
from tests import tolerances
from videomla_jax import shapes
from videomla_jax.conversion import ladder as ladder_lib
from videomla_jax.conversion.names import detect
from videomla_jax.conversion.names import early_layout
from videomla_jax.models import attention
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.ops import rope
from videomla_jax.storage import lazy_tensor

_GRID = shapes.Grid(rows=2, columns=3)
_WINDOW = window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=5)
_CHUNKS = 4


def _lazy(file: early_release.Arrays) -> dict[str, lazy_tensor.LazyTensor]:
  return {
    name: lazy_tensor.LazyTensor(x.shape, x.dtype, lambda x=x: x)
    for name, x in file.items()
  }


def _network(
  file: early_release.Arrays, ladder: str
) -> tuple[detect.Network, early_release.Arrays]:
  """The network of a file, and our parameters by path."""
  translated = early_layout.translate(_lazy(file))
  assert translated is not None
  tensors, heads = translated
  found = {name: x.shape for name, x in tensors.items()}
  network = detect.detect(found, num_heads=heads)
  network = ladder_lib.settle(network, ladder, must_be_told=True)
  values = {name: x.read() for name, x in tensors.items()}
  for name, x in values.items():
    assert (x.shape, x.dtype) == (tensors[name].shape, tensors[name].dtype)
  return network, network.table.read(values)


def _layer(
  network: detect.Network, arrays: early_release.Arrays, n: int
) -> attention.LatentSelfAttention:
  config = network.config.attention
  layer = attention.LatentSelfAttention(
    config, dtype=jnp.float32, rngs=nnx.Rngs(0)
  )
  prefix = "blocks/self_attention/"
  for path, x in arrays.items():
    if path.startswith(prefix):
      module, leaf = path.removeprefix(prefix).split("/")
      getattr(getattr(layer, module), leaf)[...] = jnp.asarray(x[n])
  return layer


def _rollout(layer: attention.LatentSelfAttention, x: np.ndarray) -> np.ndarray:
  """Chunk by chunk with the cache, as the package does it."""
  turn = lambda frame: rope.rotation(
    frame, grid=_GRID, bands=layer.config.bands
  )
  outs, cache = [], None
  for chunk in np.split(x, _CHUNKS):
    tokens = jnp.asarray(chunk[None], jnp.float32)
    own = layer.project(tokens)
    stacked = jax.tree.map(lambda a: a[None], own)
    cache = cache or cache_lib.empty(stacked, window=_WINDOW, max_frames=len(x))
    held, first = _WINDOW.positions(cache.frame, cache.next_frame)
    frames = first[:, None] + jnp.arange(len(chunk))
    seen = jnp.concatenate([held, frames], axis=1)
    visible = jnp.concatenate(
      [cache_lib.valid(cache), jnp.ones_like(frames, bool)], axis=1
    )
    history = jax.tree.map(lambda a: a[0], cache.entries)
    rotations = attention.Rotations(turn(frames), turn(seen), visible)
    outs.append(layer.attend(tokens, [history, own], rotations)[0])
    cache = cache_lib.append(cache, stacked, window=_WINDOW)
  return np.concatenate(outs)


# Every variant with and without biases; both ladders with each of either.
_CASES = [
  (variant, biased, attention.LADDERS[(i + biased) % 2])
  for i, variant in enumerate(early_release.VARIANTS)
  for biased in (False, True)
]


@pytest.mark.parametrize(("variant", "biased", "ladder"), _CASES)
def test_a_rollout_equals_the_layer_of_the_early_code(
  variant: str, biased: bool, ladder: str, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  file, layers = early_release.draw_network(rng, variant=variant, biased=biased)
  network, arrays = _network(file, ladder)
  sizes = network.config.attention
  assert sizes.rope_ladder == ladder and sizes.down_bias == biased
  assert (sizes.num_heads, sizes.d_c, sizes.d_rope, sizes.d_q) == (4, 10, 8, 24)
  x = rng.standard_normal((3 * _CHUNKS, _GRID.tokens, 64))
  n = int(rng.integers(len(layers)))
  theirs = early_release.Layer64(layers[n], ladder=ladder, grid=(2, 3))
  expected = np.concatenate([theirs(chunk) for chunk in np.split(x, _CHUNKS)])
  tolerances.assert_close(
    _rollout(_layer(network, arrays, n), x), expected, "float32"
  )


def test_the_ladder_matters(seed: int) -> None:
  rng = np.random.default_rng(seed)
  layer = early_release.draw_layer(rng, biased=False)
  x = rng.standard_normal((3, 6, 64))
  a, b = (
    early_release.Layer64(layer, ladder=ladder, grid=(2, 3))(x)
    for ladder in attention.LADDERS
  )
  assert tolerances.relative_error(a, b) > 0.01


@pytest.mark.parametrize(
  ("square", "sizes"),
  [
    ("W_q_upsampled", early_release.Sizes(d_q=64)),
    ("W_kv_downsampled", early_release.Sizes(d_c=56)),
  ],
)
@pytest.mark.parametrize("variant", ["early", "linear"])
def test_square_matrices_lie_as_their_neighbours(
  variant: str, square: str, sizes: early_release.Sizes, seed: int
) -> None:
  rng = np.random.default_rng(seed)
  file, layers = early_release.draw_network(rng, variant=variant, sizes=sizes)
  _, arrays = _network(file, "wan")
  path, role = {
    "W_q_upsampled": ("w_uq", "q_up"),
    "W_kv_downsampled": ("w_dkv", "kv_down"),
  }[square]
  theirs = layers[1][role]
  if role == "q_up":
    theirs = theirs.reshape(64, 4, -1)[..., : sizes.d_nope].reshape(64, -1)
  np.testing.assert_array_equal(
    arrays[f"blocks/self_attention/{path}/kernel"][1],
    theirs[:, : sizes.d_c] if role == "kv_down" else theirs,
  )


def test_networks_of_other_layouts_are_left_alone(seed: int) -> None:
  rng = np.random.default_rng(seed)
  for config in (tiny_release.DIT, wan_config.tiny(kind="latent")):
    file = tiny_release.draw(tiny_release.dit_table(config), rng)
    assert early_layout.translate(_lazy(file)) is None
    prefixed = {f"model.{name}": x for name, x in file.items()}
    assert early_layout.translate(_lazy(prefixed)) is None


def _spoil(file: early_release.Arrays, how: str) -> None:
  name = "blocks.1.self_attn."
  if how == "no norm":
    del file[f"{name}norm_kv_latent.weight"]
  elif how == "no values":
    del file[f"{name}W_kv_upsampled"]
  elif how == "one dense block":
    for full in [n for n in file if n.startswith(name)]:
      del file[full]
    for part in "qkvo":
      file[f"{name}{part}.weight"] = np.zeros((64, 64), np.float32)
  elif how == "clash":
    file[f"{name}W_kv_upsampled"] = np.zeros((10, 97), np.float32)
  elif how == "shape":
    file[f"{name}W_q_upsampled"] = np.zeros((8, 192), np.float32)
  elif how == "narrow key":
    file[f"{name}W_kv_downsampled"] = np.zeros((64, 10), np.float32)
    file[f"{name}W_k_rope"] = np.zeros((3, 1), np.float32)
  elif how == "axes":
    file[f"{name}W_o"] = np.zeros((64, 64, 1), np.float32)


@pytest.mark.parametrize(
  ("how", "words"),
  [
    ("no norm", r"lacks norm_kv_latent\.weight .* of blocks\.1\.self_attn"),
    ("no values", "lacks W_k_upsampled, W_v_upsampled"),
    ("one dense block", r"in blocks \[0\] but not in blocks \[1\]"),
    ("clash", "do not fit together.*W_kv_upsampled"),
    ("shape", r"W_q_upsampled \(8, 192\) instead of \(24, 64\)"),
    ("narrow key", "do not fit together.*d_rope=0"),
    ("axes", r"W_o of shape \(64, 64, 1\), which must have 2 axes"),
  ],
)
def test_incomplete_layers_are_refused(how: str, words: str, seed: int) -> None:
  file, _ = early_release.draw_network(np.random.default_rng(seed))
  _spoil(file, how)
  with pytest.raises(ValueError, match=words):
    early_layout.translate(_lazy(file))


def test_what_has_no_place_is_reported(seed: int) -> None:
  file, _ = early_release.draw_network(np.random.default_rng(seed))
  for extra in ("norm_k_rope.weight", "W_k_rope", "W_q_downsampled.weight"):
    name = f"blocks.0.self_attn.{extra}"
    with pytest.raises(ValueError, match=f"unmatched: {name}"):
      _network(file | {name: np.ones((64, 24), np.float32)}, "fresh")


def test_every_order_of_tensors_gives_the_same(seed: int) -> None:
  rng = np.random.default_rng(seed)
  file, _ = early_release.draw_network(rng, variant="split", biased=True)
  _, expected = _network(file, "fresh")
  shuffled = {str(name): file[name] for name in rng.permutation([*file])}
  _, arrays = _network(shuffled, "fresh")
  for path, x in arrays.items():
    np.testing.assert_array_equal(x, expected[path])


def test_weights_of_half_precision_keep_their_type(seed: int) -> None:
  rng = np.random.default_rng(seed)
  file, layers = early_release.draw_network(rng, variant="linear", biased=True)
  half = {n: x.astype(ml_dtypes.bfloat16) for n, x in file.items()}
  tensors, _ = early_layout.translate(_lazy(half))
  for name, x in tensors.items():
    # The bias of the output has taken that of the values in.
    wide = name.endswith("self_attn.o.bias")
    assert x.dtype == (np.float32 if wide else ml_dtypes.bfloat16), name
    assert x.read().dtype == x.dtype
  bias = layers[1]["kv_up_bias"].astype(ml_dtypes.bfloat16).reshape(4, -1)
  out, own = (
    layers[1][n].astype(ml_dtypes.bfloat16).astype(np.float64)
    for n in ("out", "out_bias")
  )
  values = bias[:, 8:].reshape(-1).astype(np.float64)
  tolerances.assert_close(
    tensors["blocks.1.self_attn.o.bias"].read(), own + values @ out
  )
