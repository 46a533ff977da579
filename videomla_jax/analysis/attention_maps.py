"""Which frames each layer of a latent network looks at.

docs/method.md, section 16.4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, PyTree

from videomla_jax.conversion import calibration
from videomla_jax.diffusion import chunk_pass
from videomla_jax.models import attention
from videomla_jax.models import cache as cache_lib
from videomla_jax.models import wan
from videomla_jax.models import wan_block
from videomla_jax.models import wan_config
from videomla_jax.models import window as window_lib
from videomla_jax.ops import rope
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import types


class Shares(NamedTuple):
  """How attention is spread over frames.

  Attributes:
    frames: Numbers of the frames in the cache and in the chunk, in the order of
      the keys; `window.EMPTY` is a slot that holds none.
    values: Share of the attention of each frame of the chunk, by layer and
      head, that goes to each of these frames; the mean over the frame's tokens.
      Shares of a query add up to one.
  """

  frames: Int[Array, "B K"]
  values: Float32[Array, "layers B N T K"]


def frame_shares(
  model: wan.WanDiT,
  cache: cache_lib.Cache,
  latents: Float[Array, "B T H W C"],
  timestep: float | int,
  text: Float[Array, "B M Et"],
  *,
  window: window_lib.Window,
  scheme: window_lib.Scheme = "window",
) -> Shares:
  """Runs one pass of a chunk, and adds up the attention that each frame gets.

  Args:
    model: A network with latent attention. All scores of a layer exist at once,
      so this is for small ones or small frames.
    cache: What the chunk sees.
    latents: The chunk, noisy or clean.
    timestep: 0..1000, that of the chunk.
    text: Text embeddings.
    window: The window that the cache was made for.
    scheme: How frames are counted, see `Window.positions`.

  Raises:
    ValueError: If the network is dense, or there is no such timestep.
  """
  if model.config.attention.kind != "latent":
    raise ValueError(
      f"the network has {model.config.attention.kind} attention; shares of "
      "frames are computed for latent attention only."
    )
  if not 0 <= timestep <= wan_config.MAX_TIMESTEP:
    raise ValueError(
      f"timestep={timestep} must be 0 (clean) to {wan_config.MAX_TIMESTEP} "
      "(noise)."
    )
  length = latents.shape[1]
  own = cache.next_frame[:, None] + jnp.arange(length, dtype=jnp.int32)
  frames = jnp.concatenate([cache.frame, own], axis=1)
  positions = chunk_pass.positions_of(
    cache, length, window=window, scheme=scheme
  )
  sigma = jnp.full(latents.shape[0], timestep / wan_config.MAX_TIMESTEP)
  clip = calibration.embed(model, latents[:, None], sigma, text, positions)
  found = []
  for n in range(model.config.num_layers):
    clip, shares = _layer(model.blocks, jnp.int32(n), clip, cache)
    found.append(shares)
  return Shares(frames, jnp.stack(found))


def probabilities(
  layer: attention.LatentSelfAttention,
  x: Float[Array, "B T P E"],
  context: list[attention.LatentEntry],
  rotations: attention.Rotations,
) -> Float32[Array, "B N T P S"]:
  """Returns how much the tokens of `x` look at each token of the context.

  Args:
    layer: The attention of one layer.
    x: Tokens of the frames that are computed.
    context: Entries of the frames that are seen, in the order of `rotations`.
    rotations: Rotations of queries and keys in the current window.
  """
  content, q_rope = (
    q.reshape(q.shape[0], -1, *q.shape[3:]) for q in layer.queries(x)
  )
  weights = reference.probabilities(
    types.Queries(content, rope.rotate(q_rope, rotations.query)),
    layer.keys(context, rotations.key, rotations.visible, dtype=content.dtype),
    layer.up_projections(content.dtype),
  )
  return weights.reshape(*weights.shape[:2], *x.shape[1:3], -1)


@jax.jit
def _layer(
  blocks: wan_block.Block,
  n: Int[Array, ""],
  clip: calibration.Embedded,
  cache: cache_lib.Cache,
) -> tuple[calibration.Embedded, Float32[Array, "B N T K"]]:
  """Returns the clip after block n, and the block's shares."""
  block, past = jax.tree.map(lambda leaf: leaf[n], (blocks, cache.entries))
  context_of = chunk_pass.context_of(cache)["context_of"]
  seen = wan_block.Pass(
    time=clip.time,
    text=clip.text,
    rotations=clip.rotations,
    context_of=context_of,
  )
  after, own = block(clip.tokens, seen, past)
  # One chunk: the axis of chunks has length one.
  inside = lambda tree: jax.tree.map(lambda leaf: leaf[:, 0], tree)
  tokens = inside(block.attention_input(clip.tokens, clip.time))
  context: list[PyTree] = inside(context_of(own, past))
  weights = probabilities(
    block.self_attention, tokens, context, inside(clip.rotations)
  )
  places = clip.tokens.shape[3]
  by_frame = weights.reshape(*weights.shape[:-1], -1, places).sum(-1)
  return clip._replace(tokens=after), by_frame.mean(axis=3)
