"""Leaves made of the parts of timm's Vision Transformers, under timm's own parameter names.

Each is built from a model's name and plain sizes, so that a chain of them can be written as data.
"""

from __future__ import annotations

import copy
import difflib
import functools
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer, global_pool_nlc
from torch import Tensor, nn

from modnet.chain import Module, Pass, Port
from modnet.errors import RequestError
from modnet.layers.drop_path import survival
from modnet.layers.initialise import initialise_linear

_OWN = ("forward", "forward_features", "forward_head", "_pos_embed", "pool")
_MATRICES = {"attn.qkv.weight": 3, "attn.proj.weight": 1, "mlp.fc1.weight": 1, "mlp.fc2.weight": 1}


@functools.lru_cache(maxsize=8)
def skeleton(name: str, channels: int, size: int, classes: int) -> Any:
    """A timm VisionTransformer without storage, for its structure.

    Raises RequestError for a name that timm does not know, for a model that is not a plain stem, blocks and head, and
    for images that do not divide into its patches.
    """
    known(name)
    try:
        with torch.device("meta"):
            model: Any = create(name, channels, size, classes)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise RequestError(
            f"timm:{name} is no Vision Transformer, ResNet, EfficientNet or ConvNeXt, or cannot be built for "
            f"{size} x {size} images with {channels} channels: {error}"
        ) from error
    _refuse_others(name, model)
    patch = model.patch_embed.patch_size[0]
    if size % patch:
        raise RequestError(
            f"timm:{name} cuts images into patches of {patch} pixels, which do not divide "
            f"{size} x {size} images; resize them to a multiple of {patch}, or use another model"
        )
    return model


def known(name: str) -> str:
    """A model's name without its tag; raises RequestError with the nearest names if timm has no such model."""
    bare = name.partition(".")[0]
    if not timm.is_model(bare):
        close = difflib.get_close_matches(bare, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(f'timm:{c}' for c in close)}?" if close else ""
        raise RequestError(f"timm {timm.__version__} has no model called {bare!r}{hint}")
    return bare


def create(name: str, channels: int, size: int, classes: int, **options: Any) -> nn.Module:
    """A timm model for square images of one size."""
    sizes: dict[str, Any] = {"img_size": size, "in_chans": channels, "num_classes": classes}
    return timm.create_model(name, dynamic_img_size=False, **sizes, **options)


def _refuse_others(name: str, model: Any) -> None:
    plain = isinstance(model, VisionTransformer) and all(
        getattr(type(model), method) is getattr(VisionTransformer, method) for method in _OWN
    )
    if not plain:
        kind = type(model).__name__
        raise RequestError(
            f"timm:{name} is a {kind}, which is more than a stem, blocks and a head in a row; "
            "models of timm's class VisionTransformer become chains (vit_*, deit_*, deit3_*)"
        )
    odd = {type(block).__name__ for block in model.blocks if type(block) is not Block}
    if odd or any(True for _ in model.buffers()):
        raise RequestError(
            f"timm:{name} has blocks of a kind that cannot be built anew from plain values "
            f"({', '.join(sorted(odd)) or 'with buffers'}); choose a model with timm's plain Block"
        )


class TimmPart(Module):
    """What all leaves of timm's parts share: parts of a skeleton, on real storage, freshly drawn."""

    def _adopt(self, source: nn.Module, *names: str) -> None:
        """Take children and parameters of ``source`` under their own names; None stays None."""
        for name in names:
            self._adopt_as(name, getattr(source, name))

    def _adopt_as(self, name: str, part: nn.Module | nn.Parameter | None) -> None:
        if isinstance(part, nn.Parameter):
            fresh = torch.empty(part.shape, dtype=part.dtype)
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(fresh, std=0.02)))
        elif part is None:
            self.register_parameter(name, None)
        else:
            copied = copy.deepcopy(part).to_empty(device=torch.get_default_device())
            self.add_module(name, copied.train())
            _redraw(copied)


def _redraw(part: nn.Module) -> None:
    """Fresh parameters: 0.02 for Linear weights and bare tables, else timm's own reset."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            initialise_linear(module)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.trunc_normal_(parameter, std=0.02)


def _tokens(model: Any) -> Port:
    grid = model.patch_embed.grid_size
    return Port.of("tokens", width=model.embed_dim, prefix=model.num_prefix_tokens, grid=grid)


class TimmStem(TimmPart):
    """Patch embedding, class and register tokens, position table, and a norm where the model has one."""

    role = "stem"
    patch_embed: nn.Module
    norm_pre: nn.Module
    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None
    pos_embed: nn.Parameter | None

    def __init__(self, name: str, channels: int, size: int) -> None:
        super().__init__()
        model = skeleton(name, channels, size, 1)
        self.takes = Port.of("image", channels=channels, size=size)
        self.gives = _tokens(model)
        self._adopt(model, "patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")
        self.late_tokens = model.no_embed_class

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """Images (B, C, H, W) to tokens (B, prefix + N, width)."""
        tokens: Tensor = self.patch_embed(x)
        prefix = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self.late_tokens and self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        tokens = torch.cat([*prefix, tokens], dim=1) if prefix else tokens
        if not self.late_tokens and self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        out: Tensor = self.norm_pre(tokens)
        return out


class TimmBlock(TimmPart):
    """timm's pre-norm block with layer scale; drop path is drawn per sample from the pass."""

    role = "block"
    norm1: nn.Module
    attn: nn.Module
    ls1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module

    def __init__(self, name: str, channels: int, size: int, index: int = 0, drop_path: float = 0.0) -> None:
        super().__init__()
        model = skeleton(name, channels, size, 1)
        self.takes = self.gives = _tokens(model)
        self.drop_path = drop_path
        self._adopt(model.blocks[index], "norm1", "attn", "ls1", "norm2", "mlp", "ls2")

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        factor = survival(self, self.drop_path, x, ctx, branches=2)
        mixed: Tensor = self.ls1(self.attn(self.norm1(x)))
        x = x + mixed if factor is None else x + factor[0] * mixed
        mapped: Tensor = self.ls2(self.mlp(self.norm2(x)))
        return x + mapped if factor is None else x + factor[1] * mapped

    def matrices(self) -> dict[str, int]:
        """As in our own block, where the model has these weights."""
        present = dict(self.named_parameters())
        return {name: count for name, count in _MATRICES.items() if name in present}


class TimmHead(TimmPart):
    """Final norm, the model's own pooling, and the classifier."""

    role = "head"
    norm: nn.Module
    attn_pool: nn.Module | None
    fc_norm: nn.Module
    head: nn.Module

    def __init__(self, name: str, channels: int, size: int, classes: int) -> None:
        super().__init__()
        model = skeleton(name, channels, size, classes)
        self.takes = _tokens(model)
        self.gives = Port.of("logits", classes=classes, per="image")
        self._adopt(model, "norm", "attn_pool", "fc_norm", "head")
        self.pool, self.prefix = model.global_pool, model.num_prefix_tokens
        self.with_prefix = model.pool_include_prefix

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        x = self.norm(x)
        if self.attn_pool is not None:
            x = self.attn_pool(x if self.with_prefix else x[:, self.prefix :])
        else:
            x = global_pool_nlc(x, self.pool, self.prefix, self.with_prefix)
        logits: Tensor = self.head(self.fc_norm(x))
        return logits
