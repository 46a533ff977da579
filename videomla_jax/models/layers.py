"""Layers that every part of the DiT shares."""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from videomla_jax.ops import rope

EPSILON = 1e-6  # every norm of Wan


def linear(
  features_in: int, features_out: int, *, dtype, rngs: nnx.Rngs, bias=True
) -> nnx.Linear:
  """A Wan projection: Xavier-uniform weights, float32 master copy."""
  return nnx.Linear(
    features_in,
    features_out,
    use_bias=bias,
    dtype=dtype,
    param_dtype=jnp.float32,
    kernel_init=nnx.initializers.xavier_uniform(),
    rngs=rngs,
  )


class RMSNorm(nnx.Module):
  """x / rms(x) in float32, cast to the dtype of x, times a learned gain."""

  def __init__(self, features: int):
    self.gain = nnx.Param(jnp.ones((features,), jnp.float32))

  def __call__(self, x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """Normalises the last axis."""
    x32 = x.astype(jnp.float32)
    square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
    normed = (x32 * jax.lax.rsqrt(square + EPSILON)).astype(x.dtype)
    return normed * self.gain.astype(x.dtype)


def layer_norm(x: Float32[Array, "*B E"]) -> Float32[Array, "*B E"]:
  """LayerNorm without gain or bias, in float32."""
  centred = x - x.mean(-1, keepdims=True)
  variance = jnp.mean(centred * centred, -1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + EPSILON)


class AffineLayerNorm(nnx.Module):
  """LayerNorm with gain and bias, in float32: Wan's `norm3`."""

  def __init__(self, features: int):
    self.gain = nnx.Param(jnp.ones((features,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

  def __call__(self, x: Float32[Array, "*B E"]) -> Float32[Array, "*B E"]:
    """Normalises the last axis."""
    return layer_norm(x) * self.gain[...] + self.bias[...]


def sinusoid(
  timestep: Float32[Array, "*B"], *, dim: int
) -> Float32[Array, "*B {dim}"]:
  """Wan's time embedding of timesteps in 0..1000: cosines, then sines."""
  half = dim // 2
  frequency = rope.THETA ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = timestep[..., None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
