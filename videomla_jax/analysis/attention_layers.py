"""Reads self-attentions of any network, one layer at a time."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import pathlib
from typing import NamedTuple

import numpy as np

from videomla_jax.conversion import components
from videomla_jax.conversion import release
from videomla_jax.conversion import to_latent
from videomla_jax.conversion.names import dit as dit_names
from videomla_jax.models import wan_config
from videomla_jax.small_world import model as small_model
from videomla_jax.storage import model_folder

type Parameters = Mapping[str, np.ndarray]


class Layers(NamedTuple):
  """The self-attentions of a network.

  Attributes:
    config: Sizes of the network.
    read: Returns the parameters of layer n, names with slashes.
  """

  config: wan_config.WanConfig
  read: Callable[[int], Parameters]


@contextlib.contextmanager
def open_layers(
  path: str | os.PathLike[str],
  *,
  select: str = "",
  num_heads: int | None = None,
) -> Iterator[Layers]:
  """Opens a network without loading it.

  Args:
    path: Small model or `shipped:NAME`, folder of `convert`, release of Wan, or
      file of a DiT.
    select: Name of the network inside a training checkpoint.
    num_heads: Heads of a DiT in a file whose shapes do not tell them.

  Yields:
    Its layers. Weights of a release are read when they are asked for.

  Raises:
    ValueError: If it is missing, damaged, or no DiT.
  """
  folder = small_model.checkpoint_path(path)
  if small_model.is_model(folder):
    dit = small_model.load(folder).dit
    yield Layers(dit.config, lambda n: to_latent.layer_parameters(dit, n))
    return
  found = components.choose(folder, frozenset({"dit"}))
  with release.open_network(
    found.get("dit", folder),
    select=select,
    num_heads=num_heads,
    # Singular values know of no positions.
    rotates=False,
  ) as (
    network,
    tensors,
  ):
    config = network.config
    if not isinstance(config, wan_config.WanConfig):
      raise ValueError(
        f"checkpoint={str(path)!r} is a {network.architecture!r}; give a DiT."
      )

    def read(n: int) -> Parameters:
      return {
        tensor.path.removeprefix(to_latent.SELF_ATTENTION): np.asarray(
          tensor.layout.to_ours(tensors[name].read()), np.float64
        )
        for name, tensor in dit_names.self_attention(config, n).items()
      }

    yield Layers(config, read)


def is_folder_of_ours(path: str | os.PathLike[str]) -> bool:
  """Tells whether a path is a model folder, which says all of its sizes.

  Args:
    path: As in `open_layers`.
  """
  return model_folder.is_model_folder(small_model.checkpoint_path(path))


def name_of(path: str | os.PathLike[str]) -> str:
  """Returns the last word of a path, which tables and figures show.

  Args:
    path: As in `open_layers`.
  """
  text = str(path).removeprefix(small_model.SHIPPED)
  parts = [p for p in pathlib.PurePath(text).parts if p not in ("dit", "/")]
  return parts[-1] if parts else text
