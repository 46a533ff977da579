"""What of videos is judged by VBench, as far as a user chooses it."""

import dataclasses

from videomla_jax.quality import paper
from videomla_jax.quality import scores
from videomla_jax.runtime import config_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging:
  """How videos are judged beyond the measures that need no weights.

  Attributes:
    length: "short" takes VBench, "30s" and "60s" take VBench-Long; it also says
      which table of the paper is shown.
    dimensions: Names of VBench's dimensions; none judges nothing.
    python: File of the Python interpreter that has the package `vbench`; empty
      is the one that runs this.
    checkout: Folder of a checkout of VBench, which VBench-Long needs: its wheel
      lacks files of it.
    results: Files of results (`NAME_eval_results.json`) that VBench wrote
      before, which are joined.
  """

  length: str = "short"
  dimensions: tuple[str, ...] = ()
  python: config_values.Path = ""
  checkout: config_values.Path = ""
  results: tuple[config_values.Path, ...] = ()

  def __post_init__(self) -> None:
    if self.length not in paper.LENGTHS:
      raise ValueError(
        f"judging.length={self.length!r} is unknown; use one of"
        f" {[*paper.LENGTHS]}."
      )
    # One empty text is what a key without any entry gives.
    for name in ("dimensions", "results"):
      kept = tuple(x for x in getattr(self, name) if x)
      object.__setattr__(self, name, kept)
    unknown = [x for x in self.dimensions if x not in scores.DIMENSIONS]
    if unknown:
      raise ValueError(
        f"judging.dimensions has {unknown[0]!r}, which VBench has not; use some"
        f" of {[*scores.DIMENSIONS]}."
      )
    for name in ("python", "checkout"):
      if getattr(self, name) and not self.dimensions:
        raise ValueError(
          f"judging.{name}={getattr(self, name)!r} has no effect without"
          " judging.dimensions; leave it out, or name dimensions."
        )
    if self.checkout and not self.is_long:
      raise ValueError(
        f"judging.checkout={self.checkout!r} has no effect with"
        " judging.length='short'; leave it out."
      )

  @property
  def is_long(self) -> bool:
    """Whether VBench-Long judges."""
    return self.length != "short"

  def earlier(self) -> list[tuple[str, dict[str, float]]]:
    """Reads the files of results; raises `ValueError` if one is none."""
    return [(x, scores.read_results(x)) for x in self.results]
