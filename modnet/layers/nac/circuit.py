"""The leaves of a circuit: tokenizer, read-in, propagators, read-out and the two heads.

What flows from read-in to read-out is ``state(width, slots)``: the states of the input modules, then those of the
mediators, (B, inputs + mediators, width). Signatures, codes and first states come from the chain's shared part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modnet.chain import Module, Pass, Port
from modnet.errors import RequestError
from modnet.layers.drop_path import survival
from modnet.layers.nac.attention import LatentAttention
from modnet.layers.nac.ffn import ModFFN
from modnet.layers.nac.kernel import Kernel
from modnet.layers.nac.latents import Role, latents_of
from modnet.layers.nac.modulation import ModFC, Modulation, matrices_of
from modnet.layers.nac.noise import draw_key, gumbel, sample_ids
from modnet.layers.nac.pooling import OutputPooling, PoolingKind
from modnet.layers.nac.read_in import ReadInAttention
from modnet.layers.nac.regularisers import Weight, block_model, block_target, repulsion, scheduled
from modnet.layers.nac.tokenizer import ConvNeXtTokenizer

Hears = Literal["always", "first", "never"]
HEARD: tuple[Role, ...] = ("input", "mediator")


class TokenizerStem(Module):
    """Images (B, C, S, S) to tokens by a :class:`ConvNeXtTokenizer`; raises RequestError for too small an image."""

    role = "stem"

    def __init__(
        self, channels: int, size: int, widths: Sequence[int], depths: Sequence[int], positions: int, patch: int = 4
    ) -> None:
        super().__init__()
        side = size // patch >> (len(widths) - 1)
        if side < 1:
            raise RequestError(
                f"images of {size} x {size} pixels are too small for stem_patch {patch} and {len(widths)} tokenizer "
                "stages, each of which after the first halves the map; give a smaller stem_patch or fewer stem_depths"
            )
        self.takes = Port.of("image", channels=channels, size=size)
        self.gives = Port.of("tokens", width=widths[-1] + positions, prefix=0, grid=(side, side))
        table = (positions, side, side) if positions else None
        self.tokenizer = ConvNeXtTokenizer(channels, widths, depths, table, patch)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        tokens: Tensor = self.tokenizer(x)
        return tokens


class ReadIn(Module):
    """Input modules read tokens (B, N, tokens); mediators join them in their first states.

    ``hinge`` and ``weight``: in training the repulsion of signatures nearer than the hinge is added to the losses.
    ``quirk_student_scale`` is for the module's student alone (:mod:`modnet.models.nac_students`).
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        codes: int,
        heads: int,
        head_width: int,
        capacity: float,
        slots: int,
        *,
        geglu: bool = True,
        qkv_bias: bool = False,
        residual: bool = True,
        scale: float | None = 0.1,
        weight: Weight = 0.0,
        hinge: float = 0.4,
        quirk_student_scale: bool = False,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        self.takes = Port.of("tokens", width=tokens)
        self.gives = Port.of("state", width=width, slots=slots)
        self.weight, self.hinge = weight, hinge
        self.attention = ReadInAttention(
            tokens, width, codes, heads, head_width, qkv_bias=qkv_bias, residual=residual, modulation=modulation
        )
        self.ffn = ModFFN(width, codes, capacity, geglu, scale, modulation)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """Tokens (B, N, tokens) to states (B, slots, width), input modules first."""
        latents = latents_of(ctx)
        states, mediators = (latents.first_states(role, self, x, ctx) for role in HEARD)
        codes = latents.codes(("input",), key=draw_key(self, ctx, "code_noise"))
        states = self.ffn(self.attention(states, codes, x), codes)
        if self.training and self.weight:
            pushed = repulsion(latents.signatures(), self.hinge)
            ctx.losses["signatures"] = scheduled(self.weight, ctx.progress) * pushed
        return torch.cat([states, mediators.to(states.dtype)], dim=1)

    def matrices(self) -> dict[str, int]:
        """Every modulated layer's weight and scale."""
        return matrices_of(self)


class Propagator(Module):
    """Mediators hear input modules and one another, ``repeats`` times with the same weights.

    ``depth`` is the number of the first of these rounds in the network, by which codes are chosen; ``hears`` says in
    which rounds of the network the input modules are heard. ``kernel`` are the options of a :class:`Kernel`. All
    propagators drop paths at one rate. ``blocks`` (weight, clusters, p_in, p_out): in training the distance of the
    links from a stochastic block model is added to the losses. Source: NAC (arXiv 2210.08031), propagator.
    """

    even_drop_path = True

    def __init__(
        self,
        width: int,
        codes: int,
        heads: int,
        head_width: int,
        capacity: float,
        inputs: int,
        mediators: int,
        *,
        depth: int = 0,
        repeats: int = 1,
        hears: Hears = "always",
        geglu: bool = True,
        qkv_bias: bool = False,
        scale: float | None = 0.1,
        drop_path: float = 0.0,
        kernel: Mapping[str, Any] | None = None,
        blocks: Mapping[str, float] | None = None,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        self.takes = self.gives = Port.of("state", width=width, slots=inputs + mediators)
        self.blocks = blocks
        self.sizes, self.rounds, self.hears = (inputs, mediators), range(depth, depth + repeats), hears
        self.drop_path = drop_path
        options: dict[str, Any] = {"qkv_bias": qkv_bias, "share_norm": True, "scale": scale, "modulation": modulation}
        self.kernel = Kernel(**(kernel or {}))
        self.attention = LatentAttention(width, codes, heads, head_width, **options)
        self.ffn = ModFFN(width, codes, capacity, geglu, scale, modulation)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        inputs, mediators = x.split(self.sizes, dim=1)
        for depth in self.rounds:
            mediators = self.step(inputs, mediators, depth, ctx)
        return torch.cat([inputs, mediators], dim=1)

    def step(self, inputs: Tensor, mediators: Tensor, depth: int, ctx: Pass) -> Tensor:
        """One round: the mediators' new states."""
        latents, scope = latents_of(ctx), "" if len(self.rounds) == 1 else f"/{depth}"
        heard = self.hears == "always" or (self.hears == "first" and depth == 0)
        roles: tuple[Role, ...] = HEARD if heard else ("mediator",)
        senders = torch.cat([inputs, mediators], dim=1) if heard else mediators
        codes = latents.codes(("mediator",), depth, draw_key(self, ctx, f"code_noise/receivers{scope}"))
        theirs = latents.codes(roles, depth, draw_key(self, ctx, f"code_noise/senders{scope}"))
        signatures = latents.signatures(("mediator",)), latents.signatures(roles)
        if self.training and self.blocks is not None:
            ctx.losses[f"blocks/{depth}"] = self.grouped(signatures[0], self.blocks)
        links = self.kernel(
            *signatures, sample_ids(ctx, mediators), draw_key(self, ctx, f"kernel{scope}", drawn_always(self.kernel))
        )
        kept = survival(self, self.drop_path, mediators, ctx, 2, f"drop_path{scope}")
        first, second = (None, None) if kept is None else (kept[0], kept[1])
        mediators = self.attention(mediators, codes, senders, theirs, links, first)
        states: Tensor = self.ffn(mediators, codes, second)
        return states

    def grouped(self, signatures: Tensor, blocks: Mapping[str, float]) -> Tensor:
        """The weighted distance of the mediators' links from a stochastic block model, a scalar."""
        target = block_target(len(signatures), int(blocks["clusters"]), blocks["p_in"], blocks["p_out"])
        links = self.kernel.log(signatures, signatures).exp()
        return blocks["weight"] * block_model(links, target.to(links))

    def matrices(self) -> dict[str, int]:
        """Every modulated layer's weight and scale."""
        return matrices_of(self)


class ReadOut(Module):
    """Output modules hear the mediators, and the input modules unless ``hears_inputs`` is off.

    States (B, inputs + mediators, width) to those of the output modules, (B, outputs, width). ``depth`` is the last
    propagator's, whose codes the mediators keep.
    """

    def __init__(
        self,
        width: int,
        codes: int,
        heads: int,
        head_width: int,
        capacity: float,
        inputs: int,
        mediators: int,
        outputs: int,
        *,
        depth: int = 0,
        hears_inputs: bool = True,
        geglu: bool = True,
        qkv_bias: bool = False,
        residual: bool = False,
        scale: float | None = 0.1,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        self.takes = Port.of("state", width=width, slots=inputs + mediators)
        self.gives = Port.of("state", width=width, slots=outputs)
        self.depth, self.skipped = depth, 0 if hears_inputs else inputs
        self.heard: tuple[Role, ...] = HEARD if hears_inputs else ("mediator",)
        options: dict[str, Any] = {"qkv_bias": qkv_bias, "residual": residual, "scale": scale, "modulation": modulation}
        self.kernel = Kernel()
        self.attention = LatentAttention(width, codes, heads, head_width, **options)
        self.ffn = ModFFN(width, codes, capacity, geglu, scale, modulation)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """States (B, inputs + mediators, width) to those of the output modules (B, outputs, width)."""
        latents = latents_of(ctx)
        states = latents.first_states("output", self, x, ctx)
        codes = latents.codes(("output",), key=draw_key(self, ctx, "code_noise/receivers"))
        theirs = latents.codes(self.heard, self.depth, draw_key(self, ctx, "code_noise/senders"))
        signatures = latents.signatures(("output",)), latents.signatures(self.heard)
        links = self.kernel(*signatures, sample_ids(ctx, x), None)
        states = self.attention(states, codes, x[:, self.skipped :], theirs, links)
        out: Tensor = self.ffn(states, codes)
        return out

    def matrices(self) -> dict[str, int]:
        """Every modulated layer's weight and scale."""
        return matrices_of(self)


class PoolingHead(Module):
    """Logits of the weighted mean of the output states, (B, slots, width); ``eval_noise``: drawn in evaluation too."""

    role = "head"

    def __init__(
        self,
        width: int,
        classes: int,
        slots: int,
        kind: PoolingKind = "gumbel",
        temperature: float = 1.0,
        eval_noise: bool = False,
    ) -> None:
        super().__init__()
        self.takes = Port.of("state", width=width, slots=slots)
        self.gives = Port.of("logits", classes=classes, per="image")
        self.eval_noise = eval_noise
        self.pooling = OutputPooling(width, classes, kind, temperature)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        drawn = self.pooling.kind != "vanilla"
        key = draw_key(self, ctx, "pooling", self.eval_noise) if drawn else None
        noise = None if key is None else gumbel(key, sample_ids(ctx, x), x.shape[1]).to(x.dtype)
        logits: Tensor = self.pooling(x, noise)
        return logits


class SlotHead(Module):
    """Logits of the first output module: norm, then a linear layer that its code modulates."""

    role = "head"

    def __init__(
        self, width: int, classes: int, codes: int, slots: int, norm: bool = True, modulation: Modulation | None = None
    ) -> None:
        super().__init__()
        self.takes = Port.of("state", width=width, slots=slots)
        self.gives = Port.of("logits", classes=classes, per="image")
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.fc = ModFC(width, classes, codes, **(modulation or {}))

    def every(self, x: Tensor, ctx: Pass) -> Tensor:
        """What each output module says, (B, slots, classes); its code is without noise, as in the reference."""
        out: Tensor = self.fc(self.norm(x), latents_of(ctx).codes(("output",)))
        return out

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        return self.every(x, ctx)[:, 0]


def drawn_always(kernel: Kernel) -> bool:
    """Whether a kernel samples its links in evaluation as well."""
    return kernel.stochastic and kernel.evaluation == "sample"
