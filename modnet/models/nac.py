"""Neural Attentive Circuits as chains (Weiss et al. 2022, arXiv 2210.08031)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modnet.chain import Chain, Module, Port
from modnet.layers.nac import graphs
from modnet.layers.nac.circuit import PoolingHead, Propagator, ReadIn, ReadOut, SlotHead, TokenizerStem
from modnet.layers.nac.latents import Latents
from modnet.models.nac_students import FAMILY as FAMILY
from modnet.models.vit import image_size
from modnet.recipe.nac import NAC, Graph


def nac(params: NAC, port: Port, classes: int) -> Chain:
    """A circuit for images of ``port``: tokenizer and read-in, a module for each propagator, read-out and head.

    Propagators that share their weights are one module. Raises RequestError for images too small for the tokenizer.
    """
    size, channels = image_size(port)
    width, codes = params.width, params.codes or params.width
    widths = (width // 4, width // 2, width)[: len(params.stem_depths)]
    stem = TokenizerStem(channels, size, widths, params.stem_depths, params.positions, params.stem_patch)
    sizes = (width, codes, params.heads, params.head_width, params.capacity)
    read_in = ReadIn(
        widths[-1] + params.positions,
        *sizes,
        params.inputs + params.mediators,
        residual=params.read_in_residual,
        weight=params.repulsion,
        hinge=params.hinge,
        quirk_student_scale=params.quirk_student_scale,
        **_common(params),
    )
    read_out = ReadOut(
        *sizes,
        params.inputs,
        params.mediators,
        params.outputs,
        depth=params.iterations - 1,
        hears_inputs=params.read_out_hears_inputs,
        residual=params.read_out_residual,
        **_common(params),
    )
    rounds = _propagators(params, codes)
    bounds = [0, *range(2, 3 + len(rounds)), 4 + len(rounds)]
    return Chain([stem, read_in, *rounds, read_out, _head(params, classes, codes)], bounds, _latents(params, codes))


def _common(params: NAC) -> dict[str, Any]:
    """What the leaves with modulated layers share."""
    modulation = {"gain": params.gain, "learnable_gain": True, "add_one": True}
    options = {"geglu": params.geglu, "qkv_bias": params.qkv_bias, "scale": params.layer_scale}
    return {**options, "modulation": modulation}


def _propagators(params: NAC, codes: int) -> list[Propagator]:
    kernel = {
        "truncation": params.truncation,
        "stochastic": params.stochastic,
        "temperature": params.temperature,
    }
    blocks = {"clusters": params.graph.groups, "p_in": params.graph.p_in, "p_out": params.graph.p_out}
    repeats = params.iterations if params.share_weights else 1
    return [
        Propagator(
            params.width,
            codes,
            params.heads,
            params.head_width,
            params.capacity,
            params.inputs,
            params.mediators,
            depth=depth,
            repeats=repeats,
            hears=params.hears_inputs,
            drop_path=params.drop_path,
            kernel=kernel,
            blocks={"weight": params.blocks, **blocks} if params.blocks else None,
            **_common(params),
        )
        for depth in range(0, params.iterations, repeats)
    ]


def _head(params: NAC, classes: int, codes: int) -> Module:
    if params.pooling == "slot":
        modulation = _common(params)["modulation"]
        return SlotHead(params.width, classes, codes, params.outputs, modulation=modulation)
    temperature, drawn = params.pooling_temperature, params.quirk_eval_noise
    return PoolingHead(params.width, classes, params.outputs, params.pooling, temperature, drawn)


def _latents(params: NAC, codes: int) -> Latents:
    """Signatures, codes and seeder; the mediators' signatures draw the graph that the parameters ask for."""
    latents = Latents(
        params.width,
        codes,
        params.signatures,
        (params.inputs, params.mediators, params.outputs),
        None if params.share_codes else params.iterations,
        params.seeds,
        params.code_noise,
        params.quirk_eval_noise,
    )
    signatures = latents.mediator.signatures
    if params.graph.name != "none" and not signatures.is_meta:
        with torch.no_grad():
            signatures.copy_(prior(params.graph, *signatures.shape))
    return latents


def prior(wanted: Graph, count: int, width: int) -> Tensor:
    """Signatures (count, width) fitted to a graph; all randomness follows from torch's generator."""
    if wanted.name == "complete":
        return torch.eye(1, width).expand(count, width)
    options: dict[str, dict[str, Any]] = {
        "scale-free": {"n": count, "m": wanted.links},
        "erdos-renyi": {"n": count, "p": wanted.p},
        "ring-of-cliques": {"num_cliques": wanted.groups, "clique_size": count // wanted.groups},
        "planted-partition": {
            "l": wanted.groups,
            "k": count // wanted.groups,
            "p_in": wanted.p_in,
            "p_out": wanted.p_out,
        },
    }
    seed = int(torch.randint(2**31, ()))
    links = graphs.adjacency(graphs.graph(wanted.name, seed, **options[wanted.name]))
    initial = nn.init.orthogonal_(torch.empty(count, width))
    with torch.enable_grad():
        return graphs.fit(initial, links, wanted.steps, wanted.lr, wanted.threshold)
