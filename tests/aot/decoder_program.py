"""The program that decodes a chunk, compiled for devices that are not here.

Three latent frames of 60 x 104 behind the first one, in bfloat16: twelve frames
of 480 x 832.
"""

import functools

import jax
import jax.numpy as jnp

from videomla_jax.costs import aot
from videomla_jax.models import tiny_decoder
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.ops import convolution

FRAME = (60, 104)
LATENTS = 3


def model(name: str, **changes) -> vae.Decoder:
  """An abstract decoder of the full size."""
  if name == "tiny":
    sizes = tiny_decoder.TinyDecoderConfig(dtype="bfloat16")
    return tiny_decoder.abstract(sizes)
  return vae.abstract(vae_coders.wan_vae(dtype="bfloat16", **changes))


@functools.cache
def compiled(target: str, name: str, **changes) -> aot.Compiled:
  """The compiled program of a decoder."""
  decoder = model(name, **changes)
  memory = jax.eval_shape(lambda: decoder.start(1, *FRAME).memory)
  latents = jax.ShapeDtypeStruct((1, LATENTS, *FRAME, 16), jnp.float32)
  devices = aot.mesh(target)
  run = jax.jit(
    lambda model, latents, state: model.decode_chunk(latents, state),
    donate_argnums=2,
    compiler_options=convolution.CHANNELS_LAST,
  )
  arguments = (decoder, latents, vae.State(memory, False))
  program = aot.compile_for(
    run, *(aot.place(x, devices) for x in arguments), devices=devices
  )
  print(
    f"{name} for {target}, {changes}: {program.seconds:.1f} s, temporaries "
    f"{program.temporary_bytes / 1e6:.0f} MB, arguments "
    f"{program.argument_bytes / 1e6:.0f} MB, of which "
    f"{program.alias_bytes / 1e6:.0f} MB in place"
  )
  return program
