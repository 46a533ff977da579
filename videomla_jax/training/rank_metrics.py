"""The rank that attention occupies, as scalars of a training run.

docs/method.md, section 16.2. What makes keys and values is taken from the
averaged model, and its singular values are computed on the host in float64.
"""

from jaxtyping import Array, Float
import numpy as np

from videomla_jax.analysis import operators
from videomla_jax.conversion import low_rank
from videomla_jax.storage import model_folder
from videomla_jax.storage import tree_names
from videomla_jax.training import inputs

_READ = ("key/kernel", "value/kernel", "w_dkv/kernel", "w_uk/kernel")
_READ += ("w_uv/kernel", "content_norm/gain")


def weights(model: inputs.Network) -> dict[str, Float[Array, "L ..."]]:
  """Returns the parameters that make keys and values, layers stacked.

  Args:
    model: A network with attention.
  """
  attention = inputs.dit(model).blocks.self_attention
  flat = tree_names.flat_dict(model_folder.model_arrays(attention))
  return {name: x for name, x in flat.items() if name in _READ}


def scalars(
  stacked: dict[str, Float[np.ndarray, "L ..."]],
) -> dict[str, float]:
  """Returns median, least and most of the layers' 99% ranks.

  The share is that of the median in the highest rank that there could be.
  Weights that are not finite have no rank, and nothing is returned.

  Args:
    stacked: What `weights` returns, in host memory.
  """
  if not all(np.isfinite(x).all() for x in stacked.values()):
    return {}
  count = len(next(iter(stacked.values())))
  found, highest = [], 1
  for n in range(count):
    operator = operators.operator_of({k: x[n] for k, x in stacked.items()})
    found.append(low_rank.effective_rank(operator.spectrum()))
    highest = operator.size
  median = float(np.median(found))
  return {
    "rank/median": median,
    "rank/least": float(min(found)),
    "rank/most": float(max(found)),
    "rank/share": median / highest,
  }
