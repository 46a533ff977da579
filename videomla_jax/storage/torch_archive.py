"""The zip archive of a `.pth` file, checked before anything in it is read.

PyTorch stores every member as it is, one behind the other. Whatever lies in
another way is refused: compressed members could be a thousand times as large as
the file, and members that share bytes as often as there are members.
"""

from collections.abc import Iterator
import contextlib
import pathlib
import zipfile

from videomla_jax.storage import foreign_files
from videomla_jax.storage import ordinary_files
from videomla_jax.storage import printable

_MOST_MEMBERS = 2**17  # Wan2.1-T2V-14B has 1,100
_HEADER = 30  # bytes in front of a member, beside its name
_PIECE = 2**20
_SAVE_AGAIN = "save it again with torch.save, or as safetensors"


class TorchArchive:
  """Reads members of the archive, whole or in part."""

  def __init__(self, archive: zipfile.ZipFile, path: pathlib.Path) -> None:
    """Checks how the members lie; use `open_archive`.

    Args:
      archive: The zip file, which stays open as long as this is used.
      path: Its path, for messages.

    Raises:
      BadFileError: If a member is compressed, encrypted, there twice, or shares
        bytes with another one.
    """
    self.path = path
    self._archive = archive
    self._members = {info.filename: info for info in archive.infolist()}
    self._whole: set[str] = set()
    self._check(archive.infolist())

  def names(self) -> list[str]:
    """Returns the names of all members."""
    return list(self._members)

  def size(self, name: str) -> int:
    """Returns the bytes of a member.

    Args:
      name: Name of the member.

    Raises:
      ValueError: If there is no such member.
    """
    if name not in self._members:
      raise ValueError(f"its member {printable.text(name)!r} is missing")
    return self._members[name].file_size

  def read(self, name: str, *, start: int = 0, size: int = -1) -> bytes:
    """Reads bytes of a member, whose checksum is compared at the first time.

    Args:
      name: Name of the member.
      start: First byte.
      size: Number of bytes; all that follow by default.

    Raises:
      BadFileError: If the member is damaged.
    """
    with foreign_files.reading(self.path):
      total = self.size(name)
      size = total - start if size < 0 else size
      info = self._members[name]
      if (start, size) == (0, total):
        data = self._archive.read(info)
      else:
        # A part has no checksum of its own, and small views of one large
        # storage must not read all of it every time.
        self._check_whole(info)
        with self._archive.open(info) as member:
          member.seek(start)
          data = member.read(size)
      if len(data) != size:
        raise EOFError("it ends too early")
      return data

  def _check_whole(self, info: zipfile.ZipInfo) -> None:
    """Reads a member piece by piece, which compares its checksum."""
    if info.filename not in self._whole:
      with self._archive.open(info) as member:
        while member.read(_PIECE):
          pass
      self._whole.add(info.filename)

  def _check(self, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > _MOST_MEMBERS:
      self._refuse(f"has {len(members)} members", _SAVE_AGAIN)
    if len(self._members) != len(members):
      self._refuse("has two members of one name", foreign_files.DOWNLOAD)
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
      if info.flag_bits & 1:
        self._refuse("is encrypted", "decrypt it first")
      if info.compress_type != zipfile.ZIP_STORED:
        self._refuse("has compressed members", _SAVE_AGAIN)
      if info.compress_size != info.file_size or info.header_offset < end:
        self._refuse("has members that overlap", foreign_files.DOWNLOAD)
      end = info.header_offset + _HEADER + info.compress_size

  def _refuse(self, what: str, way_out: str) -> None:
    raise foreign_files.BadFileError(
      f"source={str(self.path)!r} {what}; {way_out}."
    )


@contextlib.contextmanager
def open_archive(path: pathlib.Path) -> Iterator[TorchArchive]:
  """Opens the zip archive of a `.pth` file.

  Args:
    path: The file.

  Yields:
    The archive, whose members are as PyTorch writes them.

  Raises:
    BadFileError: If the file is no archive of this kind.
  """
  foreign_files.check_kind(path)
  with contextlib.ExitStack() as stack:
    with foreign_files.reading(path):
      _check_age(path)
      archive = stack.enter_context(zipfile.ZipFile(path))
    yield TorchArchive(archive, path)


def _check_age(path: pathlib.Path) -> None:
  """Refuses files of PyTorch before 1.6, which are bare pickles."""
  with ordinary_files.open_file(path) as file:
    old = file.read(1) == b"\x80"
  if old:
    raise foreign_files.BadFileError(
      f"source={str(path)!r} is an old kind of pickle and no archive; load it "
      "with PyTorch and save it again, best as safetensors."
    )
