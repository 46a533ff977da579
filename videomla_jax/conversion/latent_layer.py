"""Latent attention made from a dense attention layer.

docs/method.md, section 14. For a head whose channels split into content
channels n and rotated channels r, the dense layer of Wan computes

  q = g_q (W_q x + b_q) / rms,   k = g_k (W_k x + b_k) / rms,   v = W_v x + b_v

and all channels of a head rotate. VideoMLA (arXiv:2605.30351), Eq. (1)-(7),
keeps one latent c for content keys and values, and one rotated key for all
heads.

Exact:
  - the gains g fold into the rows of the projections;
  - the bias of content keys adds the same to every score of a query, so it is
    dropped;
  - the bias of values passes the softmax unchanged, so it moves into that of
    W_o;
  - biases of queries and of rotated keys stay biases;
  - a complex factor of a rotated pair commutes with the rotation, so it moves
    from a head's key to its query.
Approximated:
  - content channels do not rotate, so their low frequencies are lost;
  - [W_k content; W_v] has rank d_c and the queries have rank d_q (`low_rank`);
  - the keys of all heads in one rotated pair are multiples of one complex key,
    the leading singular vector over heads weighted by their queries;
  - 1 / rms depends on the token and cannot fold into a matrix. The RMSNorms of
    the latents take its place: each latent is rotated and stretched so that its
    length is that of W_q x, or of W_k x, up to a constant. Queries and content
    keys are then divided by what Wan divides them by. Values, which Wan does
    not divide, are multiplied by the mean; so is the rotated key, which no
    norm follows.

With tokens of real inputs, low rank and weights minimise the expected error of
scores and outputs, and the up-projections are fitted to the dense outputs, so
that they absorb what the norms leave on average.
"""

from collections.abc import Mapping
import dataclasses
from typing import Literal

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np

from videomla_jax.conversion import moments as moments_lib
from videomla_jax.conversion import spectral
from videomla_jax.models import attention
from videomla_jax.ops import rope
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

Method = Literal["spectral", "random"]
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
  """Says what a conversion kept of one layer; shares are from 0 to 1.

  Attributes:
    method: How the layer was made.
    content_energy: Share of the energy of [W_k content; W_v] that is kept, in
      the metric of the inputs.
    key_energy: The same share of W_k content alone.
    value_energy: The same share of W_v alone.
    query_energy: The same share of the queries.
    rope_energy: The same share of the rotated keys, heads weighted by their
      queries.
    content_rank_99: Rank that 99 % of the energy of [W_k content; W_v] needs.
  """

  method: str
  content_energy: float = 0.0
  key_energy: float = 0.0
  value_energy: float = 0.0
  query_energy: float = 0.0
  rope_energy: float = 0.0
  content_rank_99: int = 0

  def to_dict(self) -> dict[str, str | float | int]:
    """Returns the fields as values that JSON can hold."""
    return dataclasses.asdict(self)


def rotated_channels(
  config: attention.AttentionConfig,
) -> Int[np.ndarray, "d_r"]:
  """Returns the channels of a dense head that keep their rotation.

  They are the first pairs of each axis, which have its highest frequencies.

  Args:
    config: Sizes of the latent attention.

  Returns:
    Channel numbers in the order that latent attention has them.
  """
  taken = rope.axis_pairs(config.d_rope)
  # `bands` refuses sizes that the axes cannot share, so this always holds.
  assert len(np.concatenate(config.bands)) == config.d_rope // 2
  starts = np.cumsum([0, *rope.axis_pairs(config.head_dim)[:2]])
  pairs = [s + np.arange(t) for s, t in zip(starts, taken, strict=True)]
  pair = np.concatenate(pairs)
  return np.stack([2 * pair, 2 * pair + 1], axis=-1).reshape(-1)


def latent_layer(
  dense: Mapping[str, np.ndarray],
  config: attention.AttentionConfig,
  *,
  method: Method,
  seed: int = 0,
  moments: moments_lib.Moments | None = None,
  tokens: moments_lib.Tokens | None = None,
) -> tuple[Arrays, LayerReport]:
  """Converts one layer of dense attention to latent attention.

  Args:
    dense: Parameters of `DenseSelfAttention`, names with slashes.
    config: Sizes of the latent attention.
    method: "spectral", or "random" as a control that keeps W_o only.
    seed: Seed of the random parameters.
    moments: Moments of the layer's inputs, which set constants; by default
      those of a LayerNorm's output without modulation.
    tokens: Real inputs of the layer. With them the moments are measured, and
      ranks and fits minimise the error on them.

  Returns:
    Float32 parameters of `LatentSelfAttention`, and what was kept.

  Raises:
    ValueError: If the sizes do not fit, or the method is unknown.
  """
  _check(dense, config, method)
  # Eigenvalues of squared matrices lose half of the digits that they have.
  dense = {name: np.asarray(x, np.float64) for name, x in dense.items()}
  if method == "random":
    return _random(dense, config, seed)
  if tokens is not None:
    moments = moments_lib.measured(dense, tokens)
  moments = moments or moments_lib.predicted(dense)
  layer = spectral.SpectralLayer(
    dense,
    config,
    moments,
    rotated=rotated_channels(config),
    aware=tokens is not None,
  )
  if tokens is None:
    arrays, name = layer.arrays, "spectral"
  else:
    arrays = layer.fitted(np.asarray(tokens, np.float64))
    name = "spectral, activation-aware"
  report = LayerReport(method=name, **layer.kept)
  # Only here are the numbers rounded, when nothing is inverted any more.
  return {n: np.asarray(x, np.float32) for n, x in arrays.items()}, report


def _check(
  dense: Mapping[str, np.ndarray],
  config: attention.AttentionConfig,
  method: Method,
) -> None:
  if method not in ("spectral", "random"):
    raise ValueError(f"init={method!r} is unknown; use 'spectral' or 'random'.")
  width = dense["query/kernel"].shape[0]
  if config.kind != "latent" or config.width != width:
    raise ValueError(
      f"attention of kind {config.kind!r} and width {config.width} cannot come "
      f"from a dense layer of width {width}; use latent attention of the same "
      "width."
    )
  check_ladder(method, config.rope_ladder)


def check_ladder(method: Method, ladder: str) -> None:
  """Refuses frequencies that a method of conversion cannot give.

  Args:
    method: How dense attention becomes latent, see `latent_layer`.
    ladder: `rope_ladder` of the result.

  Raises:
    ValueError: If the method keeps rotated pairs and their frequencies would
      change.
  """
  if method == "spectral" and ladder != "wan":
    raise ValueError(
      f"rope_ladder={ladder!r} does not go with init='spectral', which keeps "
      "rotated pairs of the dense layers with their frequencies; use 'wan', or "
      "init='random'."
    )


def _random(
  dense: Mapping[str, np.ndarray], config: attention.AttentionConfig, seed: int
) -> tuple[Arrays, LayerReport]:
  """Returns a fresh layer that has the dense output projection."""
  module = attention.LatentSelfAttention(
    config, dtype=jnp.float32, rngs=nnx.Rngs(seed)
  )
  arrays = tree_names.flat_dict(model_folder.model_arrays(module))
  fresh = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
  for name in ("kernel", "bias"):
    fresh[f"w_o/{name}"] = np.asarray(dense[f"out/{name}"], np.float32)
  return fresh, LayerReport(method="random")
