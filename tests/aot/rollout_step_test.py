"""The real 1.3B chunk step, compiled for one and for eight B200.

Four denoising passes and the pass that commits, at 480 x 832, 30 layers.
"""

import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.aot import chunk_program
from videomla_jax import sharding
from videomla_jax.costs import aot
from videomla_jax.costs import attention_shapes
from videomla_jax.costs import collectives
from videomla_jax.costs import layer_traffic
from videomla_jax.costs import machine_code
from videomla_jax.costs import memory
from videomla_jax.models import attention
from videomla_jax.models import feed_forward
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib
from videomla_jax.ops import rope

pytest.importorskip("jax_cuda13_plugin", reason="needs the extra aot")

SHAPE = attention_shapes.SHAPES["480p"]
LAYERS = chunk_program.LAYERS


def _step(count, cache_dtype=None, target="b200", spare_memory=True):
  return chunk_program.compiled(target, count, cache_dtype, spare_memory)


@pytest.mark.parametrize("count", [1, 8])
def test_chunk_step_compiles_with_our_kernel(count):
  program = _step(count)
  assert "mosaic_gpu" in program.text
  # The cache is updated in place: 4 frames of 1,560 tokens, 224 scalars each.
  cache_bytes = 4 * 1560 * LAYERS * 224 * 2
  assert cache_bytes <= program.alias_bytes <= cache_bytes + 1024
  assert program.temporary_bytes <= 160e6
  _check_prediction(program)


# What is left of copies: the product in front of the GELU and those of queries
# take a bias along, which XLA does not do where it reads weights out of their
# stack; the others are small.
_COPIED = {(1536, 8960), (1536, 1536), (768, 1536), (1536, 224)}
# Keys with their positional part, made of W_uk and W_uv; our own kernel has two
# segments of keys instead, which share these weights.
_KEYS = {"h100": {(224, 12, 128)}, "b200": {(192, 1536)}}
# Queries and keys of a chunk are written once more, in what rotates them and, for
# cuDNN, joins their two parts.
_ROTATED = {"h100": {(4680, 12, 128)}, "b200": set()}


# Bytes that a layer moves beside products and attention, and those of weights.
# Commit b3cd3f2 had 810 and 171 MB, with products by XLA's own kernels.
@pytest.mark.parametrize(
  ("target", "spare_memory", "most", "weights"),
  [
    ("h100", True, 560e6, 93e6),
    ("h100", False, 450e6, 74e6),
    ("b200", False, 465e6, 74e6),
  ],
)
def test_a_layer_moves_little_beside_its_products(
  target, spare_memory, most, weights
):
  program = _step(1, target=target, spare_memory=spare_memory)
  loops = layer_traffic.layer_loops(program.text)
  assert len(loops) == 2  # denoising and commit
  for loop in loops:
    moved = layer_traffic.beside_products(loop)
    copies = layer_traffic.large(loop, "weights")
    joined = layer_traffic.large(loop, "concatenation")
    print(f"{target}, {spare_memory=}: {moved / 1e6:.0f} MB, {copies} {joined}")
    assert moved <= most
    assert sum(copies.values()) <= weights
    assert set(joined) == _ROTATED[target]
    if not spare_memory:
      assert set(copies) == _COPIED | _KEYS[target]


# Where layers lie apart, XLA only joins small weights that share an input, and
# on the H100 those of the keys with their positional part.
_JOINED = {
  "h100": {(768, 1536), (1536, 224), (224, 12, 128)},
  "b200": {(768, 1536), (1536, 224)},
}


@pytest.mark.parametrize(
  ("target", "most", "joined"),
  [("h100", 375e6, 8.6e6), ("b200", 384e6, 6.2e6)],
)
def test_layers_apart_are_read_in_place(target, most, joined):
  # All layers take minutes. What two more layers move is what a layer does.
  moved, copied = {}, {}
  for layers in (2, 4):
    apart = dict(spare_memory=False, layers=layers, layers_apart=True)
    program = chunk_program.compiled(target, **apart)
    (loop,) = layer_traffic.layer_loops(program.text, apart=True)
    moved[layers] = layer_traffic.beside_products(loop)
    copied[layers] = layer_traffic.large(loop, "weights")
    assert set(copied[layers]) == _JOINED[target]
    assert sum(copied[layers].values()) <= layers * joined
    # The commit writes into the cache, and never into a copy of it.
    cache = rf"\[{layers},1,4,1560,\d+\]\S* copy(-start)?\("
    assert not re.search(cache, program.text)
    _check_prediction(program, **apart)
  each = (moved[4] - moved[2]) / 2
  print(f"{target}, apart: {each / 1e6:.0f} MB, {copied[4]}")
  assert each <= most


def _check_prediction(program, spare_memory=True, **kwargs):
  """Asserts that the predicted peak is within a fifth of the compiler's."""
  predicted = memory.needs(
    chunk_program.model(spare_memory, **kwargs),
    rows=1,
    frame=chunk_program.FRAME,
    window=window_lib.Window(),
    max_frames=81,
    platform="gpu",
  )
  # Without what is known exactly, and is most of it.
  known = predicted.parameter_bytes + predicted.cache_bytes
  ratio = (predicted.peak_bytes - known) / program.temporary_bytes
  assert 1 / 1.2 <= ratio <= 1.2


@pytest.mark.parametrize("target", ["h100", "b200"])
def test_the_fast_step_has_a_bound_of_its_own(target):
  program = _step(1, target=target, spare_memory=False)
  assert program.temporary_bytes <= 310e6
  _check_prediction(program, spare_memory=False)


def test_no_kernel_of_the_step_spills():
  found = machine_code.kernels(_step(1).serialized())
  assert len(found) > 50
  assert all(k.registers > 0 for k in found)
  assert not [k for k in found if k.stack_bytes or k.local_memory_ops]
  ours = [k for k in found if k.name.startswith("latent_attention")]
  assert ours
  assert all(k.tensor_core_ops > 0 for k in ours)


def test_eight_streams_do_not_talk():
  assert collectives.of(_step(1).text) == []
  assert collectives.of(_step(8).text) == []


def test_parts_of_the_feed_forward_stay_on_their_devices():
  devices = aot.mesh("b200", (1, 1, 1, 2), sharding.AXES)
  mlp = lambda rngs: feed_forward.MLP(
    (512, 8192, 512),
    feed_forward.gelu,
    hidden="hidden",
    dtype=jnp.bfloat16,
    rngs=rngs,
  )
  stack = nnx.eval_shape(lambda: nnx.vmap(mlp)(nnx.Rngs(0).fork(split=LAYERS)))
  where = sharding.shardings({"ffn": stack}, devices)["ffn"]
  stack = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=s),
    stack,
    where,
  )
  x = jax.ShapeDtypeStruct((1, 1, 3, 1560, 512), jnp.bfloat16)
  program = aot.compile_for(
    feed_forward.by_slices,
    stack,
    jax.ShapeDtypeStruct((), jnp.int32),
    aot.place(x, devices),
    devices=devices,
  )
  # Products of the own channels, which are added up; no weight travels.
  assert feed_forward.num_slices(512, 4096) == 3
  found = collectives.of(program.text)
  assert {c.kind for c in found} == {"all-reduce"}
  assert {n for c in found for n in c.sizes} == {4680 * 512}


def test_keys_and_values_exist_for_one_layer_at_a_time():
  spec = SHAPE.sizes
  width = spec.heads * spec.content
  per_head = width + spec.heads * spec.value
  program = _step(1).text
  sizes = {
    tuple(int(n) for n in found.split(","))
    for found in re.findall(r"bf16\[([\d,]+)\]", program)
  }
  stacked = {s for s in sizes if s[0] == LAYERS}  # weights
  keys = [s for s in sizes - stacked if s[-1] == width and np.prod(s) > 2e6]
  assert keys  # the ring's and the own chunk's
  assert max(np.prod(s) for s in keys) == 6240 * width
  # Keys and values are not cut out of one product, which would be a copy.
  assert not [s for s in sizes if s[-1] == per_head and np.prod(s) > 2e6]


def _buffers(text):
  """Dtype and sizes of what the program writes, insides of fusions apart."""
  inside = set(re.findall(r"calls=%([\w.-]+)", text))
  found, name = set(), ""
  for line in text.splitlines():
    if line.startswith(("%", "ENTRY")):
      name = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
    elif name not in inside and " parameter(" not in line:
      result = line.split(" = ")[-1].split("(%")[0]
      found |= set(re.findall(r"(\w+)\[([\d,]+)\]", result))
  return {(dtype, tuple(map(int, sizes.split(",")))) for dtype, sizes in found}


@pytest.mark.parametrize("dtype", [None, "int8", "float8_e4m3fn"])
def test_one_layer_of_an_eight_bit_cache_is_dequantised_at_a_time(dtype):
  program = _step(1, dtype)
  own = {"int8": "s8", "float8_e4m3fn": "f8e4m3fn"}.get(dtype, "bf16")
  layer = 4 * 1560 * SHAPE.sizes.content_latent
  found = {
    (name, count)
    for name, sizes in _buffers(program.text)
    for count in (1, LAYERS)
    if sizes[-1] == SHAPE.sizes.content_latent
    and np.prod(sizes) == count * layer
  }
  # cuBLAS takes no product of eight and sixteen bits: a layer, 2.4 MB, is
  # converted for it. The whole cache exists with its own dtype only.
  assert found <= {(own, LAYERS), (own, 1), ("bf16", 1)}
  assert (own, LAYERS) in found
  token = 228 if dtype else 448
  cache_bytes = 4 * 1560 * LAYERS * token
  assert cache_bytes <= program.alias_bytes <= cache_bytes + 1024


def test_no_scores_of_the_text_are_written():
  scores = SHAPE.sizes.queries * 512 * SHAPE.sizes.heads
  assert max(np.prod(sizes) for _, sizes in _buffers(_step(1).text)) > scores
  written = {s for _, s in _buffers(_step(1).text) if np.prod(s) == scores}
  assert not written


@functools.cache
def _attention(implementation):
  """Self-attention alone: 30 layers, four passes, one device."""
  sizes = attention.AttentionConfig(
    kind="latent", width=1536, num_heads=12, implementation=implementation
  )
  devices = aot.mesh("b200")
  layers = nnx.eval_shape(
    lambda: jax.vmap(
      lambda key: attention.LatentSelfAttention(
        sizes, dtype=jnp.bfloat16, rngs=nnx.Rngs(key)
      )
    )(jax.random.split(jax.random.key(0), LAYERS))
  )
  array = lambda *s: jax.ShapeDtypeStruct(s, jnp.bfloat16)
  past = attention.LatentEntry(
    array(LAYERS, 1, 4, 1560, 192), array(LAYERS, 1, 4, 1560, 32)
  )
  x = array(1, 3, 1560, 1536)

  def turn(frames):
    return rope.rotation(
      jnp.arange(frames)[None],
      grid=wan.shapes.token_grid(60, 104, patch=2),
      bands=sizes.bands,
    )

  def run(layers, past, x, frame_valid):
    valid = jnp.concatenate([frame_valid, jnp.ones((1, 3), bool)], axis=1)
    rotations = attention.Rotations(turn(3), turn(7), valid)

    def layer(x, xs):
      module, entry = xs
      own = module.project(x)
      out = module.attend(x, [entry, own], rotations)
      return x + out.astype(x.dtype), None

    def one_pass(_, x):
      return jax.lax.scan(layer, x, (layers, past))[0]

    return jax.lax.fori_loop(0, 4, one_pass, x)

  arguments = (layers, past, x, jax.ShapeDtypeStruct((1, 4), bool))
  return aot.compile_for(run, *aot.place(arguments, devices), devices=devices)


@pytest.mark.parametrize("name", ["pallas_mosaic_gpu", "pallas_triton"])
def test_attention_of_a_step_needs_little_memory(name):
  program = _attention(name)
  print(f"{name}: temporaries {program.temporary_bytes / 1e6:.0f} MB")
  assert program.temporary_bytes <= 160e6
  # Two layers' expanded keys and values would not fit in, so one is alive.
  spec = SHAPE.sizes
  one_layer = 2 * spec.keys * spec.heads * (spec.content + spec.value)
  assert program.temporary_bytes < 2 * one_layer


def test_plain_attention_would_need_gigabytes():
  program = _attention("reference")
  print(f"reference: temporaries {program.temporary_bytes / 1e6:.0f} MB")
  assert program.temporary_bytes > 10 * 160e6
