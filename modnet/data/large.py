"""Images that stay on disk: read, and for training transformed, by the workers of a torch DataLoader.

What a sample becomes depends on its key and number alone, so neither the number of workers nor the step at which an
epoch is taken up can be seen in the batches.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from modnet.data import randaugment
from modnet.data.pixels import Pixels, RandomErase, RandomResizedCrop
from modnet.data.splits import Split
from modnet.errors import RequestError, RunFailed
from modnet.randomness import Key
from modnet.recipe.training import Crop, Erase, Flip, RandAugment, ResizedCrop
from modnet.registry import Params

Box = tuple[float, float, float, float]  # left, upper, right, lower


class Change(Protocol):
    """What becomes of one image in training."""

    def __call__(self, image: Tensor, sample: int) -> Tensor:
        """Another uint8 image (C, H, W) for one of the same shape; ``sample`` numbers the draw."""
        ...

    def part(self, sample: int) -> Callable[[int, int], Box] | None:
        """Which part of the picture is read at all; None: as for measuring."""
        ...


class Encoded(Protocol):
    """An image that lies in a file of many; ``str()`` says which it is."""

    def open(self) -> IO[bytes]:
        """Its encoded bytes, as a file."""
        ...


File = Path | Encoded
_READ_AT_ONCE = 64


def default_workers() -> int:
    """``MODNET_WORKERS``, else one worker less than there are cores, at most 8; raises RequestError for other text."""
    given = os.environ.get("MODNET_WORKERS", "").strip()
    if not given:
        return min(8, (os.cpu_count() or 1) - 1)
    if not given.isdecimal():
        raise RequestError(f"MODNET_WORKERS is {given!r}: set it to a whole number, 0 for no processes of their own.")
    return int(given)


@dataclass(frozen=True)
class Reader:
    """Reads an image file as uint8 (channels, size, size): shorter side resized, middle square kept.

    ``squash``: both sides are resized instead, bicubically, so that all of the image is kept but not its shape.
    ``resize``: the shorter side becomes so long, bicubically, before the middle square is cut out, so that a margin is
    lost (the customary evaluation on ImageNet).
    """

    size: int
    channels: int
    squash: bool = False
    resize: int | None = None

    def __call__(self, file: File) -> Tensor:
        """The whole picture, fitted; raises RunFailed naming a file that is no image or is damaged."""
        return self._read(file, self.fitted)

    def part(self, file: File, box: Callable[[int, int], Box]) -> Tensor:
        """A part of the picture, resized bicubically; ``box(width, height)`` says which. Raises as reading does."""
        square = (self.size, self.size)
        return self._read(file, lambda i: i.resize(square, Image.Resampling.BICUBIC, box(*i.size)))

    def fitted(self, image: Image.Image) -> Image.Image:
        """The square that is shown of a picture."""
        square = (self.size, self.size)
        if self.squash:
            image = image.resize(square, Image.Resampling.BICUBIC)
        if self.resize is None:
            return image if self.squash else ImageOps.fit(image, square, Image.Resampling.BILINEAR)
        short, (width, height) = min(image.size), image.size
        sides = (int(self.resize * width / short), int(self.resize * height / short))
        left, top = (round((side - self.size) / 2) for side in sides)
        wide = image.resize(sides, Image.Resampling.BICUBIC)
        return wide.crop((left, top, left + self.size, top + self.size))

    def _read(self, file: File, shown: Callable[[Image.Image], Image.Image]) -> Tensor:
        try:
            with Image.open(file if isinstance(file, Path) else file.open()) as opened:
                pixels = np.array(shown(ImageOps.exif_transpose(opened).convert("L" if self.channels == 1 else "RGB")))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RunFailed(
                f"cannot read the image {file}: {error}. Mend or remove the file, then start again."
            ) from error
        return torch.from_numpy(pixels).view(self.size, self.size, self.channels).permute(2, 0, 1).contiguous()


class _Rows(Dataset[tuple[Tensor, str]]):
    """Chosen rows of a split as the DataLoader wants them; errors are carried to the main process as text."""

    def __init__(self, split: FolderSplit, change: Change | None) -> None:
        self.split, self.change = split, change

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, str]:
        row, draw = place
        file, part = self.split.files[row], self.change.part(draw) if self.change else None
        try:
            image = self.split.reader(file) if part is None else self.split.reader.part(file, part)
        except RunFailed as error:
            return torch.empty(0), str(error)
        return (self.change(image, draw) if self.change else image), ""


def _stacked(samples: list[tuple[Tensor, str]]) -> tuple[Tensor, str]:
    wrong = next((text for _, text in samples if text), "")
    return (torch.empty(0), wrong) if wrong else (torch.stack([image for image, _ in samples]), "")


class FolderSplit(Split):
    """A split whose images stay on disk; it offers all that a resident one does."""

    files: Sequence[File]
    reader: Reader
    workers: int

    def __init__(
        self, files: Sequence[File], labels: Tensor, ids: Tensor, reader: Reader, workers: int | None = None
    ) -> None:
        values = {"files": files, "labels": labels, "ids": ids, "reader": reader}
        for name, value in {**values, "workers": default_workers() if workers is None else workers}.items():
            object.__setattr__(self, name, value)

    @property
    def images(self) -> Tensor:
        """All images, read now, uint8 (N, C, H, W)."""
        shape = (len(self), self.reader.channels, self.reader.size, self.reader.size)
        every = torch.empty(shape, dtype=torch.uint8)
        for start, (images, _) in zip(range(0, len(self), _READ_AT_ONCE), self.batches(_READ_AT_ONCE), strict=True):
            every[start : start + len(images)] = images
        return every

    def take(self, rows: Tensor) -> FolderSplit:
        """The chosen rows, in the order given; nothing is read."""
        files = [self.files[row] for row in rows]
        return FolderSplit(files, self.labels[rows], self.ids[rows], self.reader, self.workers)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images (B, C, H, W) and labels (B,), in order; the last batch may be partial."""
        return self.turns(size, 0, 1)

    def turns(self, size: int, first: int, of: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every ``of``-th of the batches, from batch ``first`` on; the others are not read."""
        rows = list(torch.arange(len(self)).split(size))[first::of] if len(self) else []
        for some, images in zip(rows, self.read(rows), strict=True):
            yield images, self.labels[some]

    def read(
        self, batches: Sequence[Tensor], change: Change | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """The images of each batch of rows, uint8 (B, C, H, W), changed one by one by the workers.

        ``draws``: what numbers the draws of each row; its sample number where they are left out.
        """
        numbers = [self.ids[rows] for rows in batches] if draws is None else draws
        places = [list(zip(r.tolist(), n.tolist(), strict=True)) for r, n in zip(batches, numbers, strict=True)]
        loader = DataLoader(
            _Rows(self, change),
            batch_sampler=places,
            num_workers=min(self.workers, len(batches)),
            collate_fn=_stacked,
            generator=torch.Generator(),  # it would draw a seed from the global one, and change it
        )
        for images, wrong in loader:
            if wrong:
                raise RunFailed(wrong)
            yield images


@dataclass(frozen=True)
class Transformed:
    """Random transforms.v2 of one image, drawn from the key and the sample's number; ``crop`` says what is read."""

    transform: v2.Transform | None
    key: Key
    crop: RandomResizedCrop | None = None

    def __call__(self, image: Tensor, sample: int) -> Tensor:
        if self.transform is None:
            return image
        with self.key.fold(sample).forked():
            changed: Tensor = self.transform(image)
        return changed

    def part(self, sample: int) -> Callable[[int, int], Box] | None:
        return None if self.crop is None else functools.partial(self._box, self.crop, sample)

    def _box(self, crop: RandomResizedCrop, sample: int, width: int, height: int) -> Box:
        top, left, bottom, right = crop.boxes(self.key, torch.tensor([sample]), height, width)[0].tolist()
        return left, top, right, bottom


def transformed(augment: Sequence[Params], size: int, key: Key) -> Transformed | None:
    """What a recipe's pixel augmentations make of a picture that is read from the disk; None if there are none.

    A random resized crop comes first, whatever the order, as it is made of the whole picture.
    """
    made = transform(augment, size)
    crop = next((RandomResizedCrop(p.scale, p.ratio) for p in augment if isinstance(p, ResizedCrop)), None)
    return None if made is None and crop is None else Transformed(made, key, crop)


def transform(augment: Sequence[Params], size: int) -> v2.Transform | None:
    """The pixel augmentations of a recipe as transforms.v2; None if there are none."""
    made = [_transform(params, size) for params in augment]
    chosen = [t for t in made if t is not None]
    return v2.Compose(chosen) if chosen else None


def _transform(params: Params, size: int) -> v2.Transform | None:
    match params:
        case Crop(pad=pad):
            return v2.RandomCrop(size, padding=pad)
        case Flip(p=p):
            return v2.RandomHorizontalFlip(p)
        case Erase(p=p, area=area):
            return v2.Lambda(functools.partial(_keyed, RandomErase(p, area)))
        case RandAugment(ops=ops, m=m, std=std):
            return v2.Lambda(functools.partial(_keyed, randaugment.RandAugment(ops, m, std)))
    return None


def _keyed(change: Pixels, image: Tensor) -> Tensor:
    """Our own erasing and RandAugment (v2's fill with no noise and know no spread), keyed from torch's generator."""
    key = Key(int(torch.randint(1 << 62, (1,))))
    return change.apply(image[None], key, torch.zeros(1, dtype=torch.int64))[0]
