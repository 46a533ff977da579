"""Puts configs/ into wheels; everything else stands in pyproject.toml.

The folder stays at the top of the repository, where users read and edit it.
Wheels hold it as `videomla_jax/configs`, where `--config=configs/NAME.py` is
looked up when the current folder has no such file. Editable installs need no
copy: there the folder lies beside the package.
"""

import pathlib

import setuptools
from setuptools.command import build_py

CONFIGS = pathlib.Path("configs")


class BuildWithConfigs(build_py.build_py):
  """Builds the package and copies the configs into it."""

  def run(self) -> None:
    """Builds as usual, then copies."""
    super().run()
    if not self.editable_mode:
      for source, target in self._copies().items():
        self.mkpath(str(pathlib.Path(target).parent))
        self.copy_file(source, target)

  def get_outputs(self, include_bytecode: bool = True) -> list[str]:
    """Returns all files that a build writes."""
    return [*super().get_outputs(include_bytecode), *self._copies().values()]

  def get_output_mapping(self) -> dict[str, str]:
    """Returns the source of each file that a build writes."""
    copies = {target: source for source, target in self._copies().items()}
    return {**super().get_output_mapping(), **copies}

  def _copies(self) -> dict[str, str]:
    if self.editable_mode:
      return {}
    folder = pathlib.Path(self.build_lib, "videomla_jax", "configs")
    return {str(x): str(folder / x.name) for x in sorted(CONFIGS.glob("*.py"))}


setuptools.setup(cmdclass={"build_py": BuildWithConfigs})
