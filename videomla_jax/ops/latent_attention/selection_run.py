"""Runs attention by what `selection` says, or by what was named."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import Any, NamedTuple

from absl import logging
import jax
from jaxtyping import Array, PyTree

from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import selection
from videomla_jax.ops.latent_attention import selection_check
from videomla_jax.ops.latent_attention import types


class Decision(NamedTuple):
  """What computes a call.

  Attributes:
    option: Form, implementation and why.
    passed_over: Why others that come before it cannot.
  """

  option: selection.Option
  passed_over: tuple[str, ...] = ()

  def __str__(self) -> str:
    """Says it as commands print it."""
    return str(self.option)


class Problem(NamedTuple):
  """One of the two operations, as a table of functions of the same arguments.

  Attributes:
    name: Latent, dense, or dense without empty keys.
    table: Implementations by name.
    truth: What an implementation is compared with.
    sizes: Sizes of a latent call.
    scale: Logit multiplier of a dense call.
  """

  name: selection.Problem
  table: Mapping[str, Callable[..., Array]]
  truth: Callable[..., Array]
  sizes: forms.Sizes | None = None
  scale: float | None = None

  def static(self, form: types.Form) -> dict[str, Any]:
    """Returns what an implementation is given by name."""
    return dict(form=form) if self.scale is None else dict(scale=self.scale)

  def run(self, choice: selection.Choice, args: PyTree) -> Array:
    """Computes a call."""
    return self.table[choice.implementation](*args, **self.static(choice.form))

  def decide(
    self, args: PyTree, form: types.Form, *, gradient: bool
  ) -> Decision:
    """Takes the first option that can run.

    Args:
      args: Arguments of the call, real, traced or abstract.
      form: The only form that is tried, or "auto".
      gradient: Whether a gradient is asked for.

    Raises:
      NotImplementedError: If nothing has this form; the reasons are listed.
    """
    call = selection.Call(self.name, gradient, self.sizes)
    reasons: list[str] = []
    for option in selection.options(call, device.current(), form=form):
      name, tried = option.choice
      candidate = selection_check.Candidate(
        option=option,
        run=self.table[name],
        static=tuple(self.static(tried).items()),
        truth=self.truth,
        gradient=gradient,
      )
      reason = selection_check.refusal(candidate, args)
      if reason is None:
        return Decision(option, tuple(reasons))
      reasons.append(f"{tried}: {reason}")
      logging.debug("attention passes over %s: %s", option.choice, reason)
    raise NotImplementedError("; ".join(reasons))

  def attend(self, args: PyTree, form: types.Form) -> Array:
    """Computes a call by the table of the architecture.

    With a gradient another implementation may be faster, and its forward pass
    must save what its own backward pass needs. Only a differentiated call asks
    for it.
    """
    choice = self.decide(args, form, gradient=False).option.choice
    if choice.implementation in selection.PLAIN:
      return self.run(choice, args)  # as fast as any with a gradient

    def forward_pass(*args: PyTree) -> tuple[Array, Callable[..., PyTree]]:
      with_gradient = self.decide(args, form, gradient=True).option.choice
      return jax.vjp(lambda *args: self.run(with_gradient, args), *args)

    attend = jax.custom_vjp(lambda *args: self.run(choice, args))
    attend.defvjp(forward_pass, lambda pull, d_out: pull(d_out))
    return attend(*args)

  def attend_by(
    self, names: str | Sequence[str], args: PyTree, form: types.Form
  ) -> Array:
    """Computes a call by the first of the named implementations that runs.

    Args:
      names: Names in the table, in the order of preference.
      args: Arguments of the call.
      form: The only form that is tried, or "auto".

    Raises:
      ValueError: If a name is unknown.
      NotImplementedError: If none of them runs; the reasons are listed.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    unknown = sorted(set(names) - set(self.table))
    if unknown:
      raise ValueError(
        f"implementation={unknown} is unknown; use one of {sorted(self.table)}."
      )
    call = selection.Call(self.name, sizes=self.sizes)
    order = call.order_of_forms(device.current().intensity)
    reasons, last = [], None
    # Every implementation is asked for the cheaper form before any is asked for
    # the other one.
    for tried, name in itertools.product(
      order if form == "auto" else (form,), names
    ):
      try:
        return self.run(selection.Choice(name, tried), args)
      except NotImplementedError as error:
        reasons.append(f"{tried}: {error}")
        last = error
      # Libraries refuse a call by errors of their own kinds. In what we compile
      # with XLA alone, the same would be a fault of ours.
      except Exception as error:
        if name in selection.PLAIN:
          raise
        told = f"{type(error).__name__}: {error}"
        reasons.append(f"{tried}: {name}: {told}")
        last = error
    raise NotImplementedError("; ".join(reasons)) from last
