"""Predicts the memory of a rollout from shapes, before anything compiles."""

from collections.abc import Mapping
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from videomla_jax import shapes
from videomla_jax.costs import decoder_memory
from videomla_jax.diffusion import rollout
from videomla_jax.models import cache
from videomla_jax.models import feed_forward
from videomla_jax.models import vae
from videomla_jax.models import wan
from videomla_jax.models import window as window_lib
from videomla_jax.ops import quantise
from videomla_jax.ops.latent_attention import xla_chunked

_F32 = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
  """Numbers and bytes of everything that one rollout holds.

  Attributes:
    parameters: Number of parameters.
    parameter_bytes: Bytes of the parameters as held in memory.
    tokens_per_frame: P, tokens of a latent frame.
    visible_frames: Latent frames that a chunk sees, its own included.
    scalars_per_token_layer: Cached scalars per token and layer.
    dense_scalars_per_token_layer: The same with dense attention.
    token_layer_bytes: Cached bytes per token and layer, scales included.
    dense_token_layer_bytes: The same with dense attention.
    cache_bytes: Bytes of the cache, of all rows of the batch.
    dense_cache_bytes: Bytes of a dense cache of the same frames, in the model's
      dtype where the cache has eight bits.
    decoder_bytes: Bytes of the codec's parameters and of what it remembers of
      earlier frames.
    decoder_states: Bytes that decoders remember of earlier frames, by name:
      first the codec, then those that may be chosen instead.
    decoder_temporary_bytes: Predicted bytes that the codec's program needs
      while it decodes a chunk.
    peak_bytes: Predicted peak: parameters with the copies that are made when
      layers leave their stack, cache, codec, and the activations of the network
      or of the codec, whichever are more.
  """

  parameters: int
  parameter_bytes: int
  tokens_per_frame: int
  visible_frames: int
  scalars_per_token_layer: int
  dense_scalars_per_token_layer: int
  token_layer_bytes: int
  dense_token_layer_bytes: int
  cache_bytes: int
  dense_cache_bytes: int
  decoder_bytes: int
  decoder_states: Mapping[str, int]
  decoder_temporary_bytes: int
  peak_bytes: int

  def lines(self) -> list[str]:
    """Returns the sizes as lines of a log."""
    saved = (
      1 - self.scalars_per_token_layer / self.dense_scalars_per_token_layer
    )
    cached = "cache: none, every frame sees every frame"
    if self.cache_bytes:
      ratio = self.dense_cache_bytes / self.cache_bytes
      cached = (
        f"cache: {human(self.cache_bytes)}, dense "
        f"{human(self.dense_cache_bytes)} ({ratio:.1f}x)"
      )
    return [
      f"parameters: {self.parameters:,} ({human(self.parameter_bytes)})",
      f"tokens per latent frame: {self.tokens_per_frame}",
      f"window: {self.visible_frames} latent frames, this chunk included",
      f"cached per token and layer: {self.scalars_per_token_layer} scalars = "
      f"{self.token_layer_bytes} B, dense "
      f"{self.dense_scalars_per_token_layer} scalars = "
      f"{self.dense_token_layer_bytes} B"
      + (f" (-{saved:.1%})" if saved else ""),
      cached,
      *self._decoder_lines(),
      f"predicted peak memory: {human(self.peak_bytes)}",
    ]

  def _decoder_lines(self) -> list[str]:
    """Returns what is said of the decoder, and of those not chosen."""
    if not self.decoder_bytes:
      return []
    (name, held), *others = self.decoder_states.items()
    unused = "".join(f"; {n} would hold {human(x)}" for n, x in others)
    return [
      f"decoder: {name}, {human(self.decoder_bytes)}, of which it holds "
      f"{human(held)} of earlier frames{unused}; temporaries "
      f"{human(self.decoder_temporary_bytes)}"
    ]


def described(name: str, model: PyTree) -> str:
  """Describes the parameters and bytes of a network in one line."""
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(model))
  return f"{name}: {count:,} parameters ({human(_bytes(model))})"


def human(count: float | int) -> str:
  """Writes a number of bytes with a binary unit."""
  for unit in ("B", "KiB", "MiB"):
    if count < 1024:
      return f"{count:.4g} {unit}"
    count /= 1024
  return f"{count:.4g} GiB"


def needs(
  model: wan.WanDiT,
  *,
  rows: int,
  frame: tuple[int, int, int],
  window: window_lib.Window,
  max_frames: int,
  cache_dtype: str | None = None,
  codec: vae.Decoder | None = None,
  codec_name: str = "codec",
  other_decoders: Mapping[str, vae.Decoder] | None = None,
  videos: int = 1,
  platform: str | None = None,
) -> Needs:
  """Computes the sizes of a rollout.

  Args:
    model: The network, real or from `nnx.eval_shape`.
    rows: Rows of the network's batch: one per video, two with guidance.
    frame: H, W, C of a latent frame.
    window: Which frames a chunk sees.
    max_frames: Latent frames of the video.
    cache_dtype: Dtype of the cache; the model's own by default.
    codec: What decodes the latents, if it runs beside the network.
    codec_name: What it is called.
    other_decoders: Decoders that may be chosen instead of it, by name.
    videos: Videos that are decoded side by side.
    platform: "gpu" or "tpu", where kernels keep the scores to themselves, or
      "cpu"; that of this process by default.
  """
  config = model.config
  tokens = shapes.token_grid(*frame[:2], patch=config.patch).tokens
  visible = window.slots(max_frames) + window.chunk_frames
  cached = _cache_sizes(
    model,
    rows=rows,
    frame=frame,
    window=window,
    max_frames=max_frames,
    dtype=cache_dtype,
  )
  parameter_bytes = _bytes(model)
  decoders = {} if codec is None else {codec_name: codec}
  states = {
    name: _state_bytes(decoder, videos=videos, frame=frame)
    for name, decoder in (decoders | dict(other_decoders or {})).items()
  }
  decoder_bytes = 0 if codec is None else _bytes(codec) + states[codec_name]
  platform = platform or jax.default_backend()
  block = _block_bytes(
    model,
    rows=rows,
    queries=window.chunk_frames * tokens,
    keys=visible * tokens,
    scores=platform not in ("gpu", "tpu"),
  )
  decoding = 0
  if codec is not None:
    decoding = decoder_memory.temporaries(
      codec,
      videos=videos,
      frame=frame[:2],
      latents=window.chunk_frames,
      platform=platform,
    )
  held = parameter_bytes + cached.cache_bytes + decoder_bytes
  return Needs(
    parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(model)),
    parameter_bytes=parameter_bytes,
    tokens_per_frame=tokens,
    visible_frames=visible,
    scalars_per_token_layer=config.attention.cached_scalars,
    dense_scalars_per_token_layer=2 * config.width,
    token_layer_bytes=cached.token_layer_bytes,
    dense_token_layer_bytes=cached.dense_token_layer_bytes,
    cache_bytes=cached.cache_bytes,
    dense_cache_bytes=cached.dense_cache_bytes,
    decoder_bytes=decoder_bytes,
    decoder_states=states,
    decoder_temporary_bytes=decoding,
    # The network and the decoder run one after the other.
    peak_bytes=held + max(block, decoding),
  )


class _CacheSizes(NamedTuple):
  """Bytes of a cache and of a dense one, whole and per token and layer."""

  cache_bytes: int
  dense_cache_bytes: int
  token_layer_bytes: int
  dense_token_layer_bytes: int


def _cache_sizes(
  model: wan.WanDiT,
  *,
  rows: int,
  frame: tuple[int, int, int],
  window: window_lib.Window,
  max_frames: int,
  dtype: str | None,
) -> _CacheSizes:
  """Reads the sizes of a cache from an abstract one."""
  empty = jax.eval_shape(
    lambda m: rollout.empty_cache(
      m,
      batch=rows,
      frame=frame,
      window=window,
      max_frames=max_frames,
      dtype=dtype,
    ),
    model,
  )
  leaves = jax.tree.leaves(empty.entries)
  num_tokens = math.prod(leaves[0].shape[:-1])  # of all layers and rows
  # A cache in eight bits is compared with what a dense model holds by default.
  dense_dtype = model.config.dtype
  if dtype and not quantise.is_eight_bit(dtype):
    dense_dtype = dtype
  dense = 2 * model.config.width * jnp.dtype(dense_dtype).itemsize
  return _CacheSizes(
    cache_bytes=cache.num_bytes(empty),
    dense_cache_bytes=num_tokens * dense,
    token_layer_bytes=sum(x.shape[-1] * x.dtype.itemsize for x in leaves),
    dense_token_layer_bytes=dense,
  )


def _state_bytes(
  decoder: vae.Decoder, *, videos: int, frame: tuple[int, int, int]
) -> int:
  """Counts the bytes that a decoder remembers of past frames."""
  state = jax.eval_shape(lambda c: c.start(videos, *frame[:2]), decoder)
  return _bytes(state)


def _bytes(tree: PyTree) -> int:
  """Counts the bytes of all arrays of a tree, real or abstract."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _block_bytes(
  model: wan.WanDiT, *, rows: int, queries: int, keys: int, scores: bool
) -> int:
  """Counts the bytes that one block holds at its widest point.

  These are activations, weights, and the cache entries that the block makes.

  Args:
    model: The network.
    rows: Rows of the network's batch: one per video, two with guidance.
    queries: Tokens of a chunk.
    keys: Tokens that a chunk sees.
    scores: Whether scores and copies in float32 are written, as XLA does.
  """
  config, blocks = model.config, model.blocks
  item = jnp.dtype(config.dtype).itemsize
  width, heads = config.width, config.attention.num_heads
  tokens = rows * queries
  spare = config.spare_memory
  slices = feed_forward.num_slices(width, config.ffn_width) if spare else 1
  # The chunk has queries and an output, and every head has keys and values.
  attention = tokens * 3 * width * item + 2 * rows * keys * width * item
  ffn = tokens * (config.ffn_width // slices + (1 + slices) * width) * item
  if scores:
    block = min(keys, xla_chunked.KEY_BLOCK)
    attention += 2 * tokens * (heads * block + width) * _F32
    ffn += tokens * (config.ffn_width // slices + width) * _F32
  # In a loop over blocks, the weights of one block are copied out of the stack
  # at a time; where blocks are unrolled, XLA copies the weights of all of them.
  # Layers that lie apart are read where they are.
  weights = 0
  if not model.layers_apart:
    ffn_weights = _bytes(blocks.ffn) // config.num_layers
    weights = _bytes(blocks) // config.num_layers
    if config.scan_blocks:
      attention += weights - ffn_weights
      ffn += ffn_weights // slices
  entries = tokens * config.attention.cached_scalars * item
  residual = tokens * width * _F32 * (2 if scores else 1)
  text = 0
  if not spare:
    # Both terms of attention stay until the end of the block, and the keys and
    # values of the text until the end of the chunk.
    residual += 2 * tokens * width * item
    text = 2 * config.num_layers * rows * config.text_tokens * width * item
  copies = 0 if config.scan_blocks else weights * config.num_layers
  # Attention and FFN run one after the other, so only the wider of them counts.
  return copies + residual + max(attention, ffn) + entries + text
