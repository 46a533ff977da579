"""The Wan DiT: one network for bidirectional, teacher-forced and cached use.

spec/wan.md part A; Wan2.1 (arXiv:2503.20314). Video tokens are `[B, G, T, P,
E]`: G chunks of T frames side by side. Everything but self-attention works on
tokens one by one or against the text, so only `context_of` decides what a
chunk sees:

  bidirectional    G = 1, T = all frames, context = own entries
  cached rollout   G = 1, T = chunk,      context = cache ++ own entries
  teacher forcing  G = clean and noisy chunks, context = clean history ++ own
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, PyTree

from videomla_jax import shapes
from videomla_jax import sharding
from videomla_jax.models import attention
from videomla_jax.models import feed_forward
from videomla_jax.models import layers
from videomla_jax.ops import rope
from videomla_jax.storage import plain_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanConfig(plain_config.PlainConfig):
  """Sizes of the network; published ones come from the constructors.

  Attributes:
    attention: Self-attention; holds the width E and the heads N.
    num_layers: Blocks.
    ffn_width: F.
    channels: Latent channels C, in and out.
    patch: Side of a square spatial patch in latent pixels.
    freq_dim: Channels of the sinusoidal time embedding.
    text_dim: Channels of the text encoder's output.
    text_tokens: M, text tokens, padding included.
    learned_grid: Token rows and columns of a learned position embedding; None
      (Wan) leaves position to RoPE and fits every frame size.
    dtype: Of the matrix products; master weights are float32.
    remat: Recompute each block in the backward pass.
    scan_blocks: One compiled block for all layers; False unrolls them, which
      compiles longer and runs faster on a CPU.
  """

  title = "DiT config"

  attention: attention.AttentionConfig
  num_layers: int
  ffn_width: int
  channels: int = 16
  patch: int = 2
  freq_dim: int = 256
  text_dim: int = 4096
  text_tokens: int = 512
  learned_grid: tuple[int, int] | None = None
  dtype: str = "bfloat16"
  remat: bool = False
  scan_blocks: bool = True

  @property
  def width(self) -> int:
    """E, the model width."""
    return self.attention.width


def wan_1p3b(*, kind="latent", **kwargs) -> WanConfig:
  """Wan2.1-T2V-1.3B; with dense attention 1,418,996,800 parameters."""
  sizes = attention.AttentionConfig(
    kind=kind,
    width=1536,
    num_heads=12,
    **{k: kwargs.pop(k) for k in ("d_c", "d_rope", "d_q") if k in kwargs},
  )
  return WanConfig(attention=sizes, num_layers=30, ffn_width=8960, **kwargs)


def wan_14b(*, kind="dense", **kwargs) -> WanConfig:
  """Wan2.1-T2V-14B, the teacher."""
  sizes = attention.AttentionConfig(
    kind=kind, width=5120, num_heads=40, d_c=640, d_q=2560
  )
  return WanConfig(attention=sizes, num_layers=40, ffn_width=13824, **kwargs)


def small(
  *, kind="latent", d_c: int = 16, d_rope: int = 8, **kwargs
) -> WanConfig:
  """The small world's network; d_c, d_q, d_r in the paper's proportions."""
  sizes = attention.AttentionConfig(
    kind=kind, width=128, num_heads=4, d_c=d_c, d_rope=d_rope, d_q=64
  )
  values = dict(
    num_layers=4,
    ffn_width=256,
    freq_dim=64,
    text_dim=64,
    text_tokens=4,
    learned_grid=(3, 3),
    dtype="float32",
    scan_blocks=False,
  )
  return WanConfig(attention=sizes, **(values | kwargs))


def tiny(*, kind="latent", **kwargs) -> WanConfig:
  """Wan with every dimension small, to try the machinery in seconds.

  Latents and text have the sizes of `vae_config.tiny_vae` and `umt5.tiny_umt5`.
  """
  sizes = attention.AttentionConfig(
    kind=kind, width=64, num_heads=4, d_c=16, d_rope=8, d_q=32
  )
  values = dict(
    num_layers=2,
    ffn_width=128,
    channels=4,
    freq_dim=32,
    text_dim=32,
    dtype="float32",
  )
  return WanConfig(attention=sizes, **(values | kwargs))


SIZES = {"wan_1p3b": wan_1p3b, "wan_14b": wan_14b, "small": small}


class Place(NamedTuple):
  """Temporal coordinates of one pass, in latent frames.

  Attributes:
    query_frame: Of the frames that are computed.
    key_frame: Of the frames that are seen, in the order of the context.
    key_valid: False for frames that must not be seen.
  """

  query_frame: Int[Array, "#B G T"]
  key_frame: Int[Array, "#B G K"]
  key_valid: Bool[Array, "#B G K"]


# (own entries [B G T P ...], the layer's history [B slots P ...]) -> the
# entries that each chunk attends to, a list whose frames [B G . P ...] add up
# to the K of `Place`.
ContextOf = Callable[[PyTree, PyTree], list[PyTree]]


# Modulated tokens -> what is added to them.
FeedForward = Callable[[Array], Array]

# (history of all layers, a layer's own entries, its number) -> the history.
Store = Callable[[PyTree, PyTree, Array | int], PyTree]


def read_only(history: PyTree, own: PyTree, layer: Array | int) -> PyTree:
  """The store of a pass without gradients that writes nothing."""
  del own, layer
  return history


def _settle(x: Array) -> Array:
  """Has a sum written where its first term was.

  Left alone, a compiler keeps the terms until the end of the block and adds
  them again for each reader.
  """
  return jax.lax.optimization_barrier(x)


def _merge(x: Array) -> Array:
  """Joins examples and chunks: `[B, G, ...]` to `[B G, ...]`."""
  return x.reshape(-1, *x.shape[2:])


class Block(nnx.Module):
  """Self-attention, cross-attention and feed-forward, spec/wan.md A3."""

  def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
    dtype, width = jnp.dtype(config.dtype), config.width
    self.dtype = dtype
    kind = attention.SELF_ATTENTION[config.attention.kind]
    self.self_attention = kind(config.attention, dtype=dtype, rngs=rngs)
    self.cross_norm = layers.AffineLayerNorm(width)
    self.cross_attention = attention.CrossAttention(
      width, config.attention.num_heads, dtype=dtype, rngs=rngs
    )
    sizes = (width, config.ffn_width, width)
    self.ffn = feed_forward.MLP(
      sizes, feed_forward.gelu, hidden="hidden", dtype=dtype, rngs=rngs
    )
    noise = jax.random.normal(rngs.params(), (6, width), jnp.float32)
    self.modulation = nnx.Param(noise / width**0.5)

  def _modulation(self, time: Float32[Array, "B G T 6 E"]) -> Array:
    return (time + self.modulation[...])[..., None, :, :]  # B G T 1 6 E

  def attention_input(
    self, x: Float32[Array, "B G T P E"], time: Float32[Array, "B G T 6 E"]
  ) -> Float[Array, "B G T P E"]:
    """What self-attention sees of the residual stream."""
    m = self._modulation(time)
    a = layers.layer_norm(x) * (1 + m[..., 1, :]) + m[..., 0, :]
    return a.astype(self.dtype)

  def __call__(
    self,
    x: Float32[Array, "B G T P E"],
    time: Float32[Array, "B G T 6 E"],
    text: Float[Array, "B M E"],
    view: attention.View,
    context_of: ContextOf,
    history: PyTree = None,
    keep: slice = slice(None),
    ffn: FeedForward | None = None,
  ) -> tuple[Float32[Array, "B g T P E"], PyTree]:
    """Applies the block.

    Args:
      x: Residual stream.
      time: Time projection of each frame.
      text: Text tokens.
      view: Rotations and validity, leaves `[B G tokens ...]`.
      context_of: What attention sees, see the module's docstring.
      history: This layer's slice of the cache.
      keep: Chunks whose output is wanted; entries are made for all.
      ffn: The feed-forward, applied in another way than `self.ffn` does.

    Returns:
      The residual stream of the kept chunks and the entries of all tokens,
      leaves `[B G T P ...]`.
    """
    m = self._modulation(time)
    a = self.attention_input(x, time)
    own = self.self_attention.project(_merge(a))
    own = jax.tree.map(lambda y: y.reshape(*a.shape[:2], *y.shape[1:]), own)
    seen = (context_of(own, history), view)
    x, a, m, *seen = jax.tree.map(lambda y: y[:, keep], (x, a, m, *seen))
    with jax.named_scope("self_attention"):
      out = self.self_attention.attend(_merge(a), *jax.tree.map(_merge, seen))
      x = _settle(x + out.reshape(x.shape).astype(jnp.float32) * m[..., 2, :])
    with jax.named_scope("cross_attention"):
      tokens = self.cross_norm(x).astype(self.dtype)
      out = self.cross_attention(tokens, text).astype(jnp.float32)
      x = _settle(x + out)
    with jax.named_scope("ffn"):
      b = layers.layer_norm(x) * (1 + m[..., 4, :]) + m[..., 3, :]
      out = (ffn or self.ffn)(b.astype(self.dtype)).astype(jnp.float32)
      x = x + out * m[..., 5, :]
    return sharding.constrain(x, "residual"), own


class WanDiT(nnx.Module):
  """Predicts the velocity of noisy latents, v = noise - x0."""

  def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
    self.config = config
    dtype, width, f32 = jnp.dtype(config.dtype), config.width, jnp.float32
    inputs = config.channels * config.patch**2
    self.patch_embed = layers.linear(inputs, width, dtype=dtype, rngs=rngs)
    # Split by example all the way, or the compiler splits it as the kernels.
    sizes = (config.freq_dim, width, width)
    self.time_embed = feed_forward.MLP(
      sizes, jax.nn.silu, hidden="batch", dtype=f32, rngs=rngs
    )
    self.time_project = layers.linear(width, 6 * width, dtype=f32, rngs=rngs)
    sizes = (config.text_dim, width, width)
    self.text_embed = feed_forward.MLP(
      sizes, feed_forward.gelu, hidden="batch", dtype=dtype, rngs=rngs
    )
    if config.learned_grid is not None:
      rows, columns = config.learned_grid
      self.grid_embed = nnx.Param(jnp.zeros((rows * columns, width), f32))
    stack = nnx.split_rngs(splits=config.num_layers)(
      nnx.vmap(lambda r: Block(config, rngs=r), in_axes=0, out_axes=0)
    )
    self.blocks = stack(rngs)
    noise = jax.random.normal(rngs.params(), (2, width), f32)
    self.head_modulation = nnx.Param(noise / width**0.5)
    self.head = layers.linear(width, inputs, dtype=f32, rngs=rngs)
    self.head.kernel[...] = jnp.zeros_like(self.head.kernel[...])

  def grid(self, latents: Float[Array, "... H W C"]) -> shapes.Grid:
    """Token rows and columns of these latents."""
    return shapes.token_grid(*latents.shape[-3:-1], patch=self.config.patch)

  def patchify(
    self, latents: Float[Array, "B G T H W C"]
  ) -> Float32[Array, "B G T P E"]:
    """Embeds square patches; a patch is ordered (channel, row, column)."""
    p = self.config.patch
    tokens = rearrange(
      latents, "B G T (h p) (w q) C -> B G T (h w) (C p q)", p=p, q=p
    )
    x = self.patch_embed(tokens).astype(jnp.float32)
    if self.config.learned_grid is not None:
      x = x + self.grid_embed[...]
    return sharding.constrain(x, "residual")

  def unpatchify(
    self, tokens: Float32[Array, "B G T P O"], grid: shapes.Grid
  ) -> Float32[Array, "B G T H W C"]:
    """Inverse of the patches, ordered (row, column, channel)."""
    p = self.config.patch
    return rearrange(
      tokens,
      "B G T (h w) (p q C) -> B G T (h p) (w q) C",
      h=grid.rows,
      w=grid.columns,
      p=p,
      q=p,
    )

  def embed_time(
    self, timestep: Float32[Array, "B G T"]
  ) -> tuple[Float32[Array, "B G T E"], Float32[Array, "B G T 6 E"]]:
    """Embedding of each frame's timestep, and its six projections."""
    split = lambda x: sharding.constrain(x, "batch")
    waves = layers.sinusoid(split(timestep), dim=self.config.freq_dim)
    e = split(self.time_embed(split(waves)))
    time = split(self.time_project(jax.nn.silu(e)))
    return e, rearrange(time, "B G T (six E) -> B G T six E", six=6)

  def view(self, place: Place, grid: shapes.Grid, batch: int) -> attention.View:
    """Turns temporal coordinates into rotations of every token."""
    bands = self.config.attention.bands
    place = jax.tree.map(jnp.asarray, place)  # Plans are plain numpy.
    view = attention.View(
      rope.rotation(place.query_frame, grid=grid, bands=bands),
      rope.rotation(place.key_frame, grid=grid, bands=bands),
      place.key_valid,
    )
    return jax.tree.map(
      lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), view
    )

  def __call__(
    self,
    latents: Float[Array, "B G T H W C"],
    timestep: Float32[Array, "B G T"],
    text: Float[Array, "B M Et"],
    place: Place,
    *,
    context_of: ContextOf,
    history: PyTree = None,
    keep: slice = slice(None),
    store: Store | None = None,
  ) -> tuple[Float32[Array, "B g T H W C"], PyTree]:
    """Runs the network on chunks side by side.

    Args:
      latents: Noisy or clean latents.
      timestep: Of each frame, 0 (clean) to 1000 (noise).
      text: Output of the text encoder, zero-padded to M tokens.
      place: Temporal coordinates of each chunk and what it sees.
      context_of: What each chunk's attention sees.
      history: Cached entries, leaves `[layers, B, slots, P, ...]`.
      keep: Chunks whose velocity is wanted.
      store: Puts a layer's entries into the history, which has been read; so
        those of all layers never exist at once, nor all of a layer's weights.
        For passes without gradients.

    Returns:
      Velocity of the kept chunks, float32, and the entries of every layer,
      leaves `[layers, B, G, T, P, ...]`; or, with `store`, the new history.
    """
    grid = self.grid(latents)
    x = self.patchify(sharding.constrain(latents, "batch"))
    e, time = self.embed_time(timestep)
    text = sharding.constrain(text, "batch")
    tokens = sharding.constrain(self.text_embed(text), "batch")
    view = self.view(place, grid, latents.shape[0])
    x, entries = self._run_blocks(
      x, time, tokens, view, context_of, history, keep, store
    )
    m = self.head_modulation[...] + e[:, keep, :, None]  # B g T 2 E
    x = layers.layer_norm(x) * (1 + m[..., 1:, :]) + m[..., :1, :]
    out = sharding.constrain(self.head(x), "residual")
    return self.unpatchify(out, grid), entries

  def _run_blocks(self, x, time, text, view, context_of, history, keep, store):
    """All blocks; returns the kept chunks and stacked entries or history."""

    def body(x, layer, keep=slice(None), ffn=None):
      block, past = layer
      return block(x, time, text, view, context_of, past, keep, ffn)

    if store is not None:  # A pass without gradients.
      return self._run_and_store(body, x, history, keep, store)
    if self.config.remat:
      body = jax.checkpoint(body, static_argnums=(2,))
    xs = (self.blocks, history)
    if self.config.scan_blocks:
      x, entries = jax.lax.scan(lambda x, xs: body(x, xs, slice(None)), x, xs)
      return x[:, keep], entries
    collected = []
    for i in range(self.config.num_layers):
      layer = jax.tree.map(lambda leaf, i=i: leaf[i], xs)
      # Only the last layer may drop chunks: later layers need their entries.
      last = i == self.config.num_layers - 1
      x, own = body(x, layer, keep if last else slice(None))
      collected.append(own)
    return x, jax.tree.map(lambda *e: jnp.stack(e), *collected)

  def _run_and_store(self, body, x, history, keep, store):
    """All blocks; each one's entries go into the history behind it."""

    def layer(index, carry):
      x, history = carry
      at = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 0, False)
      ffn = lambda x: feed_forward.by_parts(self.blocks.ffn, index, x)
      block, past = jax.tree.map(at, (self.blocks, history))
      x, own = body(x, (block, past), slice(None), ffn)
      return x, store(history, own, index)

    carry = (x, history)
    if self.config.scan_blocks:
      carry = jax.lax.fori_loop(0, self.config.num_layers, layer, carry)
    else:
      for i in range(self.config.num_layers):
        carry = layer(i, carry)
    return carry[0][:, keep], carry[1]
