"""VideoMLA's early layout: tiny files of it, and its layer in float64 NumPy.

The layer is written from what its authors published, and shares no
code with the package: `x @ W`, a cache of latents before their norm, positional
keys that are rotated where they are read.
"""

import math
from typing import NamedTuple

import numpy as np

from tests import tiny_release

Arrays = dict[str, np.ndarray]


class Sizes(NamedTuple):
  width: int = 64
  heads: int = 4
  d_c: int = 10
  d_rope: int = 8
  d_q: int = 24

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def d_nope(self) -> int:
    return self.head_dim - self.d_rope


SIZES = Sizes()
VARIANTS = ("early", "linear", "split", "split_linear", "other_names")


def draw_layer(
  rng: np.random.Generator, *, biased: bool, sizes: Sizes = SIZES
) -> Arrays:
  """Matrices `[in, out]` and gains of one layer, and biases if there are any.

  Without biases they are zeros.
  """
  e, d_c, d_q = sizes.width, sizes.d_c, sizes.d_q
  shapes = {
    "q_down": (e, d_q),
    "q_up": (d_q, e),
    "kv_down": (e, d_c + sizes.d_rope),
    "kv_up": (d_c, sizes.heads * (sizes.d_nope + sizes.head_dim)),
    "out": (e, e),
  }
  layer = {
    name: rng.standard_normal(shape) / math.sqrt(shape[0])
    for name, shape in shapes.items()
  }
  for name, (_, outputs) in shapes.items():
    layer[f"{name}_bias"] = 0.3 * biased * rng.standard_normal(outputs)
  layer["q_norm"] = 1 + 0.2 * rng.standard_normal(d_q)
  layer["kv_norm"] = 1 + 0.2 * rng.standard_normal(d_c)
  return {name: x.astype(np.float32) for name, x in layer.items()}


def stored(
  layer: Arrays, variant: str, *, biased: bool, sizes: Sizes = SIZES
) -> Arrays:
  """The tensors of a layer as a file of one variant has them."""
  matrices, names = _separate(layer, variant, sizes)
  file = {}
  for role, matrix in matrices.items():
    # The output projection is transposed in every variant.
    linear = variant in ("linear", "split_linear", "other_names")
    weight = matrix.T if linear or role == "out" else matrix
    file[names[role] + (".weight" if linear else "")] = weight.copy()
    if biased:
      file[names[role] + (".bias" if linear else "_bias")] = matrices_bias(
        layer, role, variant, sizes
      )
  for role in ("q_norm", "kv_norm"):
    file[f"{names[role]}.weight"] = layer[role]
  return file


_NAMES = dict(
  q_down="W_q_downsampled",
  q_up="W_q_upsampled",
  kv_down="W_kv_downsampled",
  kv_up="W_kv_upsampled",
  out="W_o",
  q_norm="norm_q_latent",
  kv_norm="norm_kv_latent",
)
_OTHER_NAMES = dict(
  q_down="q_a_proj",
  q_up="q_b_proj",
  kv_down="kv_a_proj_with_mqa",
  kv_up="kv_b_proj",
  out="o_proj",
  q_norm="q_a_layernorm",
  kv_norm="kv_a_layernorm",
)
_SPLIT_NAMES = dict(
  q_down="W_q_down",
  q_up="W_q_up",
  q_rope="W_q_rope",
  kv_down="W_kv_down",
  k_rope="W_k_rope",
  k_up="W_k_up",
  v_up="W_v_up",
  out="W_o",
  q_norm="norm_q",
  kv_norm="norm_kv",
)


def _separate(
  layer: Arrays, variant: str, sizes: Sizes
) -> tuple[Arrays, dict[str, str]]:
  fused = {n: layer[n] for n in ("q_down", "q_up", "kv_down", "kv_up", "out")}
  if not variant.startswith("split"):
    return fused, _OTHER_NAMES if variant == "other_names" else _NAMES
  return _split(fused, sizes), _SPLIT_NAMES


def _split(fused: Arrays, sizes: Sizes) -> Arrays:
  """Separates the columns of fused matrices, or of biases with one row."""
  heads, d_n = sizes.heads, sizes.d_nope
  flat = lambda x: x.reshape(x.shape[0], -1)
  by_head = lambda x: x.reshape(x.shape[0], heads, -1)
  q_up, kv_up = by_head(fused["q_up"]), by_head(fused["kv_up"])
  return dict(
    q_down=fused["q_down"],
    q_up=flat(q_up[..., :d_n]),
    q_rope=flat(q_up[..., d_n:]),
    kv_down=fused["kv_down"][:, : sizes.d_c],
    k_rope=fused["kv_down"][:, sizes.d_c :],
    k_up=flat(kv_up[..., :d_n]),
    v_up=flat(kv_up[..., d_n:]),
    out=fused["out"],
  )


def matrices_bias(
  layer: Arrays, role: str, variant: str, sizes: Sizes
) -> np.ndarray:
  names = ("q_down", "q_up", "kv_down", "kv_up", "out")
  rows = {n: layer[f"{n}_bias"][None] for n in names}
  if variant.startswith("split"):
    rows = _split(rows, sizes)
  return rows[role][0]


def _normed(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
  return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * gain


def frequencies(sizes: Sizes, ladder: str) -> list[np.ndarray]:
  """Frequencies of the frame, row and column pairs, docs/method.md, 3.1."""

  def widths(d: int) -> tuple[int, int, int]:
    side = 2 * (d // 6)
    return d - 2 * side, side, side

  taken = widths(sizes.d_rope)
  whole = taken if ladder == "fresh" else widths(sizes.head_dim)
  return [
    10_000.0 ** (-2 * np.arange(t // 2) / d) if t else np.zeros(0)
    for t, d in zip(taken, whole, strict=True)
  ]


def _turned(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
  """Rotates pairs of adjacent channels, x [..., 2 i] by angles [..., i]."""
  z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
  return np.stack([z.real, z.imag], -1).reshape(x.shape)


class Layer64:
  """The layer of the early code in float64, with its rolling cache.

  Frames see the sink, the newest frames before their chunk and the chunk, at
  most `local` frames in all. Positions are slots of this window.
  """

  def __init__(
    self,
    layer: Arrays,
    *,
    ladder: str,
    grid: tuple[int, int],
    local: int = 6,
    sink: int = 1,
    sizes: Sizes = SIZES,
  ) -> None:
    self.w = {name: np.asarray(x, np.float64) for name, x in layer.items()}
    self.sizes, self.grid = sizes, grid
    self.bands = frequencies(sizes, ladder)
    self.local, self.sink = local, sink
    self.cache: list[np.ndarray] = []  # per frame [P, d_c + d_rope]

  def _apply(self, name: str, x: np.ndarray) -> np.ndarray:
    return x @ self.w[name] + self.w[f"{name}_bias"]

  def _angles(self, frame: int) -> np.ndarray:
    """Angles [P, pairs] of the tokens of a frame."""
    t, h, w = self.bands
    rows, columns = self.grid
    return np.stack(
      [
        np.concatenate([frame * t, y * h, x * w])
        for y in range(rows)
        for x in range(columns)
      ]
    )

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """Attends from a chunk `[T, P, E]` and stores it."""
    s = self.sizes
    x = np.asarray(x, np.float64)
    own = [self._apply("kv_down", frame) for frame in x]
    room = self.local - len(x) - self.sink
    sink, rest = self.cache[: self.sink], self.cache[self.sink :]
    seen = [*sink, *rest[max(0, len(rest) - room) :], *own]
    self.cache += own
    content = _normed(np.stack(seen)[..., : s.d_c], self.w["kv_norm"])
    up = self._apply("kv_up", content)
    up = up.reshape(*up.shape[:-1], s.heads, s.d_nope + s.head_dim)
    key, value = up[..., : s.d_nope], up[..., s.d_nope :]
    turned = np.stack(
      [_turned(f[:, s.d_c :], self._angles(i)) for i, f in enumerate(seen)]
    )
    turned = np.repeat(turned[:, :, None], s.heads, 2)
    key = np.concatenate([key, turned], -1)
    latent = _normed(self._apply("q_down", x), self.w["q_norm"])
    query = self._apply("q_up", latent).reshape(*x.shape[:2], s.heads, -1)
    first = len(seen) - len(x)
    positional = [
      _turned(f[..., s.d_nope :], self._angles(first + i)[:, None])
      for i, f in enumerate(query)
    ]
    query = np.concatenate([query[..., : s.d_nope], np.stack(positional)], -1)
    return self._mix(query, key, value)

  def _mix(
    self, query: np.ndarray, key: np.ndarray, value: np.ndarray
  ) -> np.ndarray:
    scores = np.einsum("tphd,kqhd->htpkq", query, key)
    scores /= math.sqrt(self.sizes.head_dim)
    scores = np.exp(scores - scores.max((-2, -1), keepdims=True))
    weights = scores / scores.sum((-2, -1), keepdims=True)
    out = np.einsum("htpkq,kqhd->tphd", weights, value)
    # W_o is the only one that they store transposed; here it is not.
    return self._apply("out", out.reshape(*out.shape[:2], -1))


def draw_network(
  rng: np.random.Generator,
  *,
  variant: str = "early",
  biased: bool = False,
  sizes: Sizes = SIZES,
) -> tuple[Arrays, list[Arrays]]:
  """All tensors of a tiny network in this layout, and its layers."""
  dense = tiny_release.draw(tiny_release.dit_table(), rng)
  file = {n: x for n, x in dense.items() if ".self_attn." not in n}
  layers = []
  for n in range(tiny_release.DIT.num_layers):
    layers.append(draw_layer(rng, biased=biased, sizes=sizes))
    for name, x in stored(
      layers[-1], variant, biased=biased, sizes=sizes
    ).items():
      file[f"blocks.{n}.self_attn.{name}"] = x
  return file, layers
