"""Refuses options that the model at hand would ignore.

An option that is accepted changes the result, and a report states it; anything
else would look like a result of what was asked.
"""

from collections.abc import Mapping
import dataclasses

from videomla_jax.generation import networks as networks_lib


def refuse(
  values: Mapping[str, object], *, why: str, way_out: str = "leave it out"
) -> None:
  """Refuses values that were set; empty ones and zeros were not.

  Args:
    values: Values by the name of their key.
    why: Whose options they are not, as it follows "has no effect".
    way_out: What to do instead.

  Raises:
    ValueError: If one was set.
  """
  for name, value in values.items():
    if value:
      raise ValueError(f"{name}={value!r} has no effect {why}; {way_out}.")


def refuse_of_releases(
  networks: networks_lib.Networks, *, pixels: tuple[int, int]
) -> None:
  """Refuses what a model of the small world cannot use.

  Args:
    networks: What is opened.
    pixels: Height and width that the model was trained on.

  Raises:
    ValueError: If an option of released networks was set.
  """
  why = f"on checkpoint={networks.checkpoint!r}, a small model"
  refuse(
    dict(
      embeddings=networks.embeddings,
      half_weights=networks.half_weights,
      spare_memory=networks.spare_memory,
      layers_apart=networks.layers_apart,
      vae_tile=networks.vae_tile,
      vae_dtype=networks.vae_dtype.removeprefix("float32"),
      decoder=networks.decoder,
      weights_seed=networks.weights_seed,
    ),
    why=why,
  )
  for name, own in zip(("height", "width"), pixels, strict=True):
    asked = getattr(networks, name)
    if asked not in (0, own):
      raise ValueError(
        f"{name}={asked} has no effect {why} of {own} pixels; leave it out."
      )


def refuse_of_random(networks: networks_lib.Networks) -> None:
  """Refuses what networks with random weights cannot use.

  Args:
    networks: What is opened.

  Raises:
    ValueError: If files or a precision of weights were named.
  """
  parts = dataclasses.asdict(networks.parts)
  refuse(
    {f"parts.{name}": path for name, path in parts.items()}
    | dict(embeddings=networks.embeddings, half_weights=networks.half_weights),
    why=f"on checkpoint={networks.checkpoint!r}, whose weights are random",
  )
