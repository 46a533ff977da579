"""A sampler as far as a user chooses it."""

import dataclasses
from typing import Annotated

from videomla_jax.diffusion import sampling
from videomla_jax.runtime import config_values

_FEW_STEPS, _MANY_STEPS, _GUIDANCE = 4, 10, 3.0
_SOLVERS = {"euler": sampling.euler, "unipc": sampling.unipc}
KINDS = ("auto", *sorted(_SOLVERS), "few_step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerChoice:
  """A sampler as far as a user chooses it; the model settles the rest.

  Attributes:
    kind: "few_step", "euler" or "unipc"; "auto" is "few_step" for distilled
      students and "euler" for all others.
    num_steps: Network calls per chunk; None is 4 of "few_step", else 10.
    guidance: w in `uncond + w (cond - uncond)`; 0 runs no unconditional pass,
      None is 3. "few_step" has none, and refuses any but 0.
    shift: Warp of the noise schedule; 0 is the model's own.
    commit: What the cache keeps of a chunk: "clean" runs one more pass over the
      clean chunk, "last_pass" takes the last denoising pass, which is cheaper
      and not what models are trained for.
  """

  kind: str = "auto"
  num_steps: Annotated[int | None, config_values.Range(1, 1000)] = None
  guidance: Annotated[float | int | None, config_values.Range(-1000, 1000)] = (
    None
  )
  shift: Annotated[float | int, config_values.Range(0, 1000)] = 0.0
  commit: str = "clean"

  def __post_init__(self) -> None:
    if 0 < self.shift < 0.01:  # Levels would be too close to each other.
      raise ValueError(
        f"sampler.shift={self.shift} must be at least 0.01; use 5, or 0 for the"
        " model's own."
      )
    if self.commit not in sampling.COMMITS:
      raise ValueError(
        f"sampler.commit={self.commit!r} is unknown; use one of "
        f"{[*sampling.COMMITS]}."
      )

  def settle(self, *, shift: float | int, distilled: bool) -> "SamplerChoice":
    """Returns the choice with nothing left open, as a report states it.

    Args:
      shift: Warp of the noise schedule that the model was trained with.
      distilled: Whether the model was trained to need a few steps only.

    Raises:
      ValueError: If the kind is unknown, or guidance is asked of "few_step".
    """
    kind = self.kind
    if kind not in KINDS:
      raise ValueError(
        f"sampler.kind={self.kind!r} is unknown; use one of {[*KINDS]}."
      )
    if kind == "auto":
      kind = "few_step" if distilled else "euler"
    few, guidance = kind == "few_step", self.guidance
    if few and guidance:
      raise ValueError(
        f"sampler.guidance={guidance:g} has no effect on the sampler "
        "'few_step' of distilled models; leave it out, or use "
        "sampler.kind='euler'."
      )
    if guidance is None:
      guidance = 0.0 if few else _GUIDANCE
    return SamplerChoice(
      kind=kind,
      # A default of None and not 0: no number of steps is no mistake.
      num_steps=(_FEW_STEPS if few else _MANY_STEPS)
      if self.num_steps is None
      else self.num_steps,
      guidance=float(guidance),
      shift=self.shift or shift,
      commit=self.commit,
    )

  def resolve(self, *, shift: float | int, distilled: bool) -> sampling.Sampler:
    """Builds the sampler for a model.

    Args:
      shift: Warp of the noise schedule that the model was trained with.
      distilled: Whether the model was trained to need a few steps only.

    Raises:
      ValueError: If the kind is unknown, there is no step, or guidance is asked
        of "few_step".
    """
    own = self.settle(shift=shift, distilled=distilled)
    count = own.num_steps or 0
    if own.kind == "few_step":
      # Of four steps these are the times of training, and of two or one some of
      # them.
      steps = tuple(1000 * (count - i) / count for i in range(count))
      made = sampling.few_step(steps, shift=own.shift)
    else:
      # Without guidance the unconditional half of the batch is not run at all.
      made = _SOLVERS[own.kind](
        count, shift=own.shift, guidance=own.guidance or None
      )
    return dataclasses.replace(made, commit=own.commit)
