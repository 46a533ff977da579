"""Latent attention: one function, and a table of its implementations.

`form` says how the product is arranged: "expanded" makes the keys and values
of every head for the length of one call, "absorbed" works on the cached latents
themselves. Both give the same result. What is taken where neither form nor
implementation is named is a table of measurements, `selection`; `selection_run`
follows it, and `selection_check` asks what of it can run here.

A new kernel is a file of this folder with a function `flash`, a row of
`KERNELS`, its place in `selection.TABLE`, and a test.
"""

from collections.abc import Callable
from collections.abc import Sequence
import importlib
from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, PyTree

from videomla_jax.ops import device
from videomla_jax.ops.latent_attention import forms
from videomla_jax.ops.latent_attention import library
from videomla_jax.ops.latent_attention import library_tpu
from videomla_jax.ops.latent_attention import reference
from videomla_jax.ops.latent_attention import selection
from videomla_jax.ops.latent_attention import selection_run
from videomla_jax.ops.latent_attention import types
from videomla_jax.ops.latent_attention import xla_chunked


class Requirement(NamedTuple):
  """The NVIDIA GPUs that a kernel was written for.

  Attributes:
    capability: Least compute capability.
    generations: Major numbers of the only capabilities that can run the kernel;
      none if all later ones can.
  """

  capability: float
  generations: tuple[int, ...] = ()

  def check(self, name: str) -> None:
    """Raises `NotImplementedError` if this device cannot run the kernel."""
    here, least = device.current(), self.capability
    fits = here.capability >= least
    wanted = f"{least:g} or later"
    if self.generations:
      fits = int(here.capability) in self.generations
      wanted = " or ".join(f"{n}.x" for n in self.generations)
    if not fits:
      raise NotImplementedError(
        f"{name}: needs an NVIDIA GPU of compute capability {wanted}, this is "
        f"{here.kind}"
      )


# Our kernels for GPUs; a name is that of a file.
KERNELS: dict[str, Requirement] = {
  "triton": Requirement(8.0),  # takes few rows only, and refuses the others
  "pallas_mosaic_gpu": Requirement(9.0, generations=(9, 10)),
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


def _on_tpu[**Arguments](
  attention: Callable[Arguments, Array],
) -> Callable[Arguments, Array]:
  """Makes an implementation say that it needs a TPU, where there is none."""

  def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Array:
    here = device.current()
    if here.platform != "tpu":
      raise NotImplementedError(
        f"{library_tpu.NAME}: needs a TPU, this is {here.kind}"
      )
    return attention(*args, **kwargs)

  return run


# Every implementation of latent attention.
IMPLEMENTATIONS: dict[str, types.Implementation] = {
  **{name: _kernel(name) for name in KERNELS},
  "xla_chunked": xla_chunked.latent_attention,
  "reference": reference.latent_attention,
  **{name: _library(name) for name in LIBRARIES},
  library_tpu.NAME: _on_tpu(library_tpu.latent_attention),
}


def _dense_kernel(name: str) -> types.DenseImplementation:
  def run(
    query: Float[Array, "B L N D"],
    key: Float[Array, "B S N D"],
    value: Float[Array, "B S N V"],
    valid: Bool[Array, "B G"] | None,
    *,
    scale: float,
  ) -> Float[Array, "B L N V"]:
    flash = _flash_of(name)
    # Keys of dense layers and of the text are whole already, so their
    # positional part has no channels.
    segment = types.KeyValue(
      key, key[:, :, 0, :0], value, types.flags_of(valid, key)
    )
    return flash(types.Queries(query, query[..., :0]), (segment,), scale=scale)

  return run


def _dense_library(name: str) -> types.DenseImplementation:
  def run(
    query: Float[Array, "B L N D"],
    key: Float[Array, "B S N D"],
    value: Float[Array, "B S N V"],
    valid: Bool[Array, "B G"] | None,
    *,
    scale: float,
  ) -> Float[Array, "B L N V"]:
    _LIBRARY_GPU.check(name)
    return library.dense_attention(
      query, key, value, valid, scale=scale, attention=LIBRARIES[name]()
    )

  return run


def _dense_plain(
  attention: Callable[..., Array],
) -> types.DenseImplementation:
  def run(
    query: Float[Array, "B L N D"],
    key: Float[Array, "B S N D"],
    value: Float[Array, "B S N V"],
    valid: Bool[Array, "B G"] | None,
    *,
    scale: float,
  ) -> Float[Array, "B L N V"]:
    flags = types.flags_of(valid, key)
    valid_keys = types.per_key(flags, num_keys=key.shape[1])
    return attention(query, key, value, valid_keys, scale=scale)

  return run


# Every implementation of dense attention.
DENSE: dict[str, types.DenseImplementation] = {
  **{n: _dense_kernel(n) for n in ("pallas_mosaic_gpu", "pallas_triton")},
  "xla_chunked": _dense_plain(xla_chunked.attention),
  "reference": _dense_plain(reference.attention),
  **{name: _dense_library(name) for name in LIBRARIES},
  library_tpu.NAME: _on_tpu(library_tpu.dense_attention),
}


def _latent(
  queries: types.Queries,
  keys: types.Keys | Sequence[types.Keys],
  up: types.UpProjections,
) -> tuple[selection_run.Problem, PyTree]:
  """Checks the arguments of a latent call, real or abstract."""
  keys = (keys,) if isinstance(keys, types.Keys) else tuple(keys)
  types.check(queries, keys, up)
  problem = selection_run.Problem(
    "latent",
    IMPLEMENTATIONS,
    xla_chunked.latent_attention,
    sizes=forms.sizes_of(queries, keys, up),
  )
  return problem, (queries, keys, up)


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
    form: "auto" takes what `selection` says, or for named implementations the
      cheaper form, and the other one where none of them has it.
    implementation: A name in `IMPLEMENTATIONS`, or names in the order of
      preference; by default what `selection` says.

  Returns:
    The value of every head; the output projection comes next.

  Raises:
    ValueError: If a name is unknown, or sizes do not fit together.
    NotImplementedError: If no implementation can run; the reason of each one
      that was tried is listed.
  """
  problem, args = _latent(queries, keys, up)
  if implementation is not None:
    return problem.attend_by(implementation, args, form)
  return problem.attend(args, form)


def explain_latent(
  queries: types.Queries,
  keys: types.Keys | Sequence[types.Keys],
  up: types.UpProjections,
  *,
  form: types.Form = "auto",
  gradient: bool = False,
) -> selection_run.Decision:
  """Says what `latent_attention` would take, without computing anything.

  Args:
    queries: As in `latent_attention`; all arrays may be abstract.
    keys: Segments of keys.
    up: Up-projections.
    form: The only form that is tried, or "auto".
    gradient: Whether a gradient will be asked for.

  Raises:
    ValueError: If sizes do not fit together.
  """
  problem, args = _latent(queries, keys, up)
  return problem.decide(args, form, gradient=gradient)


def _dense(
  query: Array | jax.ShapeDtypeStruct,
  key: Array | jax.ShapeDtypeStruct,
  value: Array | jax.ShapeDtypeStruct,
  valid: Array | jax.ShapeDtypeStruct | None,
  scale: float,
) -> tuple[selection_run.Problem, PyTree]:
  """Checks the arguments of a dense call, real or abstract."""
  batch, _, heads, width = query.shape
  wanted = (batch, key.shape[1], heads)
  if key.shape != (*wanted, width) or value.shape[:3] != wanted:
    raise ValueError(
      f"query, key and value have shapes {query.shape}, {key.shape} and "
      f"{value.shape}, which do not fit together."
    )
  if valid is not None:
    types.check_blocks(valid.shape, batch=batch, num_keys=key.shape[1])
  name: selection.Problem = "text" if valid is None else "dense"
  problem = selection_run.Problem(
    name, DENSE, DENSE["xla_chunked"], scale=scale
  )
  return problem, (query, key, value, valid)


def dense_attention(
  query: Float[Array, "B L N D"],
  key: Float[Array, "B S N D"],
  value: Float[Array, "B S N V"],
  valid: Bool[Array, "B G"] | None,
  *,
  scale: float,
  implementation: str | Sequence[str] | None = None,
) -> Float[Array, "B L N V"]:
  """Softmax attention without latents, for dense layers and for the text.

  Args:
    query: Queries of every head.
    key: Keys of every head.
    value: Values of every head.
    valid: False where a validity block of S / G keys must not be seen. Every
      row of the batch needs one block that is valid. None if all keys are, as
      those of the text.
    scale: Logit multiplier, positive.
    implementation: A name in `DENSE`, or names in the order of preference; by
      default what `selection` says.

  Returns:
    softmax(scale Q Kᵀ) V of every head over the valid keys, docs/method.md,
    Eq. (2.10).

  Raises:
    ValueError: If a name is unknown, or sizes do not fit together.
    NotImplementedError: If no implementation can run.
  """
  problem, args = _dense(query, key, value, valid, scale)
  if implementation is not None:
    return problem.attend_by(implementation, args, "expanded")
  return problem.attend(args, "auto")


def explain_dense(
  query: Float[Array, "B L N D"] | jax.ShapeDtypeStruct,
  key: Float[Array, "B S N D"] | jax.ShapeDtypeStruct,
  value: Float[Array, "B S N V"] | jax.ShapeDtypeStruct,
  valid: Bool[Array, "B G"] | jax.ShapeDtypeStruct | None,
  *,
  scale: float,
  gradient: bool = False,
) -> selection_run.Decision:
  """Says what `dense_attention` would take, without computing anything.

  Args:
    query: As in `dense_attention`; all arrays may be abstract.
    key: Keys of every head.
    value: Values of every head.
    valid: Flags of blocks, or None.
    scale: Logit multiplier, positive.
    gradient: Whether a gradient will be asked for.

  Raises:
    ValueError: If sizes do not fit together.
  """
  problem, args = _dense(query, key, value, valid, scale)
  return problem.decide(args, "auto", gradient=gradient)
