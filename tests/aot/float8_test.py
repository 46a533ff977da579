"""The 1.3B chunk step with products in float8, compiled for absent GPUs."""

import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from videomla_jax.costs import aot
from videomla_jax.costs import layer_traffic
from videomla_jax.costs import memory
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import released
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.ops import device

pytest.importorskip("jax_cuda13_plugin", reason="needs the extra aot")

FRAME = (60, 104, 16)
WINDOW = window_lib.Window()
CUBLAS = "__cublas$lt$matmul"


def _model(products):
  """The network as it is sampled on a GPU, by shapes."""
  config = wan_config.wan_1p3b(dtype="bfloat16", spare_memory=False)
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  released.halve(model)
  return jax.eval_shape(lambda m: released.with_products(m, products), model)


@functools.cache
def _step(target, products):
  """The chunk step: four passes and the commit."""
  devices, model = aot.mesh(target), _model(products)
  sampler = sampling.few_step((1000, 750, 500, 250))
  state = jax.eval_shape(
    lambda m: rollout.empty_cache(
      m, batch=1, frame=FRAME, window=WINDOW, max_frames=81
    ),
    model,
  )
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  noise = jax.eval_shape(
    lambda k: sampling.chunk_noise(
      k, jnp.asarray(0), shape=(3, *FRAME), sampler=sampler
    ),
    keys,
  )
  text = jax.ShapeDtypeStruct((1, 512, 4096), jnp.bfloat16)

  def step(model, state, noise, text):
    return chunk_pass.chunk_step(
      model, state, noise, text, window=WINDOW, sampler=sampler
    )

  options = device.PRODUCTS_BY_CUBLAS
  program = aot.compile_for(
    jax.jit(step, donate_argnums=1, compiler_options=options),
    *aot.place((model, state, noise, text), devices),
    devices=devices,
  )
  print(
    f"{target}, {products or 'bfloat16'}: {program.seconds:.1f} s, "
    f"temporaries {program.temporary_bytes / 1e6:.0f} MB, arguments "
    f"{program.argument_bytes / 1e6:.0f} MB"
  )
  return program


def _products(text):
  """Calls of cuBLAS in float8, and its other ones inside of blocks."""
  lines = [x for x in text.splitlines() if f'target="{CUBLAS}' in x]
  float8 = [x for x in lines if f'{CUBLAS}$f8"' in x]
  blocks = [x for x in lines if re.search("attention|ffn|body.*body", x)]
  return float8, [x for x in blocks if x not in float8]


@pytest.mark.parametrize(
  ("target", "products"),
  [
    ("h100", "float8_per_token"),
    ("b200", "float8_per_token"),
    ("h100", "float8_constant"),
    ("b200", "float8_constant"),
  ],
)
def test_cublas_multiplies_float8(target, products):
  program = _step(target, products)
  float8, others = _products(program.text)
  # Of a latent layer: latents, their queries, the output; query and output of
  # the text; feed-forward. Once in the loop of passes and once in the commit.
  assert len(float8) >= 16
  # Kernels of attention take their two up-projections in bfloat16, and the
  # embeddings of time and text lie outside of the blocks.
  assert all("latent_attention" in x or "f32[" in x for x in others)
  # Nothing holds a copy of the weights of all layers.
  assert program.temporary_bytes <= 340e6


def test_constant_scales_move_less():
  moved = {
    products: [
      layer_traffic.beside_products(loop)
      for loop in layer_traffic.layer_loops(_step("h100", products).text)
    ]
    for products in ("float8_per_token", "float8_constant")
  }
  print({name: [f"{x / 1e6:.0f} MB" for x in n] for name, n in moved.items()})
  # Nothing looks for the largest number, and no scale of it follows.
  assert max(moved["float8_constant"]) <= 0.55 * max(moved["float8_per_token"])


@pytest.mark.parametrize("target", ["h100", "b200"])
def test_hidden_channels_leave_cublas_in_float8(target):
  program = _step(target, "float8_constant")
  float8, _ = _products(program.text)
  hidden = [x for x in float8 if "8960]" in x.split("custom-call(")[0]]
  # In the loop of passes and in the commit.
  assert len(hidden) == 2
  for line in hidden:
    assert '"epilogue":"BIAS_GELU"' in line
    assert "f8e4m3fn[4688,8960]" in line.split("custom-call(")[0]


def test_arguments_are_about_half():
  program = _step("h100", "float8_per_token")
  half, stored = (_model(p) for p in ("", "float8_per_token"))
  sizes = [
    memory.needs(
      m, rows=1, frame=FRAME, window=WINDOW, max_frames=81, platform="gpu"
    )
    for m in (half, stored)
  ]
  assert sizes[1].parameter_bytes <= 0.53 * sizes[0].parameter_bytes
  known = sizes[1].parameter_bytes + sizes[1].cache_bytes
  assert known <= program.argument_bytes <= known + 10e6
  ratio = (sizes[1].peak_bytes - known) / program.temporary_bytes
  assert 1 / 1.25 <= ratio <= 1.25
