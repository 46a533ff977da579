"""Inputs of every attention layer of a dense network, on real latents."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from videomla_jax.conversion import moments
from videomla_jax.models import attention
from videomla_jax.models import wan
from videomla_jax.models import wan_block
from videomla_jax.models import wan_config
from videomla_jax.models import window


@jax.jit
def _embed(model, latents, sigma, text):
  timestep = jnp.full(latents.shape[:3], 1, jnp.float32)
  timestep = timestep * sigma.reshape(-1, 1, 1) * wan_config.MAX_TIMESTEP
  positions = window.all_together(latents.shape[2])
  rotations = model.rotations(positions, model.grid(latents), latents.shape[0])
  _, time = model.embed_time(timestep)
  return model.patchify(latents), time, model.text_embed(text), rotations


@jax.jit
def _block(blocks, n, x, time, text, rotations):
  block = jax.tree.map(lambda leaf: leaf[n], blocks)
  seen = wan_block.Pass(
    time=time,
    text=text,
    rotations=rotations,
    context_of=lambda own, past: [own],
  )
  return block(x, seen)[0], block.attention_input(x, time)


def inputs(
  model: wan.WanDiT,
  latents: Float[Array, "B T H W C"],
  sigma: Float[Array, "B"],
  text: Float[Array, "B M Et"],
) -> Iterator[Float[Array, "B T P E"]]:
  """Yields what each layer's self-attention sees, all frames together.

  Args:
    model: A dense network.
    latents: Noisy latents.
    sigma: Noise level of each example, 0..1.
    text: Text embeddings.
  """
  x, time, tokens, rotations = _embed(model, latents[:, None], sigma, text)
  for n in range(model.config.num_layers):
    x, seen = _block(model.blocks, jnp.int32(n), x, time, tokens, rotations)
    yield seen[:, 0]


def collect(
  model: wan.WanDiT,
  latents: Float[Array, "B T H W C"],
  sigma: Float[Array, "B"],
  text: Float[Array, "B M Et"],
  *,
  max_tokens: int = 8192,
  seed: int = 0,
) -> list[moments.Tokens]:
  """Tokens that every layer's self-attention sees, a random sample of them.

  Args:
    model: A dense network.
    latents: Noisy latents of a few clips, at levels that the model meets.
    sigma: Noise level of each example.
    text: Text embeddings.
    max_tokens: Tokens to keep; several times the width E is enough.
    seed: Of the sample.
  """
  rng, sample, kept = np.random.default_rng(seed), None, []
  for x in inputs(model, latents, sigma, text):
    tokens = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
    if sample is None:
      count = min(max_tokens, len(tokens))
      sample = rng.choice(len(tokens), count, replace=False)
    kept.append(tokens[sample])
  return kept


@jax.jit
def _attend(layer, x, rotations):
  return layer.attend(x, [layer.project(x)], rotations)


def output_errors(
  dense: wan.WanDiT,
  latent: wan.WanDiT,
  latents: Float[Array, "B T H W C"],
  sigma: Float[Array, "B"],
  text: Float[Array, "B M Et"],
) -> list[float]:
  """Relative error of each layer's attention output, on the dense inputs.

  Returns:
    |latent - dense| / |dense|, norms over all tokens; the constant that all
    tokens share is part of both.
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
    outs = [np.asarray(y, np.float64) for y in outs]
    errors.append(
      float(np.linalg.norm(outs[1] - outs[0]) / np.linalg.norm(outs[0]))
    )
  return errors
