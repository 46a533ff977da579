"""Fonts for labels: Pillow's own, or one of this machine that has the letters.

Pillow's font has Latin letters. No font is shipped for the others, since one of
Chinese alone takes 16 MB; most systems have one.
"""

from collections.abc import Iterator
import functools
import os
import pathlib
import unicodedata

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FOLDERS = (
  *("/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts"),
  *("/Library/Fonts", "~/.local/share/fonts", "~/.fonts", "~/Library/Fonts"),
)
# Beginnings of file names of fonts with many letters, the best ones first.
_NAMES = (
  *("notosanscjk", "notosanssc", "sourcehansans", "wqy-", "droidsansfallback"),
  *("pingfang", "hiragino", "arial unicode", "unifont", "notosans-regular"),
  *("dejavusans.", "freesans."),
)
_MOST_FILES = 20_000  # looked at; a font folder has some hundreds


def choose(text: str, *, size: int) -> tuple[Font, str]:
  """Returns a font for a text, and the text as it can be drawn.

  Args:
    text: What is to be drawn.
    size: Height of a line in pixels.

  Returns:
    The font, and the text; letters that no font has are question marks.
  """
  text = "".join(x if x.isprintable() else " " for x in text)
  best: tuple[int, Font, str] | None = None
  for font in _fonts(size):
    drawn = "".join(_drawable(font, x) for x in text)
    lost = sum(a != b for a, b in zip(text, drawn, strict=True))
    if best is None or lost < best[0]:
      best = lost, font, drawn
    if not lost:
      break
  assert best is not None  # Pillow has a font of its own.
  return best[1:]


def _fonts(size: int) -> Iterator[Font]:
  """Yields Pillow's font, then those of this machine."""
  yield _own(size)
  for path in _files():
    try:
      yield _load(path, size)
    except OSError:
      continue  # It is damaged, or no font.


@functools.cache
def _own(size: int) -> Font:
  return ImageFont.load_default(size=size)


@functools.cache
def _load(path: str, size: int) -> Font:
  return ImageFont.truetype(path, size)


@functools.cache
def _files() -> tuple[str, ...]:
  """Lists the fonts with many letters that this machine has."""
  found: dict[str, list[str]] = {name: [] for name in _NAMES}
  left = _MOST_FILES
  for folder in _FOLDERS:
    for parent, _, files in os.walk(os.path.expanduser(folder)):
      left -= len(files)
      if left < 0:
        break
      for file in sorted(files):
        # The first beginning counts, so that no font is listed twice.
        name = next((n for n in _NAMES if file.lower().startswith(n)), None)
        if name and file.lower().endswith((".ttf", ".ttc", ".otf")):
          found[name].append(str(pathlib.Path(parent, file)))
  # One of each is enough: the others are its bold and italic sisters.
  return tuple(paths[0] for paths in found.values() if paths)


@functools.lru_cache(maxsize=4096)
def _drawable(font: Font, letter: str) -> str:
  """Returns a letter, a Latin one that is like it, or a question mark."""
  if letter.isspace() or _has(font, letter):
    return letter
  plain = unicodedata.normalize("NFKD", letter)[:1]
  return plain if plain != letter and _has(font, plain) else "?"


def _has(font: Font, letter: str) -> bool:
  """Says whether a font draws a letter and not its box for unknown ones."""
  # U+FFFF is no character, so that every font draws its box.
  box, mask = font.getmask("\uffff"), font.getmask(letter)
  return (mask.size, bytes(mask)) != (box.size, bytes(box))
