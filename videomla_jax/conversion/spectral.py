"""The spectral conversion of one attention layer: what it keeps and how.

docs/method.md, section 14; `latent_layer` says what is exact and what is not.
Dense rows have gains and the mean of 1 / rms folded in; the last column is the
bias. Everything is computed in float64.
"""

from collections.abc import Mapping
from typing import NamedTuple

from einops import rearrange
from jaxtyping import Complex, Float, Int
import numpy as np

from videomla_jax.conversion import low_rank
from videomla_jax.conversion import moments as moments_lib
from videomla_jax.models import attention
from videomla_jax.models import layers

Arrays = dict[str, np.ndarray]
Dense = Mapping[str, np.ndarray]

# Rows of a projection by head: channels d, inputs e with the bias as the last.
Rows = Float[np.ndarray, "N d e"]


class _Content(NamedTuple):
  """Content keys and values through one latent.

  Attributes:
    factors: Factors of the weighted stack [W_k content; W_v].
    metric: Metric of the inputs in which they are best.
    key: W_k content of all heads.
    value: W_v.
    up_key: Up-projection from the white latent to content keys.
    up_value: Up-projection from the white latent to values.
  """

  factors: low_rank.Factors
  metric: low_rank.Metric
  key: Float[np.ndarray, "k E"]
  value: Float[np.ndarray, "E E"]
  up_key: Float[np.ndarray, "k d_c"]
  up_value: Float[np.ndarray, "E d_c"]


class SpectralLayer:
  """One layer of latent attention that keeps what it can of a dense one.

  Attributes:
    arrays: Parameters of `LatentSelfAttention` in float64, from ranks cut in
      the metric of the inputs.
    kept: What was kept, as the fields of `latent_layer.LayerReport` say.
  """

  def __init__(
    self,
    dense: Dense,
    config: attention.AttentionConfig,
    moments: moments_lib.Moments,
    *,
    rotated: Int[np.ndarray, "d_r"],
    aware: bool,
  ) -> None:
    """Converts the layer by the dense weights and what is known of x.

    Args:
      dense: Parameters of the dense layer in float64.
      config: Sizes of the latent attention.
      moments: Moments of the layer's inputs.
      rotated: Channels of a dense head that keep their rotation.
      aware: Whether the moments are measured, so that ranks may be cut in their
        metric; predicted ones set constants only.
    """
    self.dense, self.config, self.moments = dense, config, moments
    self.aware = aware
    content = np.setdiff1d(np.arange(config.head_dim), rotated)
    query = self._rows("query", moments.query_scale)
    key = self._rows("key", moments.key_scale)
    self.key, self.key_rope = key[:, content], key[:, rotated]
    self.content_rows = query[:, content]
    mean = np.append(moments.mean, 1.0)
    self.moment = np.block(
      [[moments.moment, moments.mean[:, None]], [mean[None]]]
    )  # of x with a 1 appended
    self.factor, self.rope_rows, rope_energy = self._shared_key(
      query[:, rotated]
    )
    # A score is q times the conjugate of k, so the conjugate of a key's factor
    # goes to the query.
    aligned = _real(_complex(query[:, rotated]) * self.factor.conj()[..., None])
    self.query = np.concatenate([self.content_rows, aligned], axis=1)
    self.rotated, self.content = rotated, content
    self.kept: dict[str, float | int] = dict(rope_energy=rope_energy)
    self.arrays = self._arrays()

  def _rows(self, name: str, scale: float) -> Rows:
    """Returns a projection's rows by head, times gain and mean 1 / rms."""
    dense = self.dense
    gain = scale * dense[f"{name}_norm/gain"]
    kernel = dense[f"{name}/kernel"].T * gain[:, None]
    bias = (dense[f"{name}/bias"] * gain)[:, None]
    both = np.concatenate([kernel, bias], axis=1)
    return rearrange(both, "(N D) e -> N D e", N=self.config.num_heads)

  def _metric(self, moment: Float[np.ndarray, "e e"]) -> low_rank.Metric:
    return low_rank.metric(moment) if self.aware else low_rank.PLAIN

  def _shared_key(
    self, query_rope: Rows
  ) -> tuple[Complex[np.ndarray, "N p"], Float[np.ndarray, "d_r e"], float]:
    """Finds one complex key per rotated pair: docs/method.md, Eq. (14.4).

    Args:
      query_rope: Rotated rows of the queries; large ones weigh their heads.

    Returns:
      Factor by which each head's key is a multiple of the shared one; rows of
      the shared key; share of the energy that is kept.
    """
    query, key = _complex(query_rope), _complex(self.key_rope)
    energy = np.einsum(
      "npe,ef,npf->np", query, self.moment, query.conj(), optimize=True
    ).real
    # The bound keeps a head without queries from a division by zero.
    weight = np.sqrt(np.maximum(energy, 1e-30))[..., None]
    factor = np.empty(weight.shape[:2], np.complex128)
    rows = np.empty(key.shape[1:], np.complex128)
    kept = total = 0.0
    for pair in range(key.shape[1]):
      weighted = weight[:, pair] * key[:, pair]
      # This Gram matrix has a row per head. The one over inputs has the same
      # eigenvalues that are not zero, but it is far larger.
      gram = weighted @ self.moment @ weighted.conj().T
      values, vectors = np.linalg.eigh(gram)
      leading = vectors[:, -1]
      rows[pair] = leading.conj() @ weighted
      factor[:, pair] = leading / weight[:, pair, 0]
      kept, total = kept + values[-1], total + values.sum()
    # Key and factors share one free scale: factors get mean square 1.
    size = np.sqrt(np.mean(np.abs(factor) ** 2, axis=0))
    factor, rows = factor / size, rows * size[:, None]
    return factor, _real(rows[None])[0], float(kept / total)

  def _content(self) -> _Content:
    """Factorises the stack [W_k content; W_v]."""
    # The bias shifts all scores of a query alike, so content keys have none.
    key = self.key[..., :-1]
    flat = rearrange(key, "N d e -> (N d) e")
    value = self.dense["value/kernel"].T
    # Keys and values lose their mean exactly: the softmax does not see the
    # first, and W_o's bias takes the second. So the covariance is what counts.
    metric = self._metric(self.moments.covariance)
    stacked = np.concatenate([flat, value])
    if self.aware:
      weigh_key, weigh_value = self._importance(value)
      weighted = np.einsum("Ncd,Nde->Nce", weigh_key, key)
      stacked = np.concatenate(
        [rearrange(weighted, "N d e -> (N d) e"), weigh_value @ value]
      )
    factors = low_rank.factorise(stacked, self.config.d_c, inputs=metric)
    # The weights served to choose the latent; the up-projections are those of
    # the true rows, for the projection acts on inputs alone.
    spread = metric.spread(factors.down)
    return _Content(factors, metric, flat, value, flat @ spread, value @ spread)

  def _importance(
    self, value: Float[np.ndarray, "E E"]
  ) -> tuple[Float[np.ndarray, "N d d"], Float[np.ndarray, "E E"]]:
    """Returns row weights that measure errors in units of the layer's output.

    An error dk of a key changes a score by q . dk / sqrt(D), and a score moves
    the output by the spread of the head's values behind W_o.

    Args:
      value: W_v.

    Returns:
      Weights of the content keys of each head, and of the values.
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
    weigh_value = low_rank.metric(out.T @ out).root
    assert weigh_value is not None  # only that of `low_rank.PLAIN` is
    return np.stack(weigh_key), weigh_value

  def _arrays(self) -> Arrays:
    """Returns all parameters of the latent layer and notes what they keep."""
    dense, sizes, content = self.dense, self.config, self._content()
    spectrum, metric = content.factors.spectrum, content.metric
    self.kept |= dict(
      content_energy=low_rank.energy_kept(spectrum, sizes.d_c),
      key_energy=metric.share(content.key, content.up_key),
      value_energy=metric.share(content.value, content.up_value),
      content_rank_99=low_rank.effective_rank(spectrum),
    )
    down, stretch = low_rank.follow(
      dense["key/kernel"].T, content.factors.down, metric
    )
    length = self._length(down)
    up_key, up_value = content.up_key @ stretch, content.up_value @ stretch
    # What the values lose of the inputs' mean is a constant, which W_o's bias
    # gives back.
    mean = self.moments.mean
    offset = dense["value/bias"] + (content.value - up_value @ down) @ mean
    return {
      "w_dkv/kernel": down.T,
      # The RMSNorm makes every latent equally long. Its gain gives back the
      # mean length, for which the up-projections were made.
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
    """Returns w_dq, w_uq and w_qr, from rows aligned with the shared key."""
    flat = rearrange(self.query[..., :-1], "N d e -> (N d) e")
    # Queries keep their mean, so here the second moment counts.
    metric = self._metric(self.moments.moment)
    factors = low_rank.factorise(flat, self.config.d_q, inputs=metric)
    self.kept["query_energy"] = low_rank.energy_kept(
      factors.spectrum, self.config.d_q
    )
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
    """Returns the mean rms of a latent, which its RMSNorm divides by."""
    moment = self.moments.moment
    square = np.einsum("re,ef,rf->", down, moment, down, optimize=True)
    return float(np.sqrt(square / len(down)))

  def fitted(self, x: moments_lib.Tokens) -> Arrays:
    """Fits the up-projections to the dense outputs.

    docs/method.md, section 14.6.

    Args:
      x: Real inputs of the layer in float64.

    Returns:
      All parameters, the fitted ones among them.
    """
    arrays, dense, heads = self.arrays, self.dense, self.config.num_heads

    def normed(name: str) -> Float[np.ndarray, "n N D"]:
      y = moments_lib.project(dense, name, x)
      y = dense[f"{name}_norm/gain"] * y / moments_lib.rms(y)
      return rearrange(y, "n (N D) -> n N D", N=heads)

    def latent(down: str, gain: str) -> Float[np.ndarray, "n r"]:
      y = x @ arrays[down]
      scale = np.sqrt(np.mean(y**2, -1, keepdims=True) + layers.EPSILON)
      return arrays[gain] * y / scale

    # The targets are the dense layer's own outputs, divided by the true rms of
    # each token instead of its mean.
    key, query = normed("key")[..., self.content], normed("query")
    aligned = _complex(query[..., self.rotated].swapaxes(1, 2))
    aligned = _real(aligned * self.factor.conj().T).swapaxes(1, 2)
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
      ("w_qr", aligned),
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
  """Fits y ~ x W + b by least squares with a ridge around given weights.

  Args:
    x: Latents of the tokens.
    y: What should come out of them.
    start: Weights that the ridge draws to where the tokens say little.

  Returns:
    W and b.
  """
  y = y.reshape(len(y), -1)
  # Without means the bias does not take part in the fit.
  mean_x, mean_y = x.mean(0), y.mean(0)
  x, rest = x - mean_x, y - mean_y - (x - mean_x) @ start
  gram = x.T @ x
  # The ridge is a hundredth of the mean variance, so that directions that the
  # tokens hardly show keep the weights that they have.
  ridge = 1e-2 * np.trace(gram) / len(gram)
  weights = start + np.linalg.solve(
    gram + ridge * np.eye(len(gram)), x.T @ rest
  )
  return weights, mean_y - mean_x @ weights


def _complex(rows: Float[np.ndarray, "N d e"]) -> Complex[np.ndarray, "N p e"]:
  """Takes adjacent rows as real and imaginary parts."""
  return rows[:, 0::2] + 1j * rows[:, 1::2]


def _real(rows: Complex[np.ndarray, "N p e"]) -> Float[np.ndarray, "N d e"]:
  """Puts real and imaginary parts back into adjacent rows."""
  pair = np.stack([rows.real, rows.imag], axis=2)
  return rearrange(pair, "N p two e -> N (p two) e")
