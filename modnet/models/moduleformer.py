"""ModuleFormer: causal language models with experts of attention and of perceptrons (arXiv 2306.04640)."""

from __future__ import annotations

from modnet.chain import Chain, Port
from modnet.errors import RequestError
from modnet.layers.moduleformer import ModuleFormerBlock, SymbolHead, SymbolStem
from modnet.models.vit import module_bounds
from modnet.recipe.moduleformer import ModuleFormer


def moduleformer(params: ModuleFormer, port: Port, classes: int) -> Chain:
    """A language model for windows of ``port``, cut into ``len(params.depths)`` modules.

    Raises RequestError for data that are no text.
    """
    if port.kind != "ids" or port["vocab"] is None:
        raise RequestError(f"a moduleformer reads text, that is ids of a known vocabulary, not {port}")
    length, router = port["length"], params.router.model_dump(mode="json")
    blocks = [
        ModuleFormerBlock(
            params.width,
            params.attention_hidden,
            params.heads,
            params.attention_experts,
            params.attention_top_k,
            router,
            params.hidden,
            params.experts,
            params.top_k,
            router,
            length=length,
        )
        for _ in range(sum(params.depths))
    ]
    stem, head = SymbolStem(port["vocab"], length, params.width), SymbolHead(params.width, classes, length)
    return Chain([stem, *blocks, head], module_bounds(params.depths))
