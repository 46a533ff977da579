"""Tests of fonts for labels, with fonts that a test controls."""

from PIL import ImageFont
import pytest

from videomla_jax.generation import fonts


@pytest.fixture(autouse=True)
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
  """A machine without any fonts."""
  monkeypatch.setattr(fonts, "_files", lambda: ())


@pytest.mark.parametrize(
  ("text", "drawn"),
  [
    ("a red fox, 100 %", "a red fox, 100 %"),
    ("el zorro rápido: sí", "el zorro rapido: si"),
    ("一只狐狸 fox", "???? fox"),
    ("a\tb\x1b[31m", "a b [31m"),
  ],
)
def test_letters_that_no_font_has_are_question_marks(
  text: str, drawn: str
) -> None:
  assert fonts.choose(text, size=12)[1] == drawn


def test_a_font_of_the_machine_is_taken_where_it_has_more_letters(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  own = fonts.choose("狐", size=12)[0]

  class Chinese(ImageFont.ImageFont):
    def getmask(self, letter: str):
      return Mask(b"box" if letter == "\uffff" else letter.encode())

  class Mask(bytes):
    size = (9, 9)

  better = Chinese()
  monkeypatch.setattr(fonts, "_files", lambda: ("damaged", "chinese"))

  def load(path: str, size: int):
    if path == "damaged":
      raise OSError
    return better

  monkeypatch.setattr(fonts, "_load", load)
  assert fonts.choose("狐 fox", size=12) == (better, "狐 fox")
  # Pillow's own is enough for Latin letters.
  assert fonts.choose("fox", size=12)[0] is own
