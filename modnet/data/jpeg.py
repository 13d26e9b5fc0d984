"""What JPEG compression loses (ITU-T T.81, baseline), computed for all images at once and in whole numbers.

The lossless half of a codec is left out, for nothing of it can be seen; no library's version changes a result.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from modnet.data import exact
from modnet.data.shift_table import severity_of

# The standard's example tables (Annex K), for luminance and chrominance.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
_SCALE = 1 << 12  # of one pass of the transform


def jpeg_compression(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """Blocks of 8 x 8 lose their fine detail; colour, at half the resolution, loses more."""
    quality = int(severity_of("jpeg_compression", "quality", severity))
    values = images.to(torch.int64)
    if images.shape[1] == 1:
        return exact.as_images(coded(values, scaled(_LUMINANCE, quality)))
    luminance, chroma = _split_colour(values)
    luminance = coded(luminance, scaled(_LUMINANCE, quality))
    chroma = _enlarged(coded(_halved(chroma), scaled(_CHROMINANCE, quality)), images.shape[2:])
    return exact.as_images(_join_colour(luminance, chroma))


def scaled(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """A quantisation table at a quality of 1 … 100, by the rule of the Independent JPEG Group; int64 (8, 8)."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * percent + 50) // 100).clamp(1, 255)


def coded(values: Tensor, steps: Tensor) -> Tensor:
    """The values (B, C, H, W) after transform, quantisation and back; borders are repeated to whole blocks."""
    height, width = values.shape[2:]
    padded = F.pad(values.double() - 128, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)
    basis = _basis()
    waves = (basis @ blocks @ basis.T).long()
    kept = exact.divided(waves, steps * _SCALE**2) * steps
    back = exact.divided((basis.T @ kept.double() @ basis).long(), _SCALE**2) + 128
    return back.transpose(3, 4).reshape(padded.shape)[:, :, :height, :width].clamp(0, 255)


def _basis() -> Tensor:
    """The orthonormal cosine transform of 8 points in units of 1 / 4096, whole numbers."""
    rows = []
    for wave in range(8):
        scale = math.sqrt((1 if wave == 0 else 2) / 8) * _SCALE
        rows.append([round(scale * math.cos((2 * n + 1) * wave * math.pi / 16)) for n in range(8)])
    return torch.tensor(rows, dtype=torch.float64)


def _split_colour(values: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance (B, 1, H, W) and the two colour differences about 128 (B, 2, H, W), as JFIF defines them."""
    red, green, blue = values.split(1, dim=1)
    luminance = exact.divided(299 * red + 587 * green + 114 * blue, 1000)
    blueness = exact.divided(500_000 * blue - 168_736 * red - 331_264 * green, 1_000_000) + 128
    redness = exact.divided(500_000 * red - 418_688 * green - 81_312 * blue, 1_000_000) + 128
    return luminance, torch.cat([blueness, redness], 1).clamp(0, 255)


def _join_colour(luminance: Tensor, chroma: Tensor) -> Tensor:
    blueness, redness = (chroma - 128).split(1, dim=1)
    red = luminance + exact.divided(1_402_000 * redness, 1_000_000)
    green = luminance - exact.divided(344_136 * blueness + 714_136 * redness, 1_000_000)
    blue = luminance + exact.divided(1_772_000 * blueness, 1_000_000)
    return torch.cat([red, green, blue], 1)


def _halved(values: Tensor) -> Tensor:
    even = F.pad(values.double(), (0, values.shape[3] % 2, 0, values.shape[2] % 2), mode="replicate").long()
    return exact.divided(even.unfold(2, 2, 2).unfold(3, 2, 2).sum((4, 5)), 4)


def _enlarged(values: Tensor, shape: torch.Size) -> Tensor:
    return values.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : shape[0], : shape[1]]
