"""The Wan DiT: one network for bidirectional, teacher-forced and cached use.

docs/method.md, section 2; Wan2.1 (arXiv:2503.20314). Video tokens are
`[B, G, T, P, E]`: G chunks of T frames side by side. Everything but
self-attention works on tokens one by one or against the text, so only
`context_of` decides what a chunk sees:

  bidirectional    G = 1, T = all frames, context = own entries
  cached rollout   G = 1, T = chunk,      context = cache ++ own entries
  teacher forcing  G = clean and noisy chunks, context = clean history ++ own
"""

from collections.abc import Callable
import dataclasses
import gc
from typing import Any

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PyTree

from videomla_jax import shapes
from videomla_jax import sharding
from videomla_jax.models import attention
from videomla_jax.models import feed_forward
from videomla_jax.models import layers
from videomla_jax.models import wan_block
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.ops import rope

Layer = Array | int
Text = Float[Array, "B M Et"] | wan_block.TextKeys

# (history of all layers, a layer's own entries, its number) -> the history.
Store = Callable[[PyTree, PyTree, Layer], PyTree]


def read_only(history: PyTree, own: PyTree, layer: Layer) -> PyTree:
  """Returns the history as it was: the store of a pass that writes nothing."""
  del own, layer
  return history


class WanDiT(nnx.Module):
  """Predicts the velocity of noisy latents, v = noise - x0."""

  def __init__(self, config: wan_config.WanConfig, *, rngs: nnx.Rngs) -> None:
    self.config = config
    dtype, width, f32 = jnp.dtype(config.dtype), config.width, jnp.float32
    inputs = config.channels * config.patch**2
    self.patch_embed = layers.linear(inputs, width, dtype=dtype, rngs=rngs)
    # Time and text are split by row all the way; left alone, XLA splits them as
    # their kernels are and pays for it with communication.
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
      nnx.vmap(lambda r: wan_block.Block(config, rngs=r), in_axes=0, out_axes=0)
    )
    self.blocks = stack(rngs)
    noise = jax.random.normal(rngs.params(), (2, width), f32)
    self.head_modulation = nnx.Param(noise / width**0.5)
    self.head = layers.linear(width, inputs, dtype=f32, rngs=rngs)
    # The first prediction is a zero velocity, as Wan's is.
    self.head.kernel[...] = jnp.zeros_like(self.head.kernel[...])

  @property
  def layers_apart(self) -> bool:
    """Whether each layer has arrays of its own, see `with_layers_apart`."""
    return isinstance(self.blocks, nnx.List)

  def block(self, index: Layer) -> wan_block.Block:
    """Returns one block, cut out of the stack unless layers lie apart.

    Args:
      index: Number of the layer; a number that is not known while a program is
        traced needs a stack.
    """
    if self.layers_apart:
      blocks: Any = self.blocks
      return blocks[index]
    return jax.tree.map(lambda leaf: _at(leaf, index), self.blocks)

  def grid(self, latents: Float[Array, "... H W C"]) -> shapes.Grid:
    """Returns the token rows and columns of these latents."""
    return shapes.token_grid(*latents.shape[-3:-1], patch=self.config.patch)

  def patchify(
    self, latents: Float[Array, "B G T H W C"]
  ) -> Float32[Array, "B G T P E"]:
    """Embeds square patches, with values in order (channel, row, column)."""
    p = self.config.patch
    # The released layer is a convolution, whose kernel has channels first. The
    # head is a linear layer, whose outputs have them last.
    tokens = rearrange(
      latents, "B G T (h p) (w q) C -> B G T (h w) (C p q)", p=p, q=p
    )
    # The residual tokens are float32 from here to the head.
    x = self.patch_embed(tokens).astype(jnp.float32)
    if self.config.learned_grid is not None:
      x = x + self.grid_embed[...]
    return sharding.constrain(x, "residual")

  def unpatchify(
    self, tokens: Float32[Array, "B G T P O"], grid: shapes.Grid
  ) -> Float32[Array, "B G T H W C"]:
    """Puts patches back, with values in order (row, column, channel)."""
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
    """Returns the embedding of each timestep, and its six projections."""

    def split(x: Array) -> Array:
      return sharding.constrain(x, "batch")

    waves = layers.sinusoid(split(timestep), dim=self.config.freq_dim)
    e = split(self.time_embed(split(waves)))
    time = split(self.time_project(jax.nn.silu(e)))
    return e, rearrange(time, "B G T (six E) -> B G T six E", six=6)

  def rotations(
    self, positions: window_lib.Positions, grid: shapes.Grid, batch: int
  ) -> attention.Rotations:
    """Turns temporal coordinates into rotations of every token.

    Args:
      positions: Coordinates of frames, NumPy or JAX; one row serves all rows.
      grid: Token rows and columns of a frame.
      batch: Rows B.
    """
    bands = self.config.attention.bands
    # Angles are computed, not tabulated: no length limit exists.
    positions = jax.tree.map(jnp.asarray, positions)
    rotations = attention.Rotations(
      rope.rotation(positions.query, grid=grid, bands=bands),
      rope.rotation(positions.key, grid=grid, bands=bands),
      positions.visible,
    )
    return jax.tree.map(
      lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), rotations
    )

  def text_keys(self, text: Float[Array, "B M Et"]) -> wan_block.TextKeys:
    """Makes the keys and values of the text for all layers, `[layers, ...]`.

    Every pass with the same text may take them in its place. Where layers lie
    apart, so do these.

    Args:
      text: Output of the text encoder, zero-padded to M tokens.
    """
    text = self._embed_text(text)
    keys = lambda layer: layer.keys(text)
    if self.layers_apart:
      every = range(self.config.num_layers)
      made = [keys(self.block(i).cross_attention) for i in every]
      return wan_block.TextKeys(*zip(*made, strict=True))
    return jax.lax.map(keys, self.blocks.cross_attention)

  def _embed_text(self, text: Float[Array, "B M Et"]) -> Float[Array, "B M E"]:
    text = self.text_embed(sharding.constrain(text, "batch"))
    return sharding.constrain(text, "batch")

  def velocity_and_entries(
    self,
    latents: Float[Array, "B G T H W C"],
    timestep: Float32[Array, "B G T"],
    text: Float[Array, "B M Et"],
    positions: window_lib.Positions,
    *,
    context_of: wan_block.ContextOf,
    history: PyTree = None,
    keep: slice = slice(None),
  ) -> tuple[Float32[Array, "B g T H W C"], PyTree]:
    """Runs the network on chunks side by side; has gradients.

    Args:
      latents: Noisy or clean latents.
      timestep: Timestep of each frame, 0 (clean) to 1000 (noise).
      text: Output of the text encoder, zero-padded to M tokens.
      positions: Temporal coordinates of each chunk and what it sees.
      context_of: What each chunk's attention sees.
      history: Cached entries, leaves `[layers, B, slots, P, ...]`.
      keep: Chunks whose velocity is wanted.

    Returns:
      Velocity of the kept chunks, and the entries of every layer, leaves
      `[layers, B, G, T, P, ...]`.
    """
    x, embedding, seen = self._embed(
      latents, timestep, text, positions, context_of
    )
    x, entries = self._run_blocks(x, seen, history, keep)
    return self._head(x, embedding[:, keep], self.grid(latents)), entries

  def velocity_and_history(
    self,
    latents: Float[Array, "B G T H W C"],
    timestep: Float32[Array, "B G T"],
    text: Text,
    positions: window_lib.Positions,
    *,
    context_of: wan_block.ContextOf,
    history: PyTree = None,
    store: Store = read_only,
  ) -> tuple[Float32[Array, "B G T H W C"], PyTree]:
    """Runs the network without gradients, in less memory.

    Entries of all layers never exist at once, nor all of a layer's weights.

    Args:
      latents: Noisy or clean latents.
      timestep: Timestep of each frame, 0 (clean) to 1000 (noise).
      text: Output of the text encoder, zero-padded to M tokens, or
        `text_keys` of it.
      positions: Temporal coordinates of each chunk and what it sees.
      context_of: What each chunk's attention sees.
      history: Cached entries, leaves `[layers, B, slots, P, ...]`.
      store: Puts a layer's entries into the history, which has been read.

    Returns:
      Velocity of all chunks, and the history after all layers.
    """
    x, embedding, seen = self._embed(
      latents, timestep, text, positions, context_of
    )
    x, history = self._run_and_store(x, seen, history, store)
    return self._head(x, embedding, self.grid(latents)), history

  def _embed(
    self,
    latents: Float[Array, "B G T H W C"],
    timestep: Float32[Array, "B G T"],
    text: Text,
    positions: window_lib.Positions,
    context_of: wan_block.ContextOf,
  ) -> tuple[Array, Array, wan_block.Pass]:
    """Returns tokens, the embedding of time, and what all blocks see."""
    x = self.patchify(sharding.constrain(latents, "batch"))
    embedding, time = self.embed_time(timestep)
    if not isinstance(text, wan_block.TextKeys):
      text = self._embed_text(text)
    seen = wan_block.Pass(
      time=time,
      text=text,
      rotations=self.rotations(positions, self.grid(latents), latents.shape[0]),
      context_of=context_of,
    )
    return x, embedding, seen

  def _head(
    self,
    x: Float32[Array, "B G T P E"],
    embedding: Float32[Array, "B G T E"],
    grid: shapes.Grid,
  ) -> Float32[Array, "B G T H W C"]:
    """Turns tokens into the velocity of latents."""
    m = self.head_modulation[...] + embedding[..., None, :]  # B G T 2 E
    x = layers.layer_norm(x) * (1 + m[..., 1:, :]) + m[..., :1, :]
    return self.unpatchify(sharding.constrain(self.head(x), "residual"), grid)

  def _run_blocks(
    self,
    x: Float32[Array, "B G T P E"],
    seen: wan_block.Pass,
    history: PyTree,
    keep: slice,
  ) -> tuple[Float32[Array, "B g T P E"], PyTree]:
    """Runs all blocks; returns the kept chunks and the stacked entries."""

    def body(x: Array, layer: PyTree, keep: slice) -> tuple[Array, PyTree]:
      block, past = layer
      return block(x, seen, past, keep=keep)

    # Only inputs of blocks are kept for the backward pass.
    if self.config.remat:
      # A slice is no JAX type, so it cannot be traced and is static.
      body = jax.checkpoint(body, static_argnums=(2,))
    if self.config.scan_blocks:
      xs = (self.blocks, history)
      # One body serves all layers, so chunks are dropped behind the last one.
      x, entries = jax.lax.scan(lambda x, xs: body(x, xs, slice(None)), x, xs)
      return x[:, keep], entries
    collected = []
    for i in range(self.config.num_layers):
      cut = lambda leaf, i=i: leaf[i]
      apart = self.layers_apart
      block = self.block(i) if apart else jax.tree.map(cut, self.blocks)
      layer = block, jax.tree.map(cut, history)
      # Only the last layer may drop chunks: later layers need their entries.
      last = i == self.config.num_layers - 1
      x, own = body(x, layer, keep if last else slice(None))
      collected.append(own)
    return x, jax.tree.map(lambda *e: jnp.stack(e), *collected)

  def _run_and_store(
    self,
    x: Float32[Array, "B G T P E"],
    seen: wan_block.Pass,
    history: PyTree,
    store: Store,
  ) -> tuple[Float32[Array, "B G T P E"], PyTree]:
    """Runs all blocks; each one's entries go into the history behind it."""
    spare = self.config.spare_memory

    def layer(index: Layer, carry: PyTree) -> PyTree:
      x, history = carry

      def ffn(x: Array) -> Array:
        return feed_forward.by_slices(self.blocks.ffn, index, x)

      # What is not read of `block`, such as the weights of a feed-forward that
      # works in slices, is not cut out.
      block = self.block(index)
      past = jax.tree.map(lambda leaf: _at(leaf, index), history)
      here = seen
      if isinstance(seen.text, wan_block.TextKeys):
        text = wan_block.TextKeys(*(_at(x, index) for x in seen.text))
        here = dataclasses.replace(seen, text=text)
      x, own = block(x, here, past, ffn=ffn if spare else None)
      if store is not read_only:
        # Written once all is read, which nothing else says: XLA would copy the
        # cache of all layers, on a CPU and wherever layers lie apart.
        x, own = jax.lax.optimization_barrier((x, own))
      return x, store(history, own, index)

    # A scan over layers would stack a second history as its result; a loop
    # updates the one there is in place.
    carry = (x, history)
    if self.config.scan_blocks:
      return jax.lax.fori_loop(0, self.config.num_layers, layer, carry)
    for i in range(self.config.num_layers):
      carry = layer(i, carry)
    return carry


def _at(stack: Array | tuple[Array, ...], index: Layer) -> Array:
  """Returns what a stack, or a tuple, has of one layer."""
  if isinstance(stack, tuple):
    return stack[index]
  return jax.lax.dynamic_index_in_dim(stack, index, 0, False)


def with_layers_apart(model: WanDiT) -> WanDiT:
  """Returns a network whose layers are arrays of their own, not a stack.

  Programs without gradients then read large weights in place, and take many
  times as long to compile, docs/kernels.md. Stored networks are stacked.

  Args:
    model: A network, which stays as it is. Where the caller keeps no
      reference, each stack is freed before the next one is taken apart, so that
      only one array is held twice.

  Raises:
    ValueError: If the network spares memory: its feed-forward needs a stack.
  """
  if model.config.spare_memory:
    raise ValueError(
      "spare_memory=True works through slices of a stack, which layers_apart "
      "takes apart; leave one of them out."
    )
  if model.layers_apart:
    return model
  model = nnx.merge(*nnx.split(model))
  stacks, structure = jax.tree.flatten(model.blocks)
  del model.blocks
  # NNX leaves cycles of references, which would keep what was split or loaded.
  gc.collect()
  taken = []
  while stacks:
    taken.append(jnp.unstack(stacks.pop(0)))
  apart: Any = nnx.List(
    jax.tree.unflatten(structure, layer) for layer in zip(*taken, strict=True)
  )
  model.blocks = apart
  model.config = dataclasses.replace(model.config, scan_blocks=False)
  return model
