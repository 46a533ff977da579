"""One layer of VideoMLA's early layout, see `early_layout`, cut into ours.

Every matrix of ours is a set of columns of one of theirs, taken as `[in, out]`:
the same channels of every head. Sizes follow from the norms and from products
of shapes, so they are known before it is known which way a matrix lies.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from videomla_jax.storage import lazy_tensor

type Parts = Mapping[str, Part]

# The first publication's names, for messages.
_FIRST_NAMES = {
  "q_down": "W_q_downsampled",
  "q_up": "W_q_upsampled",
  "q_rope": "W_q_rope",
  "kv_down": "W_kv_downsampled",
  "k_rope": "W_k_rope",
  "kv_up": "W_kv_upsampled",
  "k_up": "W_k_upsampled",
  "v_up": "W_v_upsampled",
  "out": "W_o",
  "q_norm": "norm_q_latent.weight",
  "kv_norm": "norm_kv_latent.weight",
}


class Part(NamedTuple):
  """One tensor of a layer.

  Attributes:
    name: Its name in the file.
    tensor: Its numbers.
  """

  name: str
  tensor: lazy_tensor.LazyTensor


class Sizes(NamedTuple):
  """Sizes of a layer, letters of `videomla_jax.shapes`.

  Attributes:
    width: Model width E.
    heads: Heads N.
    d_c: Channels of the content latent.
    d_rope: Channels of the positional key.
    d_q: Channels of the query latent.
  """

  width: int
  heads: int
  d_c: int
  d_rope: int
  d_q: int

  @property
  def head_dim(self) -> int:
    """Channels D of one head."""
    return self.width // self.heads

  @property
  def d_nope(self) -> int:
    """Content channels of a head."""
    return self.head_dim - self.d_rope


class Cut(NamedTuple):
  """Columns of a matrix `[in, out]`: the same channels of every group.

  Attributes:
    role: Which matrix.
    groups: Groups into which its columns split; heads, or one.
    start: First channel of a group.
    stop: End of the channels.
  """

  role: str
  groups: int
  start: int
  stop: int

  def of(self, matrix: np.ndarray) -> np.ndarray:
    """Returns the columns of this role.

    Args:
      matrix: Rows of all groups of columns, one group after the other.
    """
    rows = len(matrix)
    columns = matrix.reshape(rows, self.groups, -1)
    return columns[..., self.start : self.stop].reshape(rows, -1)


class Layer:
  """Reads one layer under our names."""

  def __init__(self, name: str, parts: Parts) -> None:
    """Finds out the sizes of a layer.

    Args:
      name: Its name, such as `blocks.0.self_attn`.
      parts: Its tensors by role, see `early_layout`.

    Raises:
      ValueError: If one is missing, or their shapes do not fit together.
    """
    self._name, self._parts = name, parts
    self._need("q_down", "q_up", "kv_down", "out", "q_norm", "kv_norm")
    if "kv_up" not in parts:
      self._need("k_up", "v_up")
    self.sizes = self._sizes()
    self._cuts = self._all_cuts()
    self._check_shapes()

  def _need(self, *roles: str) -> None:
    missing = [_FIRST_NAMES[r] for r in roles if r not in self._parts]
    if missing:
      raise ValueError(
        f"source lacks {', '.join(missing)} (or what stands for it) of "
        f"{self._name}; give a complete network whose latents have norms."
      )

  @property
  def has_down_bias(self) -> bool:
    """Tells whether there are biases in front of the latents' norms."""
    return not self._parts.keys().isdisjoint({"q_down_bias", "kv_down_bias"})

  def _columns(self, role: str, inputs: int) -> int:
    """Returns the outputs of a matrix, whichever way it lies."""
    return int(np.prod(self._parts[role].tensor.shape)) // inputs

  def _sizes(self) -> Sizes:
    """Returns the sizes, for which no matrix has to lie in a known way."""
    parts = self._parts
    for role, part in parts.items():
      dims = 1 if role.endswith(("_bias", "_norm")) else 2
      if len(part.tensor.shape) != dims or 0 in part.tensor.shape:
        raise ValueError(
          f"source has {part.name} of shape {part.tensor.shape}, which must "
          f"have {dims} axes; give VideoMLA's layer."
        )
    width = parts["out"].tensor.shape[0]
    d_c, d_q = (parts[n].tensor.shape[0] for n in ("kv_norm", "q_norm"))
    down = self._columns("kv_down", width)
    if down <= d_c:
      self._need("k_rope")
      d_rope = self._columns("k_rope", width)
    else:
      d_rope = down - d_c
    # A head has D - d_rope content channels, and E = N D.
    role, full = ("kv_up", 2 * width) if "kv_up" in parts else ("k_up", width)
    rope = full - self._columns(role, d_c)
    heads, rest = divmod(rope, d_rope) if d_rope > 0 else (0, 0)
    if heads < 1 or rest or width % heads or width // heads <= d_rope:
      raise ValueError(
        f"source has sizes in {self._name} that do not fit together "
        f"(width={width}, d_c={d_c}, d_rope={d_rope}, {parts[role].name} "
        f"{parts[role].tensor.shape}); give VideoMLA's layer of one size."
      )
    return Sizes(width, heads, d_c, d_rope, d_q)

  def _all_cuts(self) -> dict[str, Cut]:
    """Returns where each of our matrices lies."""
    s, parts = self.sizes, self._parts
    one, heads, d_n, d = 1, s.heads, s.d_nope, s.head_dim
    cuts = {
      "w_dq": Cut("q_down", one, 0, s.d_q),
      "w_dkv": Cut("kv_down", one, 0, s.d_c),
      "w_kr": Cut("kv_down", one, s.d_c, s.d_c + s.d_rope),
      "w_uq": Cut("q_up", heads, 0, d_n),
      "w_qr": Cut("q_up", heads, d_n, d),
      "w_uk": Cut("kv_up", heads, 0, d_n),
      "w_uv": Cut("kv_up", heads, d_n, d_n + d),
      "o": Cut("out", one, 0, s.width),
    }
    if self._columns("kv_down", s.width) == s.d_c:
      cuts["w_kr"] = Cut("k_rope", one, 0, s.d_rope)
    if self._columns("q_up", s.d_q) != s.width:
      self._need("q_rope")
      cuts["w_qr"] = Cut("q_rope", heads, 0, s.d_rope)
    if "kv_up" not in parts:
      cuts["w_uk"] = Cut("k_up", heads, 0, d_n)
      cuts["w_uv"] = Cut("v_up", heads, 0, d)
    return cuts

  def _shape(self, role: str) -> tuple[int, int]:
    """Returns inputs and outputs of a matrix."""
    s = self.sizes
    latents = {"q_up": s.d_q, "q_rope": s.d_q}
    latents |= dict.fromkeys(("kv_up", "k_up", "v_up"), s.d_c)
    outputs = sum(
      cut.groups * (cut.stop - cut.start)
      for cut in self._cuts.values()
      if cut.role == role
    )
    return latents.get(role, s.width), outputs

  def _check_shapes(self) -> None:
    """Raises one `ValueError` that lists every tensor of another shape."""
    s, wrong = self.sizes, []
    wanted: dict[str, list[tuple[int, ...]]] = {
      "q_norm": [(s.d_q,)],
      "kv_norm": [(s.d_c,)],
    }
    for role in {cut.role for cut in self._cuts.values()}:
      inputs, outputs = self._shape(role)
      wanted[role] = [(inputs, outputs), (outputs, inputs)]
      wanted[f"{role}_bias"] = [(outputs,)]
    for role, shapes in wanted.items():
      part = self._parts.get(role)
      if part and tuple(part.tensor.shape) not in shapes:
        wrong.append(f"{part.name} {part.tensor.shape} instead of {shapes[0]}")
    if wrong:
      raise ValueError(
        f"source has tensors of other shapes than its layer ({s}): "
        f"{'; '.join(sorted(wrong))}; give one complete network."
      )

  def _transposed(self, role: str) -> bool:
    """Tells whether a matrix is stored as `[out, in]`."""
    shape = self._parts[role].tensor.shape
    if shape[0] != shape[1]:
      return shape != self._shape(role)
    # The output projection is the one that the authors store so. Of another
    # square matrix only its neighbours tell.
    for other in ("kv_down", "q_down", "q_up"):
      inputs, outputs = self._shape(other)
      if inputs != outputs and role != "out":
        return self._parts[other].tensor.shape != (inputs, outputs)
    return role == "out" or self._parts[role].name.endswith(".weight")

  def tensors(self, *, down_bias: bool) -> dict[str, lazy_tensor.LazyTensor]:
    """Returns the layer under our names.

    Args:
      down_bias: Whether latents have biases in front of their norms; they are
        zeros here if only other layers have some.
    """
    made, parts = {}, self._parts
    biased = {"w_kr", "w_uq", "w_qr", "o"}
    biased |= {"w_dq", "w_dkv"} if down_bias else set()
    for ours, cut in self._cuts.items():
      made[f"{ours}.weight"] = self._weight(cut)
      if ours in biased:
        made[f"{ours}.bias"] = self._bias(cut)
    made["o.bias"] = self._out_bias(made)
    for ours, role in (("norm_q", "q_norm"), ("norm_c", "kv_norm")):
      made[f"{ours}.weight"] = parts[role].tensor
    named = {f"{self._name}.{name}": x for name, x in made.items()}
    # What has no place stays under its name, so that it is reported.
    used = {cut.role for cut in self._cuts.values()}
    used |= {f"{role}_bias" for role in used} | {"q_norm", "kv_norm"}
    return named | {p.name: p.tensor for r, p in parts.items() if r not in used}

  def _weight(self, cut: Cut) -> lazy_tensor.LazyTensor:
    tensor, transposed = (
      self._parts[cut.role].tensor,
      self._transposed(cut.role),
    )

    def read() -> np.ndarray:
      matrix = tensor.read()
      return cut.of(matrix.T if transposed else matrix).T

    outputs = cut.groups * (cut.stop - cut.start)
    shape = (outputs, self._shape(cut.role)[0])
    return lazy_tensor.LazyTensor(shape, tensor.dtype, read)

  def _bias(self, cut: Cut) -> lazy_tensor.LazyTensor:
    part = self._parts.get(f"{cut.role}_bias")
    shape = (cut.groups * (cut.stop - cut.start),)
    if part is None:
      dtype = self._parts[cut.role].tensor.dtype
      return lazy_tensor.LazyTensor(
        shape, dtype, lambda: np.zeros(shape, dtype)
      )
    read = part.tensor.read
    return lazy_tensor.LazyTensor(
      shape, part.tensor.dtype, lambda: cut.of(read()[None])[0]
    )

  def _out_bias(
    self, made: Mapping[str, lazy_tensor.LazyTensor]
  ) -> lazy_tensor.LazyTensor:
    """Returns the bias of W_o with that of the values, which it sees whole.

    A bias of content keys adds the same to all scores of a query and is
    dropped.
    """
    own, cut = made["o.bias"], self._cuts["w_uv"]
    if f"{cut.role}_bias" not in self._parts:
      return own
    weight, values = made["o.weight"], self._bias(cut)

    def read() -> np.ndarray:
      matrix, bias, out = (
        np.asarray(x.read(), np.float64) for x in (weight, values, own)
      )
      return np.asarray(out + matrix @ bias, np.float32)

    return lazy_tensor.LazyTensor(own.shape, np.dtype(np.float32), read)
