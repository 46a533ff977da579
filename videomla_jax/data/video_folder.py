"""Finds videos below a folder, by walking through it once.

Only names that the walk met are ever opened, so no list of videos can lead out
of the folder or to a pipe or a device.
"""

import os
import pathlib
import re
import stat

from videomla_jax.storage import ordinary_files

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".mpg", ".m4v")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".zst", ".7z", ".rar")
_PART = re.compile(r"_part[a-z0-9]+$")  # of an archive cut into pieces
_MAX_FOUND = 10_000
_OUTSIDE = "video is not below the folder of videos"
_CLOSED = "folder cannot be listed"
NO_UTF_8 = "name is not in UTF-8"


class VideoFolder:
  """What lies below a folder of videos.

  Attributes:
    root: The folder.
    files: Ordinary files, by path below the folder; links count as what they
      lead to.
    unusable: Reason by path for what is no file, or cannot be listed.
    archives: Files that are to be unpacked, such as parts of OpenVid-1M.
  """

  def __init__(self, root: str | os.PathLike[str]) -> None:
    """Walks through a folder.

    Args:
      root: The folder.

    Raises:
      ValueError: If it is no folder.
    """
    self.root = pathlib.Path(root)
    if not self.root.is_dir():
      raise ValueError(
        f"videos={str(root)!r} is no folder; give the folder of the videos."
      )
    self._absolute = os.path.abspath(self.root)
    self.files: set[str] = set()
    self.unusable: dict[str, str] = {}
    self.archives: list[str] = []
    self._linked: list[str] = []  # folders behind links, which are not walked
    self._by_name: dict[str, list[str]] = {}
    self._found: dict[str, str | ordinary_files.BadFile | None] = {}
    self._walk()

  def videos(self) -> list[str]:
    """Lists what has the name of a video and can be opened, in order."""
    found = [path for path in self.files if is_video(path)]
    return sorted(found, key=lambda path: path.split("/"))

  def find(self, name: str) -> str | None:
    """Returns the path of a video as a table calls it, None if there is none.

    That is the path below the folder. Data sets come in parts, so the last
    components of the path are enough if one file alone has them, and so is a
    name without its ending.

    Args:
      name: Path below the folder, with or without the ending, or its end.

    Raises:
      BadFile: If the name leads out of the folder or is no single file.
    """
    # Most lists call most videos by their whole path.
    if name in self.files:
      return name
    if name not in self._found:
      # Rows are often segments of one video; a list may not fill the memory.
      if len(self._found) >= _MAX_FOUND:
        self._found.clear()
      try:
        self._found[name] = self._search(name)
      except ordinary_files.BadFile as error:
        self._found[name] = error
    found = self._found[name]
    if isinstance(found, ordinary_files.BadFile):
      raise found.with_traceback(None)
    return found

  def _search(self, name: str) -> str | None:
    """Looks for a name that is no whole path; see `find`."""
    name = self._inside(name)
    # A name such as `clip.0` has no ending that is one of a video.
    wanted = [name]
    if not is_video(name):
      wanted += [name + suffix for suffix in SUFFIXES]
    for path in wanted:
      if path in self.files or self._is_behind_link(path):
        return path
      if path in self.unusable:
        raise ordinary_files.BadFile(self.unusable[path])
    found = [path for end in wanted for path in self._ending_in(end)]
    if len(found) > 1:
      raise ordinary_files.BadFile(
        "video is there more than once in subfolders"
      )
    return found[0] if found else None

  def _inside(self, name: str) -> str:
    """Returns a path below the folder; a list of videos may be anybody's."""
    if "\0" in name or "://" in name or not _is_utf_8(name):
      raise ordinary_files.BadFile("video is an address or no path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/"):
      above = [part for part in self._absolute.split("/") if part]
      if parts[: len(above)] != above or len(parts) == len(above):
        raise ordinary_files.BadFile(_OUTSIDE)
      parts = parts[len(above) :]
    if ".." in parts:
      raise ordinary_files.BadFile(_OUTSIDE)
    return "/".join(parts)

  def _is_behind_link(self, path: str) -> bool:
    """Says whether a path is that of a file in a folder behind a link."""
    if not any(path.startswith(folder + "/") for folder in self._linked):
      return False
    try:
      return stat.S_ISREG(os.stat(self.root / path).st_mode)
    except (OSError, ValueError):
      return False

  def _ending_in(self, end: str) -> list[str]:
    """Lists the files whose path ends in some components."""
    if not self._by_name:
      for path in self.files:
        self._by_name.setdefault(os.path.basename(path), []).append(path)
    paths = self._by_name.get(os.path.basename(end), ())
    return [path for path in paths if path.endswith("/" + end)]

  def _walk(self) -> None:
    folders = [""]
    while folders:
      folder = folders.pop()
      try:
        with os.scandir(self.root / folder) as entries:
          for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
              folders.append(path)
            else:
              self._note(path, entry)
      except OSError as error:
        self.unusable[folder or "."] = f"{_CLOSED} ({error.strerror})"

  def _note(self, path: str, entry: os.DirEntry[str]) -> None:
    """Files one entry that is no folder itself."""
    if not _is_utf_8(path):
      if is_video(path):
        shown = path.encode("utf-8", "surrogateescape").decode(
          "utf-8", "replace"
        )
        self.unusable[shown] = NO_UTF_8
      return
    try:
      if entry.is_file():
        self.files.add(path)
        if path.lower().endswith(_ARCHIVES) or _PART.search(path):
          self.archives.append(path)
        return
      if entry.is_dir():  # behind a link: it may lead in a circle
        self._linked.append(path)
        return
      broken = entry.is_symlink() and not os.path.exists(self.root / path)
      self.unusable[path] = (
        "is a broken link" if broken else "is no ordinary file"
      )
    except OSError as error:  # links in a circle
      self.unusable[path] = f"cannot be opened ({error.strerror})"


def is_folder_reason(reason: str) -> bool:
  """Says whether a reason of `VideoFolder.unusable` is about a folder.

  Args:
    reason: The reason.
  """
  return reason.startswith(_CLOSED)


def is_video(path: str) -> bool:
  """Says whether a visible file is called like a video.

  Args:
    path: Its path.
  """
  name = os.path.basename(path)
  return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _is_utf_8(path: str) -> bool:
  try:
    path.encode()
  except UnicodeEncodeError:
    return False
  return True
