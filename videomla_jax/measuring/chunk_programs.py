"""Compiles a chunk step or a decoder for a device that is not here."""

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from videomla_jax.costs import aot
from videomla_jax.diffusion import rollout
from videomla_jax.measuring import rollout_rows
from videomla_jax.models import released
from videomla_jax.models import tiny_decoder
from videomla_jax.models import vae
from videomla_jax.models import vae_coders
from videomla_jax.models import wan
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.ops import convolution

FRAME = (60, 104, 16)  # H, W, C of a latent frame of 480 x 832
WINDOWS = {
  "1+6": rollout_rows.WINDOW,
  "1+12": window_lib.Window(chunk_frames=3, sink_frames=1, local_frames=12),
  "21": window_lib.Window(chunk_frames=3, sink_frames=0, local_frames=21),
}
DECODERS = ("none", "tiny", "wan")
_MAX_FRAMES = 999  # of a video: four minutes


@functools.cache
def network(config: wan_config.WanConfig, products: str = "") -> wan.WanDiT:
  """Makes a network of shapes, its kernels in bfloat16.

  Args:
    config: Sizes of the network.
    products: How blocks multiply, see `WanConfig`.
  """

  def make() -> wan.WanDiT:
    model = wan.WanDiT(config, rngs=nnx.Rngs(0))
    return released.with_products(model, products)

  model = nnx.eval_shape(make)
  released.halve(model)
  return model


@functools.cache
def decoder(name: str) -> vae.Decoder | None:
  """Makes a decoder of shapes, in bfloat16.

  Args:
    name: One of `DECODERS`.
  """
  if name == "none":
    return None
  if name == "tiny":
    return tiny_decoder.abstract(
      tiny_decoder.TinyDecoderConfig(dtype="bfloat16")
    )
  return vae.abstract(vae_coders.wan_vae(dtype="bfloat16"))


def rollout_arguments(
  config: wan_config.WanConfig, case: rollout_rows.Case
) -> tuple[wan.WanDiT, rollout.Rollout, jax.ShapeDtypeStruct]:
  """Returns abstract arguments of `rollout.scan_chunks`.

  Args:
    config: Sizes of the network.
    case: Window, videos side by side, and number formats.
  """
  model = network(config, case.products)
  text = jax.eval_shape(
    functools.partial(rollout_rows.text_of, config, case.videos)
  )

  def start(model: wan.WanDiT, text: jax.Array) -> rollout.Rollout:
    return rollout.start(
      model,
      text,
      jax.random.split(jax.random.key(0), case.videos),
      frame=FRAME,
      window=case.window,
      sampler=rollout_rows.SAMPLER,
      max_frames=_MAX_FRAMES,
      cache_dtype=case.cache_dtype,
    )

  return model, jax.eval_shape(start, model, text), text


def chunk_step(
  config: wan_config.WanConfig, case: rollout_rows.Case, *, target: str
) -> aot.Compiled:
  """Compiles the chunk step of a rollout.

  Args:
    config: Sizes of the network.
    case: Window, videos side by side, and number formats.
    target: Key of `gpus.TARGETS`.

  Raises:
    NotImplementedError: If the compiler is not installed.
  """
  devices = aot.mesh(target)
  return aot.compile_for(
    rollout.scan_chunks,
    *aot.place(rollout_arguments(config, case), devices),
    devices=devices,
    window=case.window,
    sampler=rollout_rows.SAMPLER,
    chunks=1,
    frame=FRAME,
  )


def decode(
  codec: vae.Decoder, *, target: str, latents: int = 3
) -> aot.Compiled:
  """Compiles a decoder for a chunk behind the first frame.

  Args:
    codec: The decoder, of shapes.
    target: Key of `gpus.TARGETS`.
    latents: Latent frames of the chunk.

  Raises:
    NotImplementedError: If the compiler is not installed.
  """
  devices = aot.mesh(target)
  function, *arguments = decode_call(codec, latents=latents)
  run = jax.jit(
    function, donate_argnums=2, compiler_options=convolution.CHANNELS_LAST
  )
  return aot.compile_for(
    run, *(aot.place(x, devices) for x in arguments), devices=devices
  )


def decode_call(
  codec: vae.Decoder, *, latents: int = 3
) -> tuple[Callable[..., PyTree], vae.Decoder, jax.ShapeDtypeStruct, vae.State]:
  """Returns the function that decodes a chunk, and its abstract arguments.

  Args:
    codec: The decoder, of shapes.
    latents: Latent frames of the chunk.
  """
  height, width, channels = FRAME
  memory = jax.eval_shape(lambda: codec.start(1, height, width).memory)
  chunk = jax.ShapeDtypeStruct(
    (1, latents, height, width, channels), jnp.float32
  )
  return (
    lambda model, latents, state: model.decode_chunk(latents, state),
    codec,
    chunk,
    vae.State(memory, False),
  )
