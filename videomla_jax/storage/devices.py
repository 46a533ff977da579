"""Tells a missing device from a damaged file.

Reading arrays needs a device. Where there is none of the kind that is asked
for, JAX raises whatever comes first, which must not be taken for damage.
"""

import os

import jax


def check() -> None:
  """Refuses a platform that has no device here.

  Raises:
    NotImplementedError: If JAX finds no device.
  """
  try:
    jax.devices()
  # JAX asserts that a backend was found if the plug-in is not installed.
  except (RuntimeError, AssertionError) as error:
    said = f" ({str(error).splitlines()[0]})" if str(error) else ""
    raise NotImplementedError(
      "JAX finds no device of"
      f" JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}{said}; unset it,"
      " use JAX_PLATFORMS=cpu, or install the driver and the extra gpu."
    ) from error
