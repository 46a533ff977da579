"""Latent attention: one function, a table of implementations.

`form` says how the product is arranged: "expanded" makes per-head keys and
values of one layer for the length of one call, "absorbed" works on the cached
latents. They are equal; "auto" takes the one with fewer multiply-adds.
"""

from collections.abc import Callable
from collections.abc import Sequence
import itertools

from jaxtyping import Array, Float

from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import specs
from videomla_jax.ops.latent_attention import xla_chunked

Queries = specs.Queries
Keys = specs.Keys
UpProjections = specs.UpProjections


def _reference(queries, keys, up, *, form):
  if form == "absorbed":
    raise NotImplementedError("reference: has no absorbed form")
  return reference.latent_attention(queries, keys, up)


IMPLEMENTATIONS: dict[str, Callable] = {
  "xla_chunked": xla_chunked.latent_attention,
  "reference": _reference,
}


def latent_attention(
  queries: Queries,
  keys: Keys | Sequence[Keys],
  up: UpProjections,
  *,
  form: specs.Form = "auto",
  implementation: str | Sequence[str] | None = None,
) -> Float[Array, "B L N D"]:
  """Attends from per-head queries to shared latents and positional keys.

  VideoMLA (arXiv:2605.30351), Eq. (7) or, absorbed, Eq. (8), (10) and (12).

  Args:
    queries: Content and rotated positional queries.
    keys: Content latents, rotated positional keys, validity; one segment or
      several, which are not copied together where a kernel can avoid it.
    up: W_uk and W_uv.
    form: "auto" takes the one with fewer multiply-adds, or the other one where
      no implementation has that.
    implementation: A name, or names in order of preference; by default every
      implementation in the order of the table.

  Returns:
    Per-head values; the output projection comes next.

  Raises:
    ValueError: If a name is unknown.
    NotImplementedError: If none can run; lists the reason of each.
  """
  keys = (keys,) if isinstance(keys, specs.Keys) else tuple(keys)
  forms: tuple[str, ...] = (form,)
  if form == "auto":
    first = specs.spec_of(queries, keys, up).cheaper_form()
    forms = (first, *({"expanded", "absorbed"} - {first}))
  if implementation is None:
    implementation = tuple(IMPLEMENTATIONS)
  if isinstance(implementation, str):
    implementation = (implementation,)
  unknown = set(implementation) - set(IMPLEMENTATIONS)
  if unknown:
    raise ValueError(
      f"implementation={sorted(unknown)} is unknown; use one of "
      f"{sorted(IMPLEMENTATIONS)}."
    )
  reasons = []
  for tried, name in itertools.product(forms, implementation):
    try:
      return IMPLEMENTATIONS[name](queries, keys, up, form=tried)
    except NotImplementedError as error:
      reasons.append(f"{tried}: {error}")
  raise NotImplementedError("; ".join(reasons))
