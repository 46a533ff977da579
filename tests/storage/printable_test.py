"""Tests of text from files that is shown."""

import pytest

from videomla_jax.storage import printable


@pytest.mark.parametrize(
  ("given", "shown"),
  [
    ("plain", "plain"),
    ("two\n lines\t", "two lines"),
    ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    ("a\0b", r"a\x00b"),
    ("\u202egpj.exe", r"\u202egpj.exe"),
    ("\ud800", r"\ud800"),
    ("größe \U0001f98a", "größe \U0001f98a"),
    (7, "7"),
    (ValueError("bad \x9b"), r"bad \x9b"),
  ],
)
def test_controls_are_escaped(given: object, shown: str) -> None:
  assert printable.text(given) == shown
  assert printable.text(given).isprintable()


@pytest.mark.parametrize("letter", ["x", "\0", "\U000e0001"])
def test_long_texts_are_cut_in_the_middle(letter: str) -> None:
  shown = printable.text("begin" + letter * 10**7 + "end")
  assert len(shown) <= 80
  assert shown.startswith("begin") and shown.endswith("end") and "..." in shown


def test_names_beyond_the_first_are_counted() -> None:
  assert printable.names(["a", "b"]) == "a, b"
  assert printable.names(map(str, range(9)), most=2) == "0, 1 and 7 more"
