"""The classifier at the end of a chain."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from modnet.chain import Module, Pass, Port
from modnet.errors import RequestError
from modnet.layers.initialise import initialise_linears


class Head(Module):
    """Final norm, pooling and a linear classifier: tokens (B, N, width) to logits (B, classes).

    ``pool`` takes the class token, or the mean over the normed patch tokens. Raises RequestError for token pooling
    without a class token.
    """

    role = "head"

    def __init__(
        self,
        width: int,
        classes: int,
        pool: Literal["token", "mean"] = "token",
        norm_eps: float = 1e-6,
        prefix: int = 1,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if pool == "token" and prefix == 0:
            raise RequestError("pool: token needs a class token; use pool: mean for a stem without one")
        self.takes = Port.of("tokens", width=width, prefix=prefix, grid=grid)
        self.gives = Port.of("logits", classes=classes, per="image")
        self.pool, self.prefix = pool, prefix
        self.reads = 1 if pool == "token" else None
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.head = nn.Linear(width, classes)
        initialise_linears(self)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        # The norm acts on each token alone, so only those that are pooled need it.
        used = x[:, :1] if self.pool == "token" else x[:, self.prefix :]
        logits: Tensor = self.head(self.norm(used).mean(dim=1))
        return logits
