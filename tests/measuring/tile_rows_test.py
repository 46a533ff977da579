"""Which tiles a record says are the fastest."""

from typing import Any

from videomla_jax.measuring import tile_rows

CALL = ("480p", "expanded", "forward")


def _lines(tiles: str, took: float | None, error: float) -> list[Any]:
  fields = dict(zip(("shape", "form", "direction"), CALL), tiles=tiles)
  if took is None:
    return [dict(fields, name=tile_rows.NAME, error="RuntimeError: spilled")]
  return [
    dict(fields, name=tile_rows.NAME, value=took, unit="us"),
    dict(fields, name=f"{tile_rows.NAME}_error", value=error, unit=""),
  ]


def test_the_fastest_that_is_right_wins() -> None:
  lines = [
    *_lines("a", 700.0, 0.002),
    *_lines("b", 600.0, 0.003),
    *_lines("wrong", 500.0, 0.7),
    *_lines("failed", None, 0.0),
  ]
  assert tile_rows.fastest(lines) == {CALL: "b"}


def test_a_later_line_replaces_an_earlier_one() -> None:
  lines = [*_lines("a", 700.0, 0.002), *_lines("b", 600.0, 0.002)]
  lines += _lines("b", 800.0, 0.002)
  assert tile_rows.fastest(lines) == {CALL: "a"}


def test_a_time_without_its_error_does_not_count() -> None:
  assert not tile_rows.fastest(_lines("a", 700.0, 0.002)[:1])
