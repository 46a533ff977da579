"""Tables say what is compared, and whether it may be."""

from typing import Any

from videomla_jax.ablations import page


def _lines(setting: str, values: list[float], **changes: Any) -> list[Any]:
  about = dict(
    start="a dense model",
    training_steps=100,
    batch=8,
    frames=12,
    data="digits",
    parameters=1000,
    cached_scalars=24,
    rank=15.5,
    rank_at_start=16.0,
    rank_highest=16.0,
    rank_entropy=9.0,
    rank_entropy_at_start=10.0,
  )
  return [
    about | dict(setting=setting, seed=seed, loss=loss) | changes
    for seed, loss in enumerate(values)
  ]


def _row(text: str, name: str) -> str:
  return next(x for x in text.splitlines() if x.startswith(f"| {name} |"))


def test_differences_are_paired_and_bold_if_they_exclude_zero() -> None:
  base = _lines("base", [0.10, 0.20, 0.30])
  worse = _lines("d_c=4", [0.11, 0.211, 0.309])
  same = _lines("d_c=8", [0.12, 0.19, 0.30])
  text = "\n".join(page.tables(base + worse + same))
  assert "**+0.0100 [" in _row(text, "d_c=4")
  assert "**" not in _row(text, "d_c=8")
  assert "0.2000 ± 0.1000 [" in _row(text, "base")
  assert "16.0 → 15.5 of 16" in _row(text, "base")
  assert "100 steps of 8 clips of 12 frames" in _row(text, "base")


def test_other_budgets_and_starts_are_said_in_the_row() -> None:
  base = _lines("base", [0.1, 0.2])
  longer = _lines("d_c=4", [0.1, 0.2], training_steps=200)
  elsewhere = _lines("random start", [0.1, 0.2], start="random")
  text = "\n".join(page.tables(base + longer + elsewhere))
  assert "other training" in _row(text, "d_c=4")
  assert "other start" in _row(text, "random start")
  assert "other" not in _row(text, "base")


def test_studies_without_a_comparison_are_left_out() -> None:
  assert not [*page.tables(_lines("base", [0.1, 0.2]))]
  # Without its first row a study has nothing to compare with.
  rows = _lines("d_c=4", [0.1, 0.2]) + _lines("d_c=8", [0.1, 0.3])
  assert not [*page.tables(rows)]


def test_later_lines_replace_and_single_seeds_have_no_interval() -> None:
  lines = _lines("base", [0.5]) + _lines("base", [0.4])
  lines += _lines("d_c=4", [0.6])
  text = "\n".join(page.tables(lines))
  assert "| 0.4000 |" in _row(text, "base")
  assert "| +0.2000 |" in _row(text, "d_c=4")
  assert page.summary(lines).startswith("base (n=1), held-out loss 0.4000")
