"""Latent attention: one function, a table of implementations.

`form` says how the product is arranged: "expanded" makes per-head keys and
values of one layer for the length of one call, "absorbed" works on the cached
latents. They are equal; "auto" takes the cheaper one by multiply-adds and, on
a GPU, by bytes (`specs.Spec.cost`).
"""

from collections.abc import Callable
from collections.abc import Sequence
import importlib
import itertools

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import library
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


def _needs(name: str, capability: float, only: float = 0.0) -> None:
  """Refuses devices that a kernel was not written for."""
  here = device.current()
  fits = here.capability >= capability
  if only:
    fits = int(here.capability) == int(only)
  if not fits:
    wanted = f"{only:g}" if only else f"{capability:g} or later"
    raise NotImplementedError(
      f"{name}: needs an NVIDIA GPU of compute capability {wanted}, this is "
      f"{here.kind}"
    )


def _kernel(name: str, capability: float, only: float = 0.0) -> Callable:
  """One of our kernels, imported when it is first asked for."""

  def run(queries, keys, up, *, form):
    _needs(name, capability, only)
    module = importlib.import_module(f"{__package__}.{name}")
    return forms.attend(module.flash, queries, keys, up, form=form)

  return run


def _library(name: str, attention: Callable[[], Callable]) -> Callable:
  """Another library's attention."""

  def run(queries, keys, up, *, form):
    _needs(name, 8.0)
    return library.latent_attention(
      queries, keys, up, form=form, name=name, attention=attention()
    )

  return run


# In the order of preference. Libraries run only if they are named: they cannot
# skip frames that are not valid and join the segments.
IMPLEMENTATIONS: dict[str, Callable] = {
  "triton": _kernel("triton", 8.0),  # few rows, or it refuses
  "pallas_mosaic_gpu": _kernel("pallas_mosaic_gpu", 10.0, only=10.0),
  "pallas_triton": _kernel("pallas_triton", 8.0),
  "xla_chunked": xla_chunked.latent_attention,
  "reference": _reference,
  "cudnn": _library("cudnn", library.cudnn),
  "tokamax": _library("tokamax", library.tokamax),
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
    form: "auto" takes the cheaper one, or the other one where no
      implementation has that.
    implementation: A name, or names in order of preference; by default every
      implementation in the order of the table.

  Returns:
    Per-head values; the output projection comes next.

  Raises:
    ValueError: If a name is unknown.
    NotImplementedError: If none can run; lists the reason of each.
  """
  keys = (keys,) if isinstance(keys, specs.Keys) else tuple(keys)
  order: tuple[str, ...] = (form,)
  if form == "auto":
    spec = specs.spec_of(queries, keys, up)
    first = spec.cheaper_form(device.current().intensity)
    order = (first, *({"expanded", "absorbed"} - {first}))
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
  for tried, name in itertools.product(order, implementation):
    try:
      return IMPLEMENTATIONS[name](queries, keys, up, form=tried)
    except NotImplementedError as error:
      reasons.append(f"{tried}: {error}")
  raise NotImplementedError("; ".join(reasons))


def dense_attention(
  query: Float[Array, "B L N D"],
  key: Float[Array, "B S N D"],
  value: Float[Array, "B S N V"],
  valid: Bool[Array, "B G"],
  *,
  scale: float,
) -> Float[Array, "B L N V"]:
  """Softmax attention without latents: dense layers, and text.

  Pallas Triton's kernel without a positional part where that runs, so no scores
  are written; blocks of keys in XLA elsewhere.

  Args:
    query: Queries.
    key: Keys.
    value: Values.
    valid: False where a granule of S / G keys must not be seen; one valid
      granule per example.
    scale: Logit multiplier, positive.

  Returns:
    softmax(scale Q Kᵀ) V per head over the valid keys, spec/wan.md A3.
  """
  name = "pallas_triton"
  try:
    _needs(name, 8.0)
    flash = importlib.import_module(f"{__package__}.{name}").flash
    segment = forms.KeyValue(key, key[:, :, 0, :0], value, valid)
    queries = specs.Queries(query, query[..., :0])
    return flash(queries, (segment,), scale=scale)
  except NotImplementedError:  # no such GPU, float32, a width of odd parts
    granule = key.shape[1] // valid.shape[1]
    valid_keys = jnp.repeat(valid, granule, axis=1)
    return xla_chunked.attention(query, key, value, valid_keys, scale=scale)
