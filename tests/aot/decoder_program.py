"""The program that decodes a chunk, compiled for devices that are not here.

Three latent frames of 60 x 104 behind the first one, in bfloat16: twelve frames
of 480 x 832.
"""

import functools

from videomla_jax.costs import aot
from videomla_jax.measuring import chunk_programs
from videomla_jax.models import vae
from videomla_jax.models import vae_coders

FRAME = chunk_programs.FRAME[:2]
LATENTS = 3


def model(name: str, **changes) -> vae.Decoder:
  """An abstract decoder of the full size."""
  if name == "tiny":
    return chunk_programs.decoder(name)
  return vae.abstract(vae_coders.wan_vae(dtype="bfloat16", **changes))


@functools.cache
def compiled(target: str, name: str, **changes) -> aot.Compiled:
  """The compiled program of a decoder."""
  program = chunk_programs.decode(
    model(name, **changes), target=target, latents=LATENTS
  )
  print(
    f"{name} for {target}, {changes}: {program.seconds:.1f} s, temporaries "
    f"{program.temporary_bytes / 1e6:.0f} MB, arguments "
    f"{program.argument_bytes / 1e6:.0f} MB, of which "
    f"{program.alias_bytes / 1e6:.0f} MB in place"
  )
  return program
