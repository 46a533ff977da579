"""VideoMLA in JAX: minute-long video through a latent ring-buffer cache.

  model = videomla_jax.load("shipped:small_student")
  video = videomla_jax.generate(model, "a slow three moving horizontally")
  print(videomla_jax.save(video, "out"))

The modules behind these names are imported when a name is first asked for:
`import videomla_jax` alone does not import JAX.
"""

import importlib
from typing import TYPE_CHECKING

# Type checkers do not see through `__getattr__`; they read these imports.
if TYPE_CHECKING:
  from videomla_jax.generation.library import generate
  from videomla_jax.generation.library import load
  from videomla_jax.generation.library import Model
  from videomla_jax.generation.library import stream
  from videomla_jax.generation.video import save
  from videomla_jax.generation.video import Video

__version__ = "0.1.0"
__all__ = ["Model", "Video", "generate", "load", "save", "stream"]

_IN_VIDEO = ("Video", "save")  # The other names are in library.py.


def __getattr__(name: str) -> object:
  """Imports an exported name when it is first used (PEP 562)."""
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = "video" if name in _IN_VIDEO else "library"
  return getattr(
    importlib.import_module(f"{__name__}.generation.{module}"), name
  )


def __dir__() -> list[str]:
  """Lists the exported names, imported or not."""
  return sorted({*globals(), *__all__})
