"""What a conversion knows about the inputs x of an attention layer.

docs/method.md, section 14.2. Without data, x is the output of a LayerNorm under
the block's modulation, so its moments follow from the weights alone. With data,
they are measured on tokens of real latents.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from videomla_jax.models import layers
from videomla_jax.models import wan_config
from videomla_jax.storage import atomic
from videomla_jax.storage import foreign_files
from videomla_jax.storage import ordinary_files

Dense = Mapping[str, np.ndarray]
Tokens = Float[np.ndarray, "n E"]


class Moments(NamedTuple):
  """Holds moments of a layer's inputs, and what its norms divide by.

  Attributes:
    mean: Mean of the inputs, E[x].
    moment: Second moment of the inputs, E[x x^T].
    query_scale: Mean of 1 / rms(W_q x + b_q), or an estimate of it.
    key_scale: Mean of 1 / rms(W_k x + b_k), or an estimate of it.
  """

  mean: Float[np.ndarray, "E"]
  moment: Float[np.ndarray, "E E"]
  query_scale: float
  key_scale: float

  @property
  def covariance(self) -> Float[np.ndarray, "E E"]:
    """Covariance of the inputs, E[x x^T] - E[x] E[x]^T."""
    return self.moment - np.outer(self.mean, self.mean)


def time_table(
  arrays: Mapping[str, np.ndarray], *, count: int = 16
) -> Float[np.ndarray, "t six E"]:
  """Returns a DiT's time projections at noise levels over the whole range.

  Args:
    arrays: Parameters of the time embedding and projection by name, such as
      "time_embed/into/kernel", matrices as `[in, out]`.
    count: Number of levels t.
  """
  freq_dim = len(arrays["time_embed/into/kernel"])
  # The levels are the middles of equal parts, since training hardly ever meets
  # the ends of the range.
  levels = np.float32(
    wan_config.MAX_TIMESTEP * (np.arange(count) + 0.5) / count
  )
  x = np.asarray(layers.sinusoid(jnp.asarray(levels), dim=freq_dim), np.float64)

  def linear(
    name: str, x: Float[np.ndarray, "t i"]
  ) -> Float[np.ndarray, "t o"]:
    return x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]

  def silu(x: Float[np.ndarray, "t e"]) -> Float[np.ndarray, "t e"]:
    return x / (1 + np.exp(-x))

  e = linear("time_embed/out", silu(linear("time_embed/into", x)))
  return linear("time_project", silu(e)).reshape(count, 6, -1)


def predicted(
  dense: Dense,
  shift: Float[np.ndarray, "t E"] | None = None,
  scale: Float[np.ndarray, "t E"] | None = None,
) -> Moments:
  """Returns moments of x = z (1 + scale) + shift, z of covariance I.

  docs/method.md, Eq. (14.2).

  Args:
    dense: Parameters of the layer, see `latent_layer.latent_layer`.
    shift: What the modulation adds at some timesteps t; zeros by default.
    scale: What it multiplies by, less 1; zeros by default.
  """
  width = len(dense["query/kernel"])
  zeros = np.zeros((1, width))
  shift = zeros if shift is None else np.asarray(shift, np.float64)
  scale = zeros if scale is None else np.asarray(scale, np.float64)
  moment = shift.T @ shift / len(shift)
  moment += np.diag(np.mean(np.square(1 + scale), axis=0))
  mean = shift.mean(0)

  def inverse_rms(name: str) -> float:
    kernel = np.asarray(dense[f"{name}/kernel"], np.float64)
    bias = np.asarray(dense[f"{name}/bias"], np.float64)
    # Without `optimize` NumPy loops over i, j and k together instead of
    # multiplying matrices.
    square = np.einsum("ij,ik,jk->", moment, kernel, kernel, optimize=True)
    square += 2 * bias @ (mean @ kernel) + bias @ bias
    # Moments do not tell E[1 / rms]. This is 1 / sqrt(E[rms^2]), which is at
    # most as large (Jensen's inequality).
    return float(np.sqrt(width / square))

  return Moments(mean, moment, inverse_rms("query"), inverse_rms("key"))


def measured(dense: Dense, tokens: Tokens) -> Moments:
  """Returns the moments of real inputs.

  Args:
    dense: Parameters of the layer, see `latent_layer.latent_layer`.
    tokens: Inputs that the layer gets.
  """
  x = np.asarray(tokens, np.float64)

  def inverse_rms(name: str) -> float:
    return float(np.mean(1 / rms(project(dense, name, x))))

  moment = x.T @ x / len(x)
  return Moments(x.mean(0), moment, inverse_rms("query"), inverse_rms("key"))


def project(dense: Dense, name: str, x: Tokens) -> Tokens:
  """Returns W x + b of a projection: "query", "key" or "value"."""
  return x @ dense[f"{name}/kernel"] + dense[f"{name}/bias"]


def rms(x: Tokens) -> Float[np.ndarray, "n 1"]:
  """Returns the root mean square of each row, over channels."""
  return np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True))


def save(path: str | os.PathLike[str], layers: Sequence[Tokens]) -> None:
  """Writes tokens of every layer in half precision, complete or not at all.

  Args:
    path: File to create or replace.
    layers: Tokens of each layer, see `calibration.collect`.
  """
  # Half precision suffices for a fit, and 30 layers of 8192 tokens at the width
  # of Wan2.1-T2V-1.3B are 0.75 GB in it.
  tensors = {str(i): x.astype(np.float16) for i, x in enumerate(layers)}
  with atomic.replacing(path) as temporary:
    safetensors_numpy.save_file(tensors, temporary)


def load(path: str | os.PathLike[str], layer: int) -> Tokens:
  """Reads the tokens of one layer.

  Args:
    path: File that `save` wrote.
    layer: Number of the layer, from 0.

  Raises:
    ValueError: If the file is missing, damaged or lacks the layer.
  """
  path, name = pathlib.Path(path), str(layer)
  with (
    foreign_files.reading(
      path,
      field="activations",
      way_out="write them with python -m videomla_jax.calibrate",
      also=(safetensors.SafetensorError,),
    ),
    # The library opens by path and would wait at a pipe.
    ordinary_files.open_file(path),
    safetensors.safe_open(path, framework="numpy") as file,
  ):
    if name in file.keys():  # noqa: SIM118, it is no dictionary
      return np.asarray(file.get_tensor(name), np.float64)
  raise ValueError(
    f"activations={str(path)!r} has no tokens of layer {layer}; write them "
    "with python -m videomla_jax.calibrate for this network."
  )
