"""Options of judging mean something, or are refused."""

from typing import Any

import pytest

from videomla_jax.quality import judging


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(length="long"), "judging.length='long' is unknown"),
    (dict(dimensions=("taste",)), "judging.dimensions has 'taste'"),
    (dict(python="p"), "judging.python='p' has no effect without"),
    (
      dict(dimensions=("scene",), checkout="c"),
      "judging.checkout='c' has no effect with",
    ),
  ],
)
def test_options_that_mean_nothing_are_refused(
  changes: dict[str, Any], words: str
) -> None:
  with pytest.raises(ValueError, match=words):
    judging.Judging(**changes)
