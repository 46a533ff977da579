"""What the attention layers of a dense network see on real latents.

docs/method.md, section 14.2. A conversion that knows these inputs keeps more
than one that knows the weights alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int
import numpy as np

from videomla_jax.conversion import moments
from videomla_jax.models import attention
from videomla_jax.models import wan
from videomla_jax.models import wan_block
from videomla_jax.models import wan_config
from videomla_jax.models import window


class Embedded(NamedTuple):
  """A clip as it enters the blocks, and what all blocks see beside it."""

  tokens: Float[Array, "B G T P E"]
  time: Float32[Array, "B G T 6 E"]
  text: Float[Array, "B M E"]
  rotations: attention.Rotations


@jax.jit
def embed(
  model: wan.WanDiT,
  latents: Float[Array, "B G T H W C"],
  sigma: Float[Array, "B"],
  text: Float[Array, "B M Et"],
  positions: window.Positions,
) -> Embedded:
  """Returns what enters the blocks of a network.

  Args:
    model: The network.
    latents: Latents of chunks side by side, noisy or clean.
    sigma: Noise level of each row, 0..1.
    text: Text embeddings.
    positions: Temporal coordinates of queries and keys.
  """
  timestep = jnp.full(latents.shape[:3], 1, jnp.float32)
  timestep = timestep * sigma.reshape(-1, 1, 1) * wan_config.MAX_TIMESTEP
  rotations = model.rotations(positions, model.grid(latents), latents.shape[0])
  _, time = model.embed_time(timestep)
  return Embedded(
    model.patchify(latents), time, model.text_embed(text), rotations
  )


@jax.jit
def _block(
  blocks: wan_block.Block, n: Int[Array, ""], clip: Embedded
) -> tuple[Embedded, Float[Array, "B G T P E"]]:
  """Returns the clip after block n, and what its self-attention saw."""
  # The index is traced, so that one program serves all layers.
  block = jax.tree.map(lambda leaf: leaf[n], blocks)
  rest = wan_block.Pass(
    time=clip.time,
    text=clip.text,
    rotations=clip.rotations,
    context_of=lambda entries, history: [entries],
  )
  after, _ = block(clip.tokens, rest)
  attended = block.attention_input(clip.tokens, clip.time)
  return clip._replace(tokens=after), attended


def inputs(
  model: wan.WanDiT,
  latents: Float[Array, "B T H W C"],
  sigma: Float[Array, "B"],
  text: Float[Array, "B M Et"],
) -> Iterator[Float[Array, "B T P E"]]:
  """Yields what each layer's self-attention sees in a bidirectional pass.

  Args:
    model: A dense network.
    latents: Noisy latents.
    sigma: Noise level of each row, 0..1.
    text: Text embeddings.
  """
  positions = window.all_together(latents.shape[1])
  clip = embed(model, latents[:, None], sigma, text, positions)
  for n in range(model.config.num_layers):
    clip, attended = _block(model.blocks, jnp.int32(n), clip)
    yield attended[:, 0]


def collect(
  model: wan.WanDiT,
  latents: Float[Array, "B T H W C"],
  sigma: Float[Array, "B"],
  text: Float[Array, "B M Et"],
  *,
  max_tokens: int = 8192,
  seed: int = 0,
) -> list[moments.Tokens]:
  """Returns a random sample of the tokens that each self-attention sees.

  Args:
    model: A dense network.
    latents: Noisy latents of a few clips, at levels that the model meets.
    sigma: Noise level of each row, 0..1.
    text: Text embeddings.
    max_tokens: Tokens to keep per layer; several times the width E is enough.
    seed: Seed of the sample.

  Returns:
    Tokens of every layer; the same positions of the clips in each.
  """
  rng, sample, kept = np.random.default_rng(seed), None, []
  for x in inputs(model, latents, sigma, text):
    tokens = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
    # All layers share one draw, so that their fits see the same tokens.
    if sample is None:
      count = min(max_tokens, len(tokens))
      sample = rng.choice(len(tokens), count, replace=False)
    kept.append(tokens[sample])
  return kept


@jax.jit
def _attend[
  Layer: (attention.DenseSelfAttention, attention.LatentSelfAttention)
](
  layer: Layer,
  x: Float[Array, "B T P E"],
  rotations: attention.Rotations,
) -> Float[Array, "B T P E"]:
  return layer.attend(x, [layer.project(x)], rotations)


def output_errors(
  dense: wan.WanDiT,
  latent: wan.WanDiT,
  latents: Float[Array, "B T H W C"],
  sigma: Float[Array, "B"],
  text: Float[Array, "B M Et"],
) -> list[float]:
  """Returns the relative error of each layer's attention output.

  Every layer of both networks gets the inputs of the dense one, so errors of
  earlier layers do not add up.

  Args:
    dense: The network that was converted.
    latent: What it was converted to.
    latents: Noisy latents of clips that the conversion has not seen.
    sigma: Noise level of each row, 0..1.
    text: Text embeddings.

  Returns:
    |latent - dense| / |dense| of every layer, norms over all tokens; the
    constant that all tokens share is part of both.
  """
  errors = []
  positions = window.all_together(latents.shape[1])
  grid = dense.grid(latents)
  for n, x in enumerate(inputs(dense, latents, sigma, text)):
    outs = []
    for model in (dense, latent):
      layer = jax.tree.map(
        lambda leaf, n=n: leaf[n], model.blocks.self_attention
      )
      rotations = model.rotations(positions, grid, latents.shape[0])
      rotations = jax.tree.map(lambda y: y[:, 0], rotations)
      outs.append(_attend(layer, x, attention.Rotations(*rotations)))
    # The outputs may be bfloat16, in which their difference and the sums over
    # all tokens would be rounded once more.
    outs = [np.asarray(y, np.float64) for y in outs]
    errors.append(
      float(np.linalg.norm(outs[1] - outs[0]) / np.linalg.norm(outs[0]))
    )
  return errors
