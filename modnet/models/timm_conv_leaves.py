"""Leaves made of the parts of timm's convolutional networks, under timm's own parameter names.

ResNets, EfficientNets and ConvNeXts are a stem, stages of blocks, and a head. Each leaf is built from a model's name
and plain sizes, so that a chain of them can be written as data. Between leaves flow feature maps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from timm.models import is_model_in_modules
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from torch import Tensor, nn

from modnet.chain import Pass, Port
from modnet.errors import RequestError
from modnet.layers.adapters import maps
from modnet.models.timm_leaves import TimmPart, known

FILES = ("resnet", "efficientnet", "convnext")
"""The files of timm whose models may be of the three classes."""


@dataclass(frozen=True)
class Skeleton:
    """A timm network without storage, taken apart: names of its parts in order, and what flows between them.

    ``stages``: for each stage the names of its blocks. ``downs``: the part in front of a block, by the block's name.
    ``flows``: what the stem and each block give. ``last``: what enters the head.
    """

    model: Any
    stem: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    downs: dict[str, str]
    neck: tuple[str, ...]
    head: tuple[str, ...]
    flows: tuple[Port, ...]
    last: Port

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of all blocks in order."""
        return tuple(name for stage in self.stages for name in stage)


def is_convolutional(name: str) -> bool:
    """Whether a timm model is of one of the files that hold the three classes; raises RequestError if unknown."""
    return bool(is_model_in_modules(known(name), FILES))


def create(name: str, channels: int, classes: int, **options: Any) -> nn.Module:
    """A timm network for images of any size, without dropout and stochastic depth, which timm would not key."""
    sizes: dict[str, Any] = {"in_chans": channels, "num_classes": classes, "drop_rate": 0.0, "drop_path_rate": 0.0}
    model: nn.Module = timm.create_model(name, **sizes, **options)
    return model


@functools.lru_cache(maxsize=8)
def skeleton(name: str, channels: int, size: int, classes: int) -> Skeleton:
    """The parts of a convolutional timm model for images of a size.

    Raises RequestError for a name that timm does not know, for a model of another kind, and for images that are too
    small for it.
    """
    known(name)
    try:
        with torch.device("meta"):
            model = create(name, channels, classes)
            _refuse_others(name, model)
            return _taken_apart(model, torch.zeros(1, channels, size, size))
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"timm:{name} cannot be built for {size} x {size} images with {channels} channels: {error}"
        ) from error


def _refuse_others(name: str, model: nn.Module) -> None:
    if type(model) not in (ResNet, EfficientNet, ConvNeXt):
        raise RequestError(
            f"timm:{name} is a {type(model).__name__}; of timm's convolutional networks, those of the classes ResNet, "
            "EfficientNet and ConvNeXt become chains (resnet50, tf_efficientnet_lite0, convnext_tiny, ...)"
        )
    held = model.state_dict().keys()
    loose = [buffer for buffer, _ in model.named_buffers() if buffer not in held]
    random = [part for part, m in model.named_modules() if isinstance(m, nn.Dropout | DropPath) and _rate(m) > 0]
    if loose or random:
        raise RequestError(
            f"timm:{name} has parts that a chain cannot hold ({', '.join((loose + random)[:3])}): constants outside "
            "its state, or dropout of its own; choose another variant"
        )


def _rate(part: nn.Module) -> float:
    return float(getattr(part, "p", 0.0) or getattr(part, "drop_prob", 0.0) or 0.0)


def _taken_apart(model: nn.Module, x: Tensor) -> Skeleton:
    stem, stages, neck, head = _names(model)
    downs = {
        stage[0]: down
        for stage in stages
        if "downsample" in (down := f"{stage[0].rpartition('.blocks.')[0]}.downsample") and _present(model, down)
    }
    model.eval()
    x = _run(model, stem, x)
    flows = [_port(x)]
    for stage in stages:
        for block in stage:
            x = _run(model, [downs[block], block] if block in downs else [block], x)
            flows.append(_port(x))
    last = _port(_run(model, neck, x))
    return Skeleton(model, stem, stages, downs, neck, head, tuple(flows), last)


def _names(model: Any) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], tuple[str, ...], tuple[str, ...]]:
    """The names of the parts of stem, stages, neck (between blocks and pooling) and head."""
    if isinstance(model, ResNet):
        stages = tuple(_children(model, f"layer{i}") for i in range(1, 5))
        return ("conv1", "bn1", "act1", "maxpool"), stages, (), ("global_pool", "fc")
    if isinstance(model, EfficientNet):
        stages = tuple(_children(model, f"blocks.{i}") for i in range(len(model.blocks)))
        neck = tuple(name for name in ("conv_head", "bn2") if _present(model, name))
        return ("conv_stem", "bn1"), stages, neck, ("global_pool", "classifier")
    stages = tuple(_children(model, f"stages.{i}.blocks") for i in range(len(model.stages)))
    neck = tuple(name for name in ("norm_pre",) if _present(model, name))
    return ("stem",), stages, neck, ("head",)


def _children(model: nn.Module, name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{child}" for child, _ in model.get_submodule(name).named_children())


def _present(model: nn.Module, name: str) -> bool:
    try:
        return not isinstance(model.get_submodule(name), nn.Identity)
    except AttributeError:
        return False


def _run(model: nn.Module, names: Any, x: Tensor) -> Tensor:
    for name in names:
        x = model.get_submodule(name)(x)
    return x


def _port(x: Tensor) -> Port:
    return maps(x.shape[1], (x.shape[2], x.shape[3]))


class _Row(TimmPart):
    """Parts of the model that run one after another."""

    def _take(self, model: nn.Module, names: tuple[str, ...]) -> None:
        self._adopt(model, *names)
        self.order = names

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


class ConvStem(_Row):
    """Everything before the first block: images (B, C, H, W) to feature maps, which lie channels last in memory."""

    role = "stem"

    def __init__(self, name: str, channels: int, size: int) -> None:
        super().__init__()
        parts = skeleton(name, channels, size, 1)
        self.takes, self.gives = Port.of("image", channels=channels, size=size), parts.flows[0]
        self._take(parts.model, parts.stem)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        # Channels last through the whole network: up to three times as fast on a CPU, and tokens are a mere view.
        return super().forward(x.contiguous(memory_format=torch.channels_last), ctx)


class ConvBlock(TimmPart):
    """One block, with what its stage puts in front of it (ConvNeXt's downsampling)."""

    role = "block"
    block: nn.Module
    downsample: nn.Module | None

    def __init__(self, name: str, channels: int, size: int, index: int) -> None:
        super().__init__()
        parts = skeleton(name, channels, size, 1)
        self.takes, self.gives = parts.flows[index], parts.flows[index + 1]
        own = parts.blocks[index]
        self._adopt_as("downsample", parts.model.get_submodule(parts.downs[own]) if own in parts.downs else None)
        self._adopt_as("block", parts.model.get_submodule(own))

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        out: Tensor = self.block(x if self.downsample is None else self.downsample(x))
        return out

    def matrices(self) -> dict[str, int]:
        """The weights of linear layers, where a block has such (ConvNeXt's perceptron)."""
        return {name: 1 for name, p in self.named_parameters() if p.ndim == 2}


class ConvNeck(_Row):
    """What stands between the last block and pooling (EfficientNet's last convolution); of the last module."""

    role = "head"

    def __init__(self, name: str, channels: int, size: int) -> None:
        super().__init__()
        parts = skeleton(name, channels, size, 1)
        self.takes, self.gives = parts.flows[-1], parts.last
        self._take(parts.model, parts.neck)


class ConvHead(_Row):
    """The model's own pooling, and the classifier."""

    role = "head"

    def __init__(self, name: str, channels: int, size: int, classes: int) -> None:
        super().__init__()
        parts = skeleton(name, channels, size, classes)
        self.takes, self.gives = parts.last, Port.of("logits", classes=classes, per="image")
        self._take(parts.model, parts.head)
