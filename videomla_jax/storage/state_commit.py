"""The moment at which a training state becomes one: listed, synced, renamed."""

import asyncio
import os
import pathlib
import shutil

from orbax.checkpoint import path as orbax_path

from videomla_jax.storage import atomic
from videomla_jax.storage import state_digests


class ListedPath(orbax_path.atomicity.AtomicRenameTemporaryPath):
  """Orbax's temporary folder, which gets its list of digests before its name.

  Orbax calls this in the first process, when all processes have written. A
  process that is killed here leaves a temporary folder, which Orbax removes
  when it opens the run again, and the states before it are untouched.
  """

  async def finalize(self) -> None:
    """Completes the folder, lists its files and gives it its name."""
    final = self.get_final()
    if not final.name.isdigit():
      # The parts of a state are completed in the same way.
      return await super().finalize()
    # Orbax adds to some files here and renames, in one go. So it renames to
    # another name that it takes for a temporary one.
    staged = final.with_name(f"{self._tmp_path.name}-listed")
    # A process may have been killed right here.
    await asyncio.to_thread(shutil.rmtree, staged, ignore_errors=True)
    self._final_path = staged
    try:
      await super().finalize()
    finally:
      self._final_path = final
    return await asyncio.to_thread(
      _commit, pathlib.Path(staged), pathlib.Path(final)
    )


def _commit(staged: pathlib.Path, final: pathlib.Path) -> None:
  """Lists the files of a state, and renames it when all are on disk."""
  state_digests.write(staged, int(final.name))
  atomic.sync_all(staged)
  os.rename(staged, final)
  atomic.sync(final.parent)
