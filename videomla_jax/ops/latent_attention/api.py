"""Latent attention: one function, and a table of its implementations.

`form` says how the product is arranged: "expanded" makes the keys and values
of every head for the length of one call, "absorbed" works on the cached latents
themselves. Both give the same result; "auto" takes the one that needs fewer
multiply-adds or, on a GPU, less time by its data sheet (`forms.Sizes`).

A new kernel is a file of this folder with a function `flash`, a row of
`KERNELS`, and a test.
"""

from collections.abc import Callable
from collections.abc import Sequence
import importlib
import itertools
from typing import NamedTuple

from jaxtyping import Array, Bool, Float

from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import library
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import types
from videomla_jax.ops.latent_attention import xla_chunked


class Requirement(NamedTuple):
  """The NVIDIA GPUs that a kernel was written for.

  Attributes:
    capability: Least compute capability.
    one_generation: Whether later generations cannot run the kernel either.
  """

  capability: float
  one_generation: bool = False

  def check(self, name: str) -> None:
    """Raises `NotImplementedError` if this device cannot run the kernel."""
    here, least = device.current(), self.capability
    fits = here.capability >= least
    if self.one_generation:
      fits = int(here.capability) == int(least)
    if not fits:
      wanted = f"{least:g}" if self.one_generation else f"{least:g} or later"
      raise NotImplementedError(
        f"{name}: needs an NVIDIA GPU of compute capability {wanted}, this is "
        f"{here.kind}"
      )


# Our kernels for GPUs, in the order of preference; a name is that of a file.
KERNELS: dict[str, Requirement] = {
  "triton": Requirement(8.0),  # takes few rows only, and refuses the others
  "pallas_mosaic_gpu": Requirement(10.0, one_generation=True),
  "pallas_triton": Requirement(8.0),
}
# Other libraries, which need Ampere or later.
LIBRARIES: dict[str, Callable[[], library.Attention]] = {
  "cudnn": library.cudnn,
  "tokamax": library.tokamax,
}
_LIBRARY_GPU = Requirement(8.0)


def _flash_of(name: str) -> types.Flash:
  """Imports one of our kernels, only now: its compiler may be absent."""
  KERNELS[name].check(name)
  return importlib.import_module(f"{__package__}.{name}").flash


def _kernel(name: str) -> types.Implementation:
  def run(
    queries: types.Queries,
    keys: Sequence[types.Keys],
    up: types.UpProjections,
    *,
    form: types.Form,
  ) -> Float[Array, "B L N D"]:
    return forms.attend(_flash_of(name), queries, keys, up, form=form)

  return run


def _library(name: str) -> types.Implementation:
  def run(
    queries: types.Queries,
    keys: Sequence[types.Keys],
    up: types.UpProjections,
    *,
    form: types.Form,
  ) -> Float[Array, "B L N D"]:
    _LIBRARY_GPU.check(name)
    attention = LIBRARIES[name]()
    return library.latent_attention(
      queries, keys, up, form=form, name=name, attention=attention
    )

  return run


# Every implementation, in the order of preference. Libraries come last, behind
# what runs anywhere, so they run only if they are named: they cannot skip
# frames that are not valid, and copy the segments together.
IMPLEMENTATIONS: dict[str, types.Implementation] = {
  **{name: _kernel(name) for name in KERNELS},
  "xla_chunked": xla_chunked.latent_attention,
  "reference": reference.latent_attention,
  **{name: _library(name) for name in LIBRARIES},
}


def latent_attention(
  queries: types.Queries,
  keys: types.Keys | Sequence[types.Keys],
  up: types.UpProjections,
  *,
  form: types.Form = "auto",
  implementation: str | Sequence[str] | None = None,
) -> Float[Array, "B L N D"]:
  """Attends from the queries of every head to shared latents.

  VideoMLA (arXiv:2605.30351), Eq. (7) or, absorbed, Eq. (8), (10) and (12).

  Args:
    queries: Content queries and rotated positional queries of one layer.
    keys: Content latents, rotated positional keys and their validity; one
      segment or several, which are not copied together where a kernel can avoid
      it.
    up: Up-projections W_uk and W_uv from the content latent.
    form: "auto" takes the cheaper form, or the other one where no
      implementation has it.
    implementation: A name in `IMPLEMENTATIONS`, or names in the order of
      preference; by default all of them in the order of the table.

  Returns:
    The value of every head; the output projection comes next.

  Raises:
    ValueError: If a name is unknown.
    NotImplementedError: If no implementation can run; the reason of each one
      that was tried is listed.
  """
  keys = (keys,) if isinstance(keys, types.Keys) else tuple(keys)
  order: tuple[types.Form, ...] = (form,)
  if form == "auto":
    sizes = forms.sizes_of(queries, keys, up)
    cheaper = sizes.cheaper_form(device.current().intensity)
    order = (cheaper, "absorbed" if cheaper == "expanded" else "expanded")
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
  # Every implementation is asked for the cheaper form before any is asked for
  # the other one.
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
  """Softmax attention without latents, for dense layers and for the text.

  The kernel `pallas_triton` runs without a positional part where it can, so
  that no scores are written; elsewhere plain XLA goes through blocks of keys.

  Args:
    query: Queries of every head.
    key: Keys of every head.
    value: Values of every head.
    valid: False where a validity block of S / G keys must not be seen. Every
      row of the batch needs one block that is valid.
    scale: Logit multiplier, positive.

  Returns:
    softmax(scale Q Kᵀ) V of every head over the valid keys, docs/method.md,
    Eq. (2.10).
  """
  try:
    flash = _flash_of("pallas_triton")
    # Keys of dense layers and of the text are whole already, so their
    # positional part has no channels.
    segment = types.KeyValue(key, key[:, :, 0, :0], value, valid)
    return flash(types.Queries(query, query[..., :0]), (segment,), scale=scale)
  # It refuses CPUs, float32, and widths that are no sum of powers of two.
  except NotImplementedError:
    valid_keys = types.per_key(valid, num_keys=key.shape[1])
    return xla_chunked.attention(query, key, value, valid_keys, scale=scale)
