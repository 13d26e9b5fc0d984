"""The built-in sources: what each one is, known without reading it, and how to read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from modnet.chain import Port
from modnet.data import fashion_mnist as fashion
from modnet.data import idx
from modnet.data.splits import Dataset, Split, check_labels, held_out
from modnet.errors import RunFailed
from modnet.recipe.sources import Source

FASHION_CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_DIGITS_TEST = 36  # of each class, about a fifth
_DIGITS_SEED = 20_240_301


@dataclass(frozen=True)
class Description:
    """What a source's builder gives: its facts at no cost, and ``read()`` for its own two sets.

    ``measured``: training images as they are measured on, for val; None: as they are trained on.
    ``whole(fingerprint)``: the data set of a source that has all three splits of its own; ``read`` is not asked then.
    ``moments``: mean and standard deviation per channel if they are constants of the source; None: they are measured.
    """

    classes: tuple[str, ...]
    port: Port
    fingerprint: str
    read: Callable[[], tuple[Split, Split]]
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    measured: Callable[[Split], Split] | None = None
    whole: Callable[[str], Dataset] | None = None


def fashion_mnist(params: Source) -> Description:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey pictures of clothes, 28 x 28."""
    port = Port.of("image", channels=1, size=28)
    return Description(FASHION_CLASSES, port, "-".join(fashion.FILES.values()), _read_fashion)


def _read_fashion() -> tuple[Split, Split]:
    raw = fashion.read()
    parts = []
    for part in ("train", "t10k"):
        where = f"Fashion-MNIST's {part} labels"
        images = idx.parse(raw[f"{part}-images-idx3-ubyte"], f"Fashion-MNIST's {part} images")
        labels = idx.parse(raw[f"{part}-labels-idx1-ubyte"], where)
        if images.dim() != 3 or labels.shape != images.shape[:1]:
            raise RunFailed(f"{where} do not go with the images: {labels.shape}, {images.shape}.")
        parts.append(Split.of(images[:, None], check_labels(labels, 10, where)))
    return parts[0], parts[1]


def digits(params: Source) -> Description:
    """1,797 grey handwritten digits, 8 x 8 (in scikit-learn), 36 of each class kept for test."""
    names = tuple(str(digit) for digit in range(10))
    return Description(names, Port.of("image", channels=1, size=8), "sklearn-digits-1", _read_digits)


def _read_digits() -> tuple[Split, Split]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    every = Split.of(images, check_labels(torch.from_numpy(bunch.target), 10, "digits"))
    train, test = held_out(every.labels, 10, most=10 * _DIGITS_TEST, seed=_DIGITS_SEED, share=0.25)
    return Split.of(images[train], every.labels[train]), Split.of(images[test], every.labels[test])
