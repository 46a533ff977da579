"""What a stage's networks read from a batch, whoever prepared it.

A batch of moving digits has "video" (bytes, `[B, T, h, w, c]`) and "tokens"
(word ids, `[B, M]`), and its models own a word encoder and a codec. A batch of
the colour world has "latents" in place of "video". A batch of
prepared data has "latents" `[B, T, H, W, C]`, "text" embeddings `[B, M, E]` and
"negative" `[M, E]`, and its models are the bare DiT.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomla_jax.models import wan
from videomla_jax.small_world import codecs
from videomla_jax.small_world import model as model_lib

Batch = dict[str, Array]
Network = wan.WanDiT | model_lib.VideoModel


def dit(model: Network) -> wan.WanDiT:
  """Returns the network inside a model."""
  return model.dit if isinstance(model, model_lib.VideoModel) else model


def latents(model: Network, batch: Batch) -> Float[Array, "B T H W C"]:
  """Returns the clean latents of a batch in float32.

  Args:
    model: The model that is trained; one of moving digits encodes pixels.
    batch: A batch that holds clips.
  """
  if "video" in batch:
    assert isinstance(model, model_lib.VideoModel)
    assert isinstance(model.codec, codecs.PixelCodec)
    return model.codec.encode(batch["video"])
  # Prepared latents are stored in float16, which is exact enough for the VAE's.
  return batch["latents"].astype(jnp.float32)


def text(model: Network, batch: Batch) -> Float[Array, "B M E"]:
  """Returns the embeddings of the prompts.

  Args:
    model: The network that will read them; a small one encodes words itself.
    batch: A batch with prompts.
  """
  if isinstance(model, model_lib.VideoModel):
    return model.encode_text(batch["tokens"])
  return batch["text"]


def negative(model: Network, batch: Batch) -> Float[Array, "B M E"]:
  """Returns the embeddings of the negative prompt, once per example.

  The negative prompt of small worlds is all padding. Prepared data hold the
  embeddings of Wan's; zeros stand for it where they do not.

  Args:
    model: The network that will read them.
    batch: A batch with prompts.
  """
  if isinstance(model, model_lib.VideoModel):
    # Word 0 is padding.
    return model.encode_text(jnp.zeros_like(batch["tokens"]))
  prompts = batch["text"]
  if "negative" not in batch:
    return jnp.zeros_like(prompts)
  return jnp.broadcast_to(batch["negative"], prompts.shape)


def num_examples(batch: Mapping[str, Array | jax.ShapeDtypeStruct]) -> int:
  """Returns the number of examples of a batch, of arrays or of shapes."""
  # "negative" has no batch axis.
  name = next(n for n in ("tokens", "text", "latents") if n in batch)
  return batch[name].shape[0]


def split(batch: Batch, count: int) -> Batch:
  """Deals the examples out to `count` batches, along a new first axis.

  Example i goes to batch i mod `count`, so that every device keeps the examples
  that it has of a batch that is split over devices.

  Args:
    batch: The examples.
    count: Batches to make, each of the same size.

  Raises:
    ValueError: If the examples cannot be dealt out evenly.
  """
  size = num_examples(batch)
  if size % count:
    raise ValueError(
      f"batch_size={size} must be a multiple of {count}, the batches that a "
      "step works through one by one; change the batch or optim.accumulate."
    )
  # Every microbatch needs the negative prompt, which has no batch axis.
  shared = {name: x for name, x in batch.items() if name == "negative"}
  dealt = jax.tree.map(
    lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1),
    {name: x for name, x in batch.items() if name not in shared},
  )
  return dealt | jax.tree.map(
    lambda x: jnp.broadcast_to(x, (count, *x.shape)), shared
  )
