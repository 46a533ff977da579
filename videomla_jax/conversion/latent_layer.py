"""Latent attention made from a dense attention layer.

Dense (Wan), for head h and channels split into content n and rotated r:

  q = g_q (W_q x + b_q) / rms,   k = g_k (W_k x + b_k) / rms,   v = W_v x + b_v

and all of a head rotates. VideoMLA (arXiv:2605.30351), Eq. (1)-(7), keeps one
latent c for content keys and values, and one rotated key for all heads.

Exact:
  - the gains g fold into rows;
  - the bias of content keys adds the same to every score of a query: dropped;
  - the bias of values passes the softmax unchanged: moved into that of W_o;
  - biases of queries and of rotated keys stay biases;
  - a complex factor of a rotated pair commutes with the rotation, so it moves
    from a head's key to its query.
Approximated:
  - content channels do not rotate: their low frequencies are dropped;
  - [W_k content; W_v] has rank d_c and the queries rank d_q (`low_rank`);
  - the keys of all heads in one rotated pair are multiples of one complex key,
    the leading singular vector over heads weighted by their queries;
  - 1 / rms depends on the token and cannot be folded. The RMSNorms of the
    latents take its place: each latent is turned and stretched so that its
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
from typing import Any, Literal

from einops import rearrange
from flax import nnx
import jax.numpy as jnp
from jaxtyping import Complex, Float, Int
import numpy as np

from videomla_jax.conversion import low_rank
from videomla_jax.conversion import moments as moments_lib
from videomla_jax.models import attention
from videomla_jax.models import layers
from videomla_jax.ops import rope
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names

Method = Literal["spectral", "random"]
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
  """What a conversion kept of one layer.

  Attributes:
    method: How it was made.
    content_energy: Share of [W_k content; W_v], in the metric used.
    key_energy: Share of W_k content.
    value_energy: Share of W_v.
    query_energy: Share of the queries.
    rope_energy: Share of the rotated keys, heads weighted by their queries.
    content_rank_99: Rank that 99 % of the energy of [W_k content; W_v] needs.
  """

  method: str
  content_energy: float = 0.0
  key_energy: float = 0.0
  value_energy: float = 0.0
  query_energy: float = 0.0
  rope_energy: float = 0.0
  content_rank_99: int = 0

  def to_dict(self) -> dict[str, Any]:
    """Plain JSON values."""
    return dataclasses.asdict(self)


def rotated_channels(
  config: attention.AttentionConfig,
) -> Int[np.ndarray, "d_r"]:
  """Channels of a dense head that keep their rotation, in latent order.

  They are the first pairs of each axis, its highest frequencies.
  """
  taken = rope.axis_pairs(config.d_rope)
  assert len(np.concatenate(config.bands)) == config.d_rope // 2  # or it raised
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
  """Converts one layer.

  Args:
    dense: Parameters of `DenseSelfAttention`, names with slashes.
    config: Sizes of the latent attention.
    method: "spectral", or "random" as a control that keeps W_o only.
    seed: Of the random parameters.
    moments: Of the layer's inputs, for constants; by default those of a
      LayerNorm without modulation.
    tokens: Real inputs; given, they replace `moments` and decide everything.

  Returns:
    Float32 parameters of `LatentSelfAttention`, and what was kept.

  Raises:
    ValueError: If the sizes do not fit, or the method is unknown.
  """
  _check(dense, config, method)
  dense = {name: np.asarray(x, np.float64) for name, x in dense.items()}
  if method == "random":
    return _random(dense, config, seed)
  if tokens is not None:
    moments = moments_lib.measured(dense, tokens)
  moments = moments or moments_lib.predicted(dense)
  layer = _Spectral(dense, config, moments, aware=tokens is not None)
  arrays, report = layer.arrays(), layer.report()
  if tokens is not None:
    arrays = layer.fitted(arrays, np.asarray(tokens, np.float64))
  return {n: np.asarray(x, np.float32) for n, x in arrays.items()}, report


def _check(dense, config, method) -> None:
  if method not in ("spectral", "random"):
    raise ValueError(f"init={method!r} is unknown; use 'spectral' or 'random'.")
  width = dense["query/kernel"].shape[0]
  if config.kind != "latent" or config.width != width:
    raise ValueError(
      f"attention of kind {config.kind!r} and width {config.width} cannot come "
      f"from a dense layer of width {width}; use latent attention of the same "
      "width."
    )


def _random(dense, config, seed) -> tuple[Arrays, LayerReport]:
  """A fresh layer with the dense output projection."""
  module = attention.LatentSelfAttention(
    config, dtype=jnp.float32, rngs=nnx.Rngs(seed)
  )
  arrays = tree_names.flat_dict(model_folder.model_arrays(module))
  fresh = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
  for name in ("kernel", "bias"):
    fresh[f"w_o/{name}"] = np.asarray(dense[f"out/{name}"], np.float32)
  return fresh, LayerReport(method="random")


class _Spectral:
  """One layer: dense rows with gains folded in, split by channels.

  Rows are `[heads, channels, E + 1]`; the last column is the bias.
  """

  def __init__(self, dense, config, moments, *, aware: bool):
    self.dense, self.config, self.moments = dense, config, moments
    self.aware = aware
    rotated = rotated_channels(config)
    content = np.setdiff1d(np.arange(config.head_dim), rotated)

    def rows(name, scale):
      gain = scale * dense[f"{name}_norm/gain"]
      kernel = dense[f"{name}/kernel"].T * gain[:, None]
      bias = (dense[f"{name}/bias"] * gain)[:, None]
      both = np.concatenate([kernel, bias], axis=1)
      return rearrange(both, "(N D) e -> N D e", N=config.num_heads)

    query = rows("query", moments.query_scale)
    key = rows("key", moments.key_scale)
    self.key, self.key_rope = key[:, content], key[:, rotated]
    self.content_rows = query[:, content]
    mean = np.append(moments.mean, 1.0)
    self.moment = np.block(
      [[moments.moment, moments.mean[:, None]], [mean[None]]]
    )  # of x with a 1 appended
    self.factor, self.rope_rows, self.rope_energy = self._shared_key(
      query[:, rotated]
    )
    turned = _real(_complex(query[:, rotated]) * self.factor.conj()[..., None])
    self.query = np.concatenate([self.content_rows, turned], axis=1)
    self.rotated, self.content = rotated, content

  def _metric(self, moment) -> low_rank.Metric:
    return low_rank.metric(moment) if self.aware else low_rank.PLAIN

  def _shared_key(self, query_rope):
    """One complex key per rotated pair: keys ~ factor key, heads weighted."""
    query, key = _complex(query_rope), _complex(self.key_rope)
    energy = np.einsum(
      "npe,ef,npf->np", query, self.moment, query.conj(), optimize=True
    ).real
    weight = np.sqrt(np.maximum(energy, 1e-30))[..., None]
    factor = np.empty(weight.shape[:2], np.complex128)
    rows = np.empty(key.shape[1:], np.complex128)
    kept = total = 0.0
    for pair in range(key.shape[1]):
      weighted = weight[:, pair] * key[:, pair]
      gram = weighted @ self.moment @ weighted.conj().T
      values, vectors = np.linalg.eigh(gram)
      leading = vectors[:, -1]
      rows[pair] = leading.conj() @ weighted
      factor[:, pair] = leading / weight[:, pair, 0]
      kept, total = kept + values[-1], total + values.sum()
    size = np.sqrt(np.mean(np.abs(factor) ** 2, axis=0))
    factor, rows = factor / size, rows * size[:, None]
    return factor, _real(rows[None])[0], float(kept / total)

  def _content(self):
    """Factors of [W_k content; W_v]: down, up of keys, up of values."""
    key = self.key[..., :-1]
    flat = rearrange(key, "N d e -> (N d) e")
    value = self.dense["value/kernel"].T
    metric = self._metric(self.moments.covariance)
    stacked = np.concatenate([flat, value])
    if self.aware:
      weigh_key, weigh_value = self._importance(value)
      weighted = np.einsum("Ncd,Nde->Nce", weigh_key, key)
      stacked = np.concatenate(
        [rearrange(weighted, "N d e -> (N d) e"), weigh_value @ value]
      )
    factors = low_rank.factorise(stacked, self.config.d_c, inputs=metric)
    # Back to the true rows: the projection acts on inputs alone.
    seen = metric.seen(factors.down)
    return factors, metric, flat, value, flat @ seen, value @ seen

  def _importance(self, value):
    """Row weights: errors of keys and values in units of the output.

    A score error of a key is q . dk / sqrt(D), and moves the output by it times
    the spread of the head's values behind W_o.
    """
    sizes, out = self.config, self.dense["out/kernel"].T
    covariance = value @ self.moments.covariance @ value.T
    weigh_key = []
    for h in range(sizes.num_heads):
      rows = slice(h * sizes.head_dim, (h + 1) * sizes.head_dim)
      spread = np.trace(out[:, rows] @ covariance[rows, rows] @ out[:, rows].T)
      query = self.content_rows[h]
      root = low_rank.metric(query @ self.moment @ query.T).root
      weigh_key.append(np.sqrt(spread / sizes.head_dim) * root)
    return np.stack(weigh_key), low_rank.metric(out.T @ out).root

  def arrays(self) -> Arrays:
    """All parameters of the latent layer."""
    dense, sizes = self.dense, self.config
    factors, metric, flat, value, up_key, up_value = self._content()
    self._energies = dict(
      content_energy=low_rank.energy_kept(factors.spectrum, sizes.d_c),
      key_energy=metric.share(flat, up_key),
      value_energy=metric.share(value, up_value),
      content_rank_99=low_rank.effective_rank(factors.spectrum),
    )
    down, stretch = low_rank.follow(dense["key/kernel"].T, factors.down, metric)
    length = self._length(down)
    up_key, up_value = up_key @ stretch, up_value @ stretch
    mean = self.moments.mean
    offset = dense["value/bias"] + (value - up_value @ down) @ mean
    return {
      "w_dkv/kernel": down.T,
      "content_norm/gain": np.full(sizes.d_c, length),
      "w_uk/kernel": up_key.T,
      "w_uv/kernel": up_value.T,
      "w_kr/kernel": self.rope_rows[:, :-1].T,
      "w_kr/bias": self.rope_rows[:, -1],
      "w_o/kernel": dense["out/kernel"],
      "w_o/bias": dense["out/bias"] + offset @ dense["out/kernel"],
      **self._queries(),
    }

  def _queries(self) -> Arrays:
    """w_dq, w_uq and w_qr; rotated rows have the conjugate factors."""
    flat = rearrange(self.query[..., :-1], "N d e -> (N d) e")
    metric = self._metric(self.moments.moment)
    factors = low_rank.factorise(flat, self.config.d_q, inputs=metric)
    self._query_energy = low_rank.energy_kept(factors.spectrum, self.config.d_q)
    down, stretch = low_rank.follow(
      self.dense["query/kernel"].T, factors.down, metric
    )
    up = rearrange(
      factors.up @ stretch, "(N d) r -> r N d", N=self.config.num_heads
    )
    content, rotated = np.split(up, [self.config.d_nope], axis=-1)
    biases = np.split(self.query[..., -1], [self.config.d_nope], axis=-1)
    return {
      "w_dq/kernel": down.T,
      "query_norm/gain": np.full(self.config.d_q, self._length(down)),
      "w_uq/kernel": content.reshape(len(up), -1),
      "w_uq/bias": biases[0].reshape(-1),
      "w_qr/kernel": rotated.reshape(len(up), -1),
      "w_qr/bias": biases[1].reshape(-1),
    }

  def _length(self, down: Float[np.ndarray, "r E"]) -> float:
    """Mean rms of a latent, which an RMSNorm takes away."""
    moment = self.moments.moment
    square = np.einsum("re,ef,rf->", down, moment, down, optimize=True)
    return float(np.sqrt(square / len(down)))

  def report(self) -> LayerReport:
    """What `arrays` kept."""
    return LayerReport(
      method="spectral, activation-aware" if self.aware else "spectral",
      query_energy=self._query_energy,
      rope_energy=self.rope_energy,
      **self._energies,
    )

  def fitted(self, arrays: Arrays, x: moments_lib.Tokens) -> Arrays:
    """Up-projections fitted to the dense outputs on real tokens."""
    dense, heads = self.dense, self.config.num_heads

    def normed(name):
      y = moments_lib.project(dense, name, x)
      y = dense[f"{name}_norm/gain"] * y / moments_lib.rms(y)
      return rearrange(y, "n (N D) -> n N D", N=heads)

    def latent(down, gain):
      y = x @ arrays[down]
      scale = np.sqrt(np.mean(y**2, -1, keepdims=True) + layers.EPSILON)
      return arrays[gain] * y / scale

    key, query = normed("key")[..., self.content], normed("query")
    turned = _complex(query[..., self.rotated].swapaxes(1, 2))
    turned = _real(turned * self.factor.conj().T).swapaxes(1, 2)
    value = moments_lib.project(dense, "value", x)
    content = latent("w_dkv/kernel", "content_norm/gain")
    queries = latent("w_dq/kernel", "query_norm/gain")
    result = dict(arrays)
    result["w_uk/kernel"], _ = _regress(content, key, arrays["w_uk/kernel"])
    result["w_uv/kernel"], mean = _regress(
      content, value, arrays["w_uv/kernel"]
    )
    result["w_o/bias"] = dense["out/bias"] + mean @ dense["out/kernel"]
    for name, target in (
      ("w_uq", query[..., self.content]),
      ("w_qr", turned),
    ):
      result[f"{name}/kernel"], result[f"{name}/bias"] = _regress(
        queries, target, arrays[f"{name}/kernel"]
      )
    return result


def _regress(
  x: Float[np.ndarray, "n r"],
  y: Float[np.ndarray, "n ..."],
  start: Float[np.ndarray, "r out"],
) -> tuple[Float[np.ndarray, "r out"], Float[np.ndarray, "out"]]:
  """Least squares y ~ x W + b, drawn to `start` where tokens say little."""
  y = y.reshape(len(y), -1)
  mean_x, mean_y = x.mean(0), y.mean(0)
  x, rest = x - mean_x, y - mean_y - (x - mean_x) @ start
  gram = x.T @ x
  ridge = 1e-2 * np.trace(gram) / len(gram)
  weights = start + np.linalg.solve(
    gram + ridge * np.eye(len(gram)), x.T @ rest
  )
  return weights, mean_y - mean_x @ weights


def _complex(rows: Float[np.ndarray, "N d e"]) -> Complex[np.ndarray, "N p e"]:
  """Adjacent rows as real and imaginary parts."""
  return rows[:, 0::2] + 1j * rows[:, 1::2]


def _real(rows: Complex[np.ndarray, "N p e"]) -> Float[np.ndarray, "N d e"]:
  """Inverse of `_complex`."""
  pair = np.stack([rows.real, rows.imag], axis=2)
  return rearrange(pair, "N p two e -> N (p two) e")
