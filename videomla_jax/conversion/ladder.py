"""The ladder of frequencies of a checkpoint, which its tensors do not tell."""

import dataclasses

from videomla_jax.conversion.names import detect
from videomla_jax.models import attention
from videomla_jax.models import wan_config


def settle(
  network: detect.Network, asked: str, *, must_be_told: bool, written: str = ""
) -> detect.Network:
  """Returns a network with the ladder that was asked for.

  Args:
    network: A network of another project's file, told from names and shapes.
    asked: `rope_ladder` as the user gave it; empty if it was not given.
    must_be_told: Whether the file has the authors' early layout, which does not
      tell it, and somebody will need it.
    written: The ladder that the file itself names, as our own exports do.

  Raises:
    ValueError: If the ladder must be given and is not, or contradicts the file.
  """
  if not is_latent(network):
    return network
  if must_be_told and not asked:
    raise ValueError(
      "source is in VideoMLA's early layout, whose tensors do not tell the "
      "frequencies of its positional key; give --rope_ladder=fresh, which its "
      "code had, or --rope_ladder=wan, which its paper describes."
    )
  if written not in ("", *attention.LADDERS):
    raise ValueError(
      "source names a rope_ladder that is unknown here; use the version that "
      "wrote it."
    )
  if asked and written and asked != written:
    raise ValueError(
      f"source says that its rope_ladder is {written!r}; leave "
      f"--rope_ladder={asked} out."
    )
  config = network.config
  assert isinstance(config, wan_config.WanConfig)
  sizes = dataclasses.replace(
    config.attention, rope_ladder=asked or written or "wan"
  )
  return detect.network_of(dataclasses.replace(config, attention=sizes))


def check_same(network: detect.Network, asked: str) -> None:
  """Refuses another ladder than a model folder has.

  Args:
    network: What the folder holds.
    asked: `rope_ladder` as the user gave it; empty if it was not given.

  Raises:
    ValueError: If they differ.
  """
  if asked and is_latent(network) and asked != of(network):
    raise ValueError(
      f"source is a model folder whose rope_ladder is {of(network)!r}; leave "
      f"--rope_ladder={asked} out, or convert the original file again."
    )


def check_latent(network: detect.Network, asked: str) -> None:
  """Refuses a ladder for a network that has no place for it.

  Args:
    network: Any network.
    asked: `rope_ladder` as the user gave it.

  Raises:
    ValueError: If the network has no latent attention.
  """
  if not is_latent(network):
    raise ValueError(
      f"--rope_ladder={asked} is of latent attention, but the source is a "
      f"{network.architecture!r} without it; leave it out."
    )


def is_latent(network: detect.Network) -> bool:
  """Tells whether a network has latent attention."""
  config = network.config
  return (
    isinstance(config, wan_config.WanConfig)
    and config.attention.kind == "latent"
  )


def of(network: detect.Network) -> str:
  """Returns the ladder of a network; empty if it has no latent attention."""
  if not is_latent(network):
    return ""
  assert isinstance(network.config, wan_config.WanConfig)
  return network.config.attention.rope_ladder
