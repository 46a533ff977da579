"""A lower rank at the same size of the latent, forced after every step.

The operator of keys and values of a latent layer is M = U diag(g) W_dkv
(docs/method.md, section 16.1), U = [W_uk; W_uv]. Its best approximation of rank
r is M V Vᵀ, where V holds the r leading right singular vectors. They lie in the
row space of W_dkv, so that W_dkv V Vᵀ in its place gives the approximation, and
nothing else of the network changes:

  W_dkvᵀ = Q R,   A = U diag(g) Rᵀ,   A = X S Yᵀ,   W_dkvᵀ <- Q Y_r Y_rᵀ R   (1)

With d_c columns, A has small singular vectors: eigenvectors of AᵀA.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videomla_jax.models import attention
from videomla_jax.training import inputs


def project[N: inputs.Network](model: N, rank: Int[Array, ""] | int) -> N:
  """Returns a network whose layers make keys and values of at most this rank.

  Args:
    model: A network with latent attention.
    rank: Highest rank, 1 to d_c; as an array, one program serves all ranks.
  """
  graph, state = nnx.split(model)
  copy = nnx.merge(graph, state)  # The model of the caller stays as it is.
  layers = inputs.dit(copy).blocks.self_attention
  assert isinstance(layers, attention.LatentSelfAttention)
  cut = jax.vmap(_cut, in_axes=(0, 0, 0, 0, None))
  layers.w_dkv.kernel[...] = cut(
    layers.w_dkv.kernel[...],
    layers.w_uk.kernel[...],
    layers.w_uv.kernel[...],
    layers.content_norm.gain[...],
    jnp.asarray(rank),
  )
  return copy


def _cut(
  w_dkv: Float[Array, "E d_c"],
  w_uk: Float[Array, "d_c k"],
  w_uv: Float[Array, "d_c v"],
  gain: Float[Array, "d_c"],
  rank: Int[Array, ""],
) -> Float[Array, "E d_c"]:
  """Computes Eq. (1) for one layer; kernels are `[in, out]`."""
  q, r = jnp.linalg.qr(w_dkv)
  up = jnp.concatenate([w_uk, w_uv], axis=1).T * gain
  a = up @ r.T
  _, vectors = jnp.linalg.eigh(a.T @ a)
  # `eigh` sorts eigenvalues upwards, so the leading vectors are the last.
  leads = jnp.arange(len(gain)) >= len(gain) - rank
  kept = vectors * leads
  return q @ (kept @ (kept.T @ r))
