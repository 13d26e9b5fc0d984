"""What the modules of a circuit own: signatures, codes and first states, shared by all leaves of the chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modnet.chain import Module, Pass
from modnet.layers.nac.noise import draw_key, noisy, sample_ids
from modnet.layers.nac.seeder import Seeder
from modnet.randomness import Key

Role = Literal["input", "mediator", "output"]
ROLES: tuple[Role, ...] = ("input", "mediator", "output")


class Group(nn.Module):
    """Modules of one role: signatures (n, S), codes (n, C) or (depths, n, C), states (n, D) if they are learned."""

    def __init__(self, count: int, signatures: int, codes: tuple[int, ...], states: int | None) -> None:
        super().__init__()
        self.signatures = nn.Parameter(torch.randn(count, signatures))
        self.codes = nn.Parameter(torch.randn(*codes[:-1], count, codes[-1]))
        self.states = nn.Parameter(torch.randn(count, states)) if states is not None else None


class Latents(Module):
    """The shared part of a circuit's chain; it computes nothing by itself, leaves ask it.

    ``counts`` are the modules of each role in ``ROLES``. ``code_depths``: mediators have a code for each of so many
    propagators, else one for all. ``seeds``: first states come from codes by a :class:`Seeder`, ``noisy`` ones by one
    that draws; else they are learned. ``code_noise`` is α of :func:`~modnet.layers.nac.noise.noisy`. ``eval_noise``:
    states are drawn in evaluation too, as the reference does. Source: NAC (arXiv 2210.08031).
    """

    role = "shared"

    def __init__(
        self,
        width: int,
        codes: int,
        signatures: int,
        counts: tuple[int, int, int],
        code_depths: int | None = None,
        seeds: Literal["noisy", "mean", "learned"] = "noisy",
        code_noise: float = 0.05,
        eval_noise: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.counts, self.code_noise, self.eval_noise = width, counts, code_noise, eval_noise
        states = width if seeds == "learned" else None
        deep = (codes,) if code_depths is None else (code_depths, codes)
        self.input = Group(counts[0], signatures, (codes,), states)
        self.mediator = Group(counts[1], signatures, deep, states)
        self.output = Group(counts[2], signatures, (codes,), states)
        self.seeder = None if seeds == "learned" else Seeder(width, codes, seeds == "noisy")

    def group(self, role: Role) -> Group:
        """The modules of a role."""
        groups: dict[Role, Group] = {"input": self.input, "mediator": self.mediator, "output": self.output}
        return groups[role]

    def signatures(self, roles: Sequence[Role] = ROLES) -> Tensor:
        """Signatures (n, S) of the modules of some roles, one after another."""
        return torch.cat([self.group(role).signatures for role in roles])

    def codes(self, roles: Sequence[Role], depth: int = 0, key: Key | None = None) -> Tensor:
        """Codes (n, C) that modules of some roles have in propagator ``depth``, with noise if there is a key."""
        every = [self.group(role).codes for role in roles]
        return noisy(torch.cat([c if c.ndim == 2 else c[depth] for c in every]), self.code_noise, key)

    def first_states(self, role: Role, leaf: Module, x: Tensor, ctx: Pass) -> Tensor:
        """States (B, n, D) in which the modules of a role begin, for the batch ``x``, drawn in the running leaf."""
        learned = self.group(role).states
        if self.seeder is None:
            assert learned is not None
            return learned.expand(len(x), -1, -1)
        codes = self.codes((role,), key=draw_key(leaf, ctx, f"code_noise/seed/{role}"))
        key = draw_key(leaf, ctx, f"seed/{role}", self.eval_noise)
        if key is None or self.seeder.log_variance is None:
            return self.seeder(codes, len(x))  # type: ignore[no-any-return]
        noise = key.normal(sample_ids(ctx, x), len(codes) * self.width).view(len(x), len(codes), self.width)
        return self.seeder(codes, len(x), noise)  # type: ignore[no-any-return]


def latents_of(ctx: Pass) -> Latents:
    """The latents of the chain that is running; raises TypeError where a circuit's leaf stands in another chain."""
    if not isinstance(ctx.shared, Latents):
        raise TypeError("a circuit's leaf needs the chain's shared part to be Latents")
    return ctx.shared
