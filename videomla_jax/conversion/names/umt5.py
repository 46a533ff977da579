"""Names of the UMT5 encoder: those of Wan's code and those of transformers.

docs/method.md, section 5.5.
"""

import functools
import re

from videomla_jax.conversion.names import layout
from videomla_jax.conversion.names import tensor_table
from videomla_jax.models import umt5

# These lead from original names to those of transformers; every match is
# replaced, in this order.
_ATTENTION = r"encoder.block.\1.layer.0."
_FFN = r"encoder.block.\1.layer.1."
_TO_TRANSFORMERS = (
  (r"^token_embedding\.", "shared."),
  (r"^norm\.", "encoder.final_layer_norm."),
  (r"^blocks\.(\d+)\.norm1\.", _ATTENTION + "layer_norm."),
  (r"^blocks\.(\d+)\.attn\.", _ATTENTION + "SelfAttention."),
  (
    r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
    _ATTENTION + "SelfAttention.relative_attention_bias.",
  ),
  (r"^blocks\.(\d+)\.norm2\.", _FFN + "layer_norm."),
  (r"^blocks\.(\d+)\.ffn\.gate\.0\.", _FFN + "DenseReluDense.wi_0."),
  (r"^blocks\.(\d+)\.ffn\.fc1\.", _FFN + "DenseReluDense.wi_1."),
  (r"^blocks\.(\d+)\.ffn\.fc2\.", _FFN + "DenseReluDense.wo."),
)


def to_transformers(name: str) -> str:
  """Returns the name that transformers gives to an original tensor."""
  for pattern, replacement in _TO_TRANSFORMERS:
    name = re.sub(pattern, replacement, name)
  return name


def _matrix(
  n: int, theirs: str, ours: str, inputs: int, outputs: int
) -> dict[str, tensor_table.Tensor]:
  """Returns the weight of a linear layer of block n, which has no bias."""
  return {
    f"blocks.{n}.{theirs}.weight": tensor_table.Tensor(
      (outputs, inputs), f"blocks/{ours}/kernel", layout.KERNEL, n
    )
  }


def table_of(config: umt5.Umt5Config) -> tensor_table.Table:
  """Returns all tensors of an encoder.

  Args:
    config: Sizes of the encoder.
  """
  width, ffn = config.width, config.ffn_width
  inner = config.num_heads * config.head_dim
  tensors = {
    "token_embedding.weight": tensor_table.Tensor(
      (config.vocabulary, width), "tokens"
    ),
    **tensor_table.gain("norm", "norm", width),
  }
  for n in range(config.num_layers):
    name = f"blocks.{n}"

    matrix = functools.partial(_matrix, n)
    tensors |= {
      **tensor_table.gain(
        f"{name}.norm1", "blocks/attention_norm", width, block=n
      ),
      **matrix("attn.q", "attention/query", width, inner),
      **matrix("attn.k", "attention/key", width, inner),
      **matrix("attn.v", "attention/value", width, inner),
      **matrix("attn.o", "attention/out", inner, width),
      f"{name}.pos_embedding.embedding.weight": tensor_table.Tensor(
        (config.num_buckets, config.num_heads),
        "blocks/attention/distance",
        block=n,
      ),
      **tensor_table.gain(f"{name}.norm2", "blocks/ffn_norm", width, block=n),
      **matrix("ffn.gate.0", "ffn/gate", width, ffn),
      **matrix("ffn.fc1", "ffn/into", width, ffn),
      **matrix("ffn.fc2", "ffn/out", ffn, width),
    }
  return tensor_table.Table(
    tensors=tensors,
    formats={"transformers": to_transformers},
    # The embedding is tied; files may hold it under both names.
    copies=frozenset({"encoder.embed_tokens.weight"}),
  )
