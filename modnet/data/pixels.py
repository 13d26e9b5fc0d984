"""Augmentations of uint8 images in batches, drawn per sample: shifted crops, mirroring, erasing."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modnet.data.warp import ONE, resampled
from modnet.randomness import Key


class Pixels:
    """An augmentation of uint8 images: ``apply(images, key, ids)`` gives new images of the same shape."""

    def apply(self, images: Tensor, key: Key, ids: Tensor) -> Tensor:
        """Row r of the result depends on ``images[r]``, the key and ``ids[r]`` alone."""
        raise NotImplementedError


class RandomCrop(Pixels):
    """See :class:`modnet.recipe.training.Crop`."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def shifts(self, key: Key, ids: Tensor) -> Tensor:
        """Offsets of the window in the padded image, int64 (B, 2) in 0 … 2 pad; ``pad`` means no shift."""
        return (key.uniform(ids, 2) * (2 * self.pad + 1)).long()

    def apply(self, images: Tensor, key: Key, ids: Tensor) -> Tensor:
        return shifted(images, self.shifts(key, ids), self.pad)


def shifted(images: Tensor, offsets: Tensor, pad: int) -> Tensor:
    """Windows of the zero-padded images at the given offsets (B, 2); ``pad`` both ways gives the images themselves."""
    height, width = images.shape[2:]
    padded = F.pad(images, (pad, pad, pad, pad))
    if images.device.type == "cpu":  # whole rows are copied: several times faster than a gather of pixels
        windows = np.lib.stride_tricks.sliding_window_view(padded.numpy(), (height, width), axis=(2, 3))
        down, right = offsets.numpy().T
        return torch.from_numpy(windows[np.arange(len(images)), :, down, right])
    windows_of = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows_of[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]


class RandomResizedCrop(Pixels):
    """See :class:`modnet.recipe.training.ResizedCrop`; images in memory are resampled bilinearly."""

    attempts = 10

    def __init__(self, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
        self.scale, self.ratio = scale, ratio

    def boxes(self, key: Key, ids: Tensor, height: int, width: int) -> Tensor:
        """Top, left, bottom, right of each sample's part, int64 (B, 4), within the image.

        The first of ten drawn shapes that fits is taken, else the largest middle part within the ratios (Szegedy et
        al. 2015, as torchvision does it).
        """
        draws = key.fold("resized-crop").uniform(ids, 4 * self.attempts).double().view(-1, self.attempts, 4)
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[..., 0])
        low, high = (math.log(r) for r in self.ratio)
        aspect = (low + (high - low) * draws[..., 1]).exp()
        across, down = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (across >= 1) & (across <= width) & (down >= 1) & (down <= height)
        first = fits.double().argmax(1, keepdim=True)
        across, down = (side.gather(1, first)[:, 0] for side in (across, down))
        found = fits.any(1)
        rows, columns = self.middle(height, width)
        down, across = torch.where(found, down, float(rows)), torch.where(found, across, float(columns))
        top, left = draws.gather(1, first[..., None].expand(-1, -1, 4))[:, 0, 2:].unbind(1)
        top = torch.where(found, (top * (height - down + 1)).floor(), ((height - down) / 2).floor())
        left = torch.where(found, (left * (width - across + 1)).floor(), ((width - across) / 2).floor())
        return torch.stack([top, left, top + down, left + across], 1).long()

    def middle(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the largest part of an image that the ratios allow."""
        low, high = self.ratio
        if width < low * height:
            return round(width / low), width
        return (height, round(height * high)) if width > high * height else (height, width)

    def apply(self, images: Tensor, key: Key, ids: Tensor) -> Tensor:
        """Each image's box, resampled to the size of the whole."""
        height, width = images.shape[2:]
        top, left, bottom, right = self.boxes(key, ids, height, width).double().unbind(1)
        rows, columns = (torch.arange(n, device=images.device).double() + 0.5 for n in (height, width))
        down = top[:, None] + rows * ((bottom - top) / height)[:, None] - 0.5
        across = left[:, None] + columns * ((right - left) / width)[:, None] - 0.5
        # A part never reads beyond its own border, as if it were a picture.
        down = down.clamp(top[:, None], bottom[:, None] - 1)
        across = across.clamp(left[:, None], right[:, None] - 1)
        shape = (len(images), height, width)
        down, across = ((place * ONE).round().long() for place in (down[:, :, None], across[:, None, :]))
        return resampled(images, down.expand(shape), across.expand(shape), edge=True)


class RandomFlip(Pixels):
    """See :class:`modnet.recipe.training.Flip`."""

    def __init__(self, p: float) -> None:
        self.p = p

    def apply(self, images: Tensor, key: Key, ids: Tensor) -> Tensor:
        return flipped(images, key.uniform(ids, 1)[:, 0] < self.p)


def flipped(images: Tensor, which: Tensor) -> Tensor:
    """The images, those of ``which`` (bool, (B,)) mirrored left to right."""
    if images.device.type == "cpu":  # whole images are copied: several times faster than a choice for every pixel
        out, chosen = images.numpy().copy(), which.numpy()
        out[chosen] = out[chosen][..., ::-1]
        return torch.from_numpy(out)
    return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)


class RandomErase(Pixels):
    """See :class:`modnet.recipe.training.Erase`; the rectangle's aspect lies between 0.3 and 1 / 0.3."""

    def __init__(self, p: float, area: tuple[float, float]) -> None:
        self.p, self.area = p, area

    def apply(self, images: Tensor, key: Key, ids: Tensor) -> Tensor:
        """The images, noise in a box of those that are chosen."""
        height, width = images.shape[2:]
        chosen = (key.fold("whether").uniform(ids, 1)[:, 0] < self.p).nonzero()[:, 0]
        box = self.boxes(key, ids[chosen], height, width)
        noise = (key.fold("noise").bits(ids[chosen], images[0].numel()) & 255).to(torch.uint8)
        erased = torch.where(inside(box, height, width), noise.view(-1, *images.shape[1:]), images[chosen])
        return images.index_copy(0, chosen, erased)

    def boxes(self, key: Key, ids: Tensor, height: int, width: int) -> Tensor:
        """Top, left, bottom, right of each sample's rectangle, int64 (B, 4), within the image."""
        share, aspect, down, right = key.fold("box").uniform(ids, 4).double().unbind(1)
        low, high = self.area
        pixels = (low + (high - low) * share) * height * width
        ratio = (math.log(0.3) * (1 - 2 * aspect)).exp()
        tall = (pixels * ratio).sqrt().clamp(pixels / width, torch.full_like(pixels, height))
        rows = tall.round().clamp(1, height)
        columns = (pixels / rows).floor().clamp(1, width)
        top, left = (down * (height - rows + 1)).floor(), (right * (width - columns + 1)).floor()
        return torch.stack([top, left, top + rows, left + columns], 1).long()


def inside(box: Tensor, height: int, width: int) -> Tensor:
    """The pixels within each box (top, left, bottom, right), bool (B, 1, H, W)."""
    rows = torch.arange(height, device=box.device)
    columns = torch.arange(width, device=box.device)
    top, left, bottom, right = box[:, :, None].unbind(1)
    down = (rows >= top) & (rows < bottom)
    across = (columns >= left) & (columns < right)
    return (down[:, :, None] & across[:, None, :])[:, None]
