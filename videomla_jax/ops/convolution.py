"""Convolutions of video: single frames, doubled frames, and over time.

A convolution over three frames has several forms, equal but for the order in
which they add. Which one is fast depends on the library that computes it, so
the platform decides (`form_for`). What they cost is in docs/kernels.md.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

Video = Float[Array, "B T H W C"]
Out = Float[Array, "B t h w c"]
Kernel = Float[Array, "p q C c"]
KernelInTime = Float[Array, "3 p q C c"]

# How programs with convolutions over time are compiled; other platforms than
# GPUs ignore it. By itself XLA puts the channels of volumes first, and would
# transpose activations on both sides of every convolution.
CHANNELS_LAST = {"xla_gpu_force_conv_nhwc": True}
_EIGHT = 8  # tensor cores take channels in multiples of it
_FEW = 16  # channels of which a CPU's vectors are not yet full


def of_frames(
  x: Video,
  kernel: Kernel,
  *,
  stride: int = 1,
  pad: tuple[int, int] = (1, 1),
) -> Out:
  """Returns every frame convolved by itself.

  Args:
    x: Frames.
    kernel: Weights; p and q are the window in pixels.
    stride: Pixels from one window to the next, along both axes.
    pad: Zeros before and after each axis.
  """
  # Frames join the batch, so that XLA sees an ordinary 2D convolution.
  batch, frames = x.shape[:2]
  out = jax.lax.conv_general_dilated(
    x.reshape(-1, *x.shape[2:]),
    kernel,
    (stride, stride),
    [pad, pad],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return out.reshape(batch, frames, *out.shape[1:])


@jax.custom_vjp
def of_doubled_frames(x: Video, kernel: Float[Array, "3 3 C c"]) -> Out:
  """Returns frames whose pixels are repeated 2 x 2, each convolved by itself.

  A window of 3 x 3 repeated pixels sees only 2 x 2 different ones. The weights
  of equal pixels are added up, so that each pixel gets four outputs by four
  windows of 2 x 2: 4/9 of the products, and no repeated pixels in memory.

  Args:
    x: Frames before their pixels are repeated.
    kernel: Weights.
  """
  height, width = x.shape[2:4]
  # One convolution of all four: window (a, b) stands at pixel (i, j) of the
  # padded frame for output (2 i - a, 2 j - b).
  joined = jnp.concatenate(list(_four_windows(kernel)), axis=-1)
  four = jnp.split(of_frames(x, joined), 4, axis=-1)
  corners = zip(four, np.ndindex(2, 2), strict=True)
  return _interleave(
    [y[:, :, a : a + height, b : b + width] for y, (a, b) in corners]
  )


def _of_doubled_frames_forward(
  x: Video, kernel: Float[Array, "3 3 C c"]
) -> tuple[Out, tuple[Video, Float[Array, "3 3 C c"]]]:
  return of_doubled_frames(x, kernel), (x, kernel)


def _of_doubled_frames_backward(
  saved: tuple[Video, Float[Array, "3 3 C c"]], gradient: Out
) -> tuple[Video, Float[Array, "3 3 C c"]]:
  """Returns the gradients of frames and weights.

  XLA's gradient of 2 x 2 weights takes 35 ms on a CPU however few pixels there
  are, twenty times that of 3 x 3. So the windows are filled up with zeros here.
  """
  return jax.vjp(_of_doubled_frames_filled_up, *saved)[1](gradient)


of_doubled_frames.defvjp(
  _of_doubled_frames_forward, _of_doubled_frames_backward
)


def _of_doubled_frames_filled_up(
  x: Video, kernel: Float[Array, "3 3 C c"]
) -> Out:
  """Does what `of_doubled_frames` does by windows of 3 x 3."""
  filled = [
    jnp.pad(window, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0)))
    for window, (a, b) in zip(
      _four_windows(kernel), np.ndindex(2, 2), strict=True
    )
  ]
  joined = jnp.concatenate(filled, axis=-1)
  return _interleave(jnp.split(of_frames(x, joined), 4, axis=-1))


def _four_windows(
  kernel: Float[Array, "3 3 C c"],
) -> Iterator[Float[Array, "2 2 C c"]]:
  """Yields the windows of the four outputs of a pixel, row by row."""
  for half in _merged(kernel, axis=0):
    yield from _merged(half, axis=1)


def _interleave(four: list[Out]) -> Float[Array, "B t h2 w2 c"]:
  """Makes the four outputs of each pixel a square of pixels.

  Args:
    four: Top left, top right, bottom left and bottom right outputs.
  """
  rows = [jnp.stack(four[i : i + 2], axis=4) for i in (0, 2)]
  out = jnp.stack(rows, axis=3)  # B T H 2 W 2 c
  batch, frames, height, _, width, _, _ = out.shape
  return out.reshape(batch, frames, 2 * height, 2 * width, -1)


def _merged(kernel: Array, *, axis: int) -> tuple[Array, Array]:
  """Returns the two windows that see each pixel once, along one axis.

  Args:
    kernel: Weights for three neighbours along the axis.
    axis: The axis.
  """
  first, middle, last = jnp.split(kernel, 3, axis=axis)
  before = jnp.concatenate([first, middle + last], axis=axis)
  after = jnp.concatenate([first + middle, last], axis=axis)
  return before, after


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
  """A way to compute a convolution over three frames.

  Attributes:
    lay_out: Turns weights `[3, p, q, C, c]` into what `apply` takes.
    apply: Turns frames, those weights and a `stride` in frames into outputs;
      they may have more channels than c, which come last.
    one_buffer: Whether the frames of the past and new ones are written into
      one array, which nothing but the convolution and the memory reads.
    latents_at_once: Latent frames that a decoder computes side by side where
      memory is not to be spared.
  """

  lay_out: Callable[[KernelInTime], Array]
  apply: Callable[..., Out]
  one_buffer: bool = False
  latents_at_once: int = 1


def _windows(frames: Video, stride: int) -> list[Array]:
  """Returns the first, second and third frame of every window."""
  last = frames.shape[1] - 2
  return [frames[:, i : i + last : stride] for i in range(3)]


def _sum(frames: Video, kernel: KernelInTime, *, stride: int) -> Out:
  """Adds up a convolution of single frames for each of the three.

  Three frames of few channels are laid side by side instead, which is up to
  three times as fast.
  """
  if kernel.shape[-2] <= _FEW:
    return _channels(frames, _join_inputs(kernel), stride=stride)
  pad = (kernel.shape[1] // 2,) * 2
  terms = zip(_windows(frames, stride), kernel, strict=True)
  first, second, third = (of_frames(x, k, pad=pad) for x, k in terms)
  return first + second + third


def _join_inputs(kernel: KernelInTime) -> Float[Array, "p q c3 c"]:
  """Lays the weights of three frames side by side."""
  return jnp.concatenate(list(kernel), axis=-2)


def _channels(
  frames: Video, kernel: Float[Array, "p q c3 c"], *, stride: int
) -> Out:
  """Lays three frames side by side in the channels of one."""
  pad = (kernel.shape[0] // 2,) * 2
  joined = jnp.concatenate(_windows(frames, stride), axis=-1)
  return of_frames(joined, kernel, pad=pad)


def _fill_up(kernel: KernelInTime) -> Float[Array, "3 p q CC cc"]:
  """Adds channels of zeros up to a multiple of eight."""
  missing = [-n % _EIGHT for n in kernel.shape[-2:]]
  return jnp.pad(kernel, [(0, 0)] * 3 + [(0, n) for n in missing])


def _volume(
  frames: Video, kernel: Float[Array, "3 p q CC cc"], *, stride: int
) -> Out:
  """Convolves over time, rows and columns at once."""
  pad = (kernel.shape[1] // 2,) * 2
  missing = kernel.shape[-2] - frames.shape[-1]
  if missing:
    frames = jnp.pad(frames, [(0, 0)] * 4 + [(0, missing)])
  return jax.lax.conv_general_dilated(
    frames,
    kernel,
    (stride, 1, 1),
    [(0, 0), pad, pad],
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )


FORMS: dict[str, Form] = {
  "sum": Form(lay_out=lambda kernel: kernel, apply=_sum),
  "channels": Form(lay_out=_join_inputs, apply=_channels),
  "volume": Form(
    lay_out=_fill_up, apply=_volume, one_buffer=True, latents_at_once=3
  ),
}


def form_for(platform: str) -> str:
  """Returns the key of `FORMS` that a platform takes.

  On a CPU the sum is up to twice as fast as a convolution over time and space.
  On a GPU it moves three times the bytes. TPUs were not looked at.

  Args:
    platform: "cpu", "gpu" or "tpu".
  """
  return "volume" if platform == "gpu" else "sum"
