"""Brings pictures of high dynamic range to sRGB.

Phones store them as PQ or HLG in BT.2020 (ITU-R BT.2100), and shown as they are
they look grey. Light up to the white of a page, 203 cd/m^2 (ITU-R BT.2408),
keeps its brightness; brighter light becomes white.
"""

from collections.abc import Callable

from jaxtyping import Float, UInt8
import numpy as np

_WHITE = 203.0  # cd/m^2
_HLG_PEAK = 1000.0  # cd/m^2, of the screen that HLG is made for
_HLG_GAMMA = 1.2  # of that screen

# PQ, BT.2100 table 4.
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
# HLG, BT.2100 table 5.
_A = 0.17883277
_B, _C = 1 - 4 * _A, 0.5 - _A * np.log(4 * _A)
_LUMA = np.array([0.2627, 0.6780, 0.0593])  # BT.2020
# BT.2020 to BT.709, ITU-R BT.2087.
_TO_BT709 = np.array(
  [
    [1.6605, -0.5876, -0.0728],
    [-0.1246, 1.1329, -0.0083],
    [-0.0182, -0.1006, 1.1187],
  ]
)

Light = Float[np.ndarray, "h w 3"]


def _from_pq(signal: Light) -> Light:
  """Returns the light of a PQ signal of 0 to 1, in cd/m^2."""
  root = signal ** (1 / _M2)
  ratio = np.maximum(root - _C1, 0) / (_C2 - _C3 * root)
  return 10_000 * ratio ** (1 / _M1)


def _from_hlg(signal: Light) -> Light:
  """Returns the light of an HLG signal of 0 to 1, in cd/m^2."""
  low, high = signal**2 / 3, (np.exp((signal - _C) / _A) + _B) / 12
  scene = np.where(signal <= 0.5, low, high)
  luma = np.maximum(scene @ _LUMA, 1e-6)[..., None]
  return _HLG_PEAK * luma ** (_HLG_GAMMA - 1) * scene


TRANSFERS: dict[str, Callable[[Light], Light]] = {
  "PQ": _from_pq,
  "HLG": _from_hlg,
}


def to_srgb(
  pixels: UInt8[np.ndarray, "h w 3"], transfer: str
) -> UInt8[np.ndarray, "h w 3"]:
  """Converts pixels to sRGB.

  Args:
    pixels: RGB of BT.2020, coded by the transfer function.
    transfer: A name in `TRANSFERS`.
  """
  light = TRANSFERS[transfer](pixels / 255.0) / _WHITE
  linear = np.clip(light @ _TO_BT709.T, 0, 1)
  # IEC 61966-2-1.
  bright = 1.055 * linear ** (1 / 2.4) - 0.055
  coded = np.where(linear <= 0.0031308, 12.92 * linear, bright)
  return np.rint(255 * coded).astype(np.uint8)
