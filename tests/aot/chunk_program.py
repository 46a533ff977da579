"""The real 1.3B chunk step, compiled for devices that are not here.

Four denoising passes and the pass that commits, at 480 x 832, 30 layers, one
stream per device.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from videomla_jax.costs import aot
from videomla_jax.diffusion import chunk_pass
from videomla_jax.diffusion import rollout
from videomla_jax.diffusion import sampling
from videomla_jax.models import cache
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.ops import device

P = jax.sharding.PartitionSpec
FRAME = (60, 104, 16)
LAYERS = 30


def _sharded(tree, devices, axis):
  spec = P(*([None] * axis), "data")
  sharding = jax.sharding.NamedSharding(devices, spec)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )


def model(spare_memory=True, layers=LAYERS, layers_apart=False):
  config = wan_config.wan_1p3b(
    dtype="bfloat16", spare_memory=spare_memory, num_layers=layers
  )
  model = nnx.eval_shape(lambda: wan.WanDiT(config, rngs=nnx.Rngs(0)))
  half = lambda x: jnp.bfloat16 if len(x.shape) > 2 else x.dtype
  model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, half(x)), model)
  return jax.eval_shape(wan.with_layers_apart, model) if layers_apart else model


@functools.cache
def compiled(
  target,
  count=1,
  cache_dtype=None,
  spare_memory=True,
  layers=LAYERS,
  layers_apart=False,
):
  """The compiled chunk step."""
  devices = aot.mesh(target, (count,), ("data",))
  network = model(spare_memory, layers, layers_apart)
  sampler = sampling.few_step((1000, 750, 500, 250))
  window = window_lib.Window()
  state = jax.eval_shape(
    lambda m: rollout.empty_cache(
      m,
      batch=count,
      frame=FRAME,
      window=window,
      max_frames=81,
      dtype=cache_dtype,
    ),
    network,
  )
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
  noise = jax.eval_shape(
    lambda k: sampling.chunk_noise(
      k, jnp.asarray(0), shape=(3, *FRAME), sampler=sampler
    ),
    keys,
  )
  text = jax.ShapeDtypeStruct((count, 512, 4096), jnp.bfloat16)
  arguments = (
    aot.place(network, devices),
    cache.Cache(
      _sharded(state.entries, devices, 1),
      *_sharded((state.frame, state.next_frame), devices, 0),
    ),
    type(noise)(
      _sharded(noise.start, devices, 0), _sharded(noise.fresh, devices, 1)
    ),
    _sharded(text, devices, 0),
  )
  specs_of = jax.tree.map(lambda x: x.sharding.spec, arguments)

  def step(model, state, noise, text):
    return chunk_pass.chunk_step(
      model, state, noise, text, window=window, sampler=sampler
    )

  step = jax.shard_map(
    step,
    mesh=devices,
    in_specs=specs_of,
    out_specs=(P("data"), specs_of[1]),
    check_vma=False,
  )
  program = aot.compile_for(
    jax.jit(step, donate_argnums=1, compiler_options=device.PRODUCTS_BY_CUBLAS),
    *arguments,
    devices=devices,
  )
  print(
    f"{count} {target}, {cache_dtype}, {layers} layers"
    f"{' apart' if layers_apart else ''}: {program.seconds:.1f} s, temporaries "
    f"{program.temporary_bytes / 1e6:.0f} MB, arguments "
    f"{program.argument_bytes / 1e6:.0f} MB per device"
  )
  return program
