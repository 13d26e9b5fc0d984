"""Checkpoints of Deep Incubation (LeapLabTHU/Deep-Incubation): ``model_stages`` and the doubled ``model``.

``model_stages`` is a list of one state dict a module, block indices counted from 0 in each. ``model`` holds every
tensor twice, under ``stages.{k}.…`` and under flat timm names, since the same parts are registered in both places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modnet.chain import Chain, Port
from modnet.errors import RequestError
from modnet.interop.files import read_torch, write_torch
from modnet.interop.keys import (
    Loaded,
    State,
    check_published,
    load_published,
    published_state,
    split_experts,
    stacked_experts,
)
from modnet.models.vit import vit
from modnet.models.vmoe import vmoe
from modnet.recipe.models import ViT, VMoE


def stages_of(content: Mapping[str, Any], source: str) -> list[State]:
    """The modules' state dicts of a checkpoint's content, after checking that all copies are equal.

    Reads ``model_stages``, else the ``stages.`` half of ``model``. Raises RequestError where there is neither, or
    where two copies of a tensor differ, naming them.
    """
    stages = content.get("model_stages")
    model = content.get("model")
    if not stages and isinstance(model, Mapping):
        stages = stages_of_model(model)
    if not stages:
        raise RequestError(
            f"{source} is no Deep Incubation checkpoint: it has neither model_stages nor a model "
            f"with stages; it holds {', '.join(map(str, content)) or 'nothing'}"
        )
    found = [dict(stage) for stage in stages]
    if isinstance(model, Mapping):
        check_copies(found, model, source)
    return found


def stages_of_model(model: Mapping[str, Tensor]) -> list[State]:
    """The state dicts under ``stages.{k}.`` of a doubled state dict, in order; empty if there are none."""
    stages: dict[int, State] = {}
    for name, tensor in model.items():
        if name.startswith("stages."):
            _, index, rest = name.split(".", 2)
            stages.setdefault(int(index), {})[rest] = tensor
    return [stages[index] for index in sorted(stages)]


def depth_of(stage: Mapping[str, Tensor]) -> int:
    """Number of blocks in a module's state dict."""
    return len({name.split(".")[1] for name in stage if name.startswith("blocks.")})


def flattened(stages: Sequence[Mapping[str, Tensor]]) -> State:
    """The same tensors under flat timm names: block j of module k is block j + the depths before it."""
    flat: State = {}
    before = 0
    for stage in stages:
        for name, tensor in stage.items():
            first, _, rest = name.partition(".")
            if first == "blocks":
                index, _, inner = rest.partition(".")
                name = f"blocks.{before + int(index)}.{inner}"
            flat[name] = tensor
        before += depth_of(stage)
    return flat


def doubled(stages: Sequence[Mapping[str, Tensor]]) -> State:
    """Every tensor twice, as the published ``model`` holds it."""
    staged = {f"stages.{k}.{name}": t for k, stage in enumerate(stages) for name, t in stage.items()}
    return {**flattened(stages), **staged}


def check_copies(stages: Sequence[Mapping[str, Tensor]], model: Mapping[str, Tensor], source: str) -> None:
    """Raise RequestError naming every tensor of ``model`` that is absent from, or differs from, the stages."""
    expected = doubled(stages)
    present = {kind: [n for n in model if n.startswith("stages.") == kind] for kind in (True, False)}
    odd = sorted(model.keys() - expected.keys())
    odd += [n for n in model if n in expected and not torch.equal(model[n], expected[n])]
    for kind, names in present.items():
        if names:  # one half may be absent altogether, but no part of it
            half = {n for n in expected if n.startswith("stages.") == kind}
            odd += sorted(half - set(names))
    if odd:
        raise RequestError(f"{source} contradicts itself: its copies differ in {', '.join(odd)}")


def read_stages(path: Path) -> list[State]:
    """The modules' state dicts of a checkpoint file; raises as :func:`stages_of` does."""
    return stages_of(read_torch(path), str(path))


def load_stages(chain: Chain, stages: Sequence[Mapping[str, Tensor]], source: str) -> list[Loaded]:
    """Copy every module's tensors into the chain's modules.

    Raises RequestError where the number of modules or a module's number of blocks differs (the published code would
    truncate silently), or where any tensor is missing, unexpected or misshapen.
    """
    depths = tuple(depth_of(stage) for stage in stages)
    if depths != chain.depths:
        raise RequestError(
            f"{source} is divided into modules of {list(depths)} blocks, the network into "
            f"{list(chain.depths)}; cut the network like the checkpoint first"
        )
    named = [(chain[k], s, f"module {k} of {source}") for k, s in enumerate(stages)]
    for module in named:
        check_published(*module)  # all of them before any is loaded
    return [load_published(*module) for module in named]


def write_stages(chain: Chain, path: Path, *, split: bool = False, **extra: Any) -> None:
    """Write a chain as a Deep Incubation checkpoint: ``model_stages``, the doubled ``model``, and extras.

    ``split``: with a tensor for each expert, as older fastmoe has it.
    """
    stages = [published_state(module) for module in chain]
    stages = [split_experts(stage) for stage in stages] if split else stages
    write_torch({"model": doubled(stages), "model_stages": stages, **extra}, path)


def architecture(
    stages: Sequence[Mapping[str, Tensor]], heads: int | None = None, norm_eps: float | None = None
) -> tuple[ViT, Port, int]:
    """Parameters, image port and classes of the ViT that these tensors belong to.

    Heads and the norm's eps are in no tensor: by default a head for every 64 channels (80 for the huge model), and
    1e-5 without qkv bias, else 1e-6, as published. Raises RequestError if stem or head is missing.
    """
    flat = stacked_experts(flattened(stages))
    absent = {"patch_embed.proj.weight", "pos_embed", "cls_token", "head.weight"} - flat.keys()
    if absent:
        raise RequestError(f"these modules are no whole network: {', '.join(sorted(absent))} missing")
    width, channels, patch, _ = flat["patch_embed.proj.weight"].shape
    biased = "blocks.0.attn.qkv.bias" in flat
    side = round((flat["pos_embed"].shape[1] - 1) ** 0.5)
    params = ViT(
        width=width,
        depths=tuple(depth_of(stage) for stage in stages),
        heads=heads or max(1, width // (80 if width == 1280 else 64)),
        mlp_ratio=_hidden(flat) / width,
        patch=patch,
        qkv_bias=biased,
        norm_eps=norm_eps or (1e-6 if biased else 1e-5),
    )
    port = Port.of("image", channels=channels, size=side * patch)
    return _with_experts(params, flat), port, flat["head.weight"].shape[0]


def _hidden(flat: State) -> int:
    """Units of the first perceptron that is no expert's; four times the width where there is none."""
    first = next((t for name, t in flat.items() if name.endswith(".mlp.fc1.weight")), None)
    return first.shape[0] if first is not None else 4 * flat["cls_token"].shape[-1]


def _with_experts(params: ViT, flat: State) -> ViT:
    """The parameters of a V-MoE if some blocks hold experts; how many a token goes to is in no tensor, so 2."""
    held = sorted({int(name.split(".")[1]) for name in flat if re.match(r"blocks\.\d+\.moe\.", name)})
    if not held:
        return params
    experts, hidden, width = flat[f"blocks.{held[0]}.moe.experts.htoh4.weight"].shape
    shape = {name: getattr(params, name) for name in ViT.model_fields if name not in ("name", "mlp_ratio")}
    return VMoE(**shape, mlp_ratio=hidden / width, experts=experts, placement=held)


def chain_of(stages: Sequence[Mapping[str, Tensor]], heads: int | None = None, norm_eps: float | None = None) -> Chain:
    """The network of a checkpoint's modules, built and loaded; see :func:`architecture`."""
    params, port, classes = architecture(stages, heads, norm_eps)
    chain = vmoe(params, port, classes) if isinstance(params, VMoE) else vit(params, port, classes)
    load_stages(chain, stages, "the checkpoint")
    return chain
