"""A sampler as far as a user chooses it."""

import dataclasses

from videomla_jax.diffusion import sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerChoice:
  """A sampler as far as a user chooses it; the model settles the rest.

  Attributes:
    kind: "few_step", "euler" or "unipc"; "auto" is "few_step" for distilled
      students and "euler" for all others.
    num_steps: Network calls per chunk of "euler" and "unipc".
    guidance: w in `uncond + w (cond - uncond)`; 0 runs no unconditional pass.
    shift: Warp of the noise schedule; 0 is the model's own.
  """

  kind: str = "auto"
  num_steps: int = 10
  guidance: float | int = 3.0
  shift: float | int = 0.0

  def resolve(self, *, shift: float | int, distilled: bool) -> sampling.Sampler:
    """Builds the sampler for a model.

    Args:
      shift: Warp of the noise schedule that the model was trained with.
      distilled: Whether the model was trained to need a few steps only.

    Raises:
      ValueError: If the kind is unknown or there is no step.
    """
    # Zero and "auto" stand for the model's own in every config.
    shift = self.shift or shift
    kind = self.kind
    if kind == "auto":
      kind = "few_step" if distilled else "euler"
    if kind == "few_step":
      return sampling.few_step(shift=shift)
    solvers = {"euler": sampling.euler, "unipc": sampling.unipc}
    if kind not in solvers:
      raise ValueError(
        f"sampler.kind={self.kind!r} is unknown; use one of "
        f"{['auto', *sorted(solvers), 'few_step']}."
      )
    # Without guidance the unconditional half of the batch is not run at all.
    guidance = float(self.guidance) or None
    return solvers[kind](self.num_steps, shift=shift, guidance=guidance)
