"""Attention between modules: projections modulated by codes, scores modulated by a kernel over signatures."""

from __future__ import annotations

from torch import Tensor, nn

from modnet.layers.nac.ffn import layer_scale, scaled
from modnet.layers.nac.kernel import normalised
from modnet.layers.nac.modulation import ModFC, Modulation


class LatentAttention(nn.Module):
    """Receivers attend to senders: states (B, U, width) and (B, V, width) to receiver states (B, U, width).

    a = softmax(q·k / √h + log K), y = γ ⊙ exit(a v); ``residual`` adds the receivers. One norm serves both sides if
    ``share_norm``. ``log_kernel`` (U, V) or (B, U, V) comes from a :class:`~modnet.layers.nac.kernel.Kernel`; without
    it attention is plain (the students of m2mKD). ``mask_scores`` adds it to the scores, ``scale_weights`` multiplies
    the weights by it after the softmax. Source: NAC (arXiv 2210.08031).
    """

    def __init__(
        self,
        width: int,
        codes: int,
        heads: int,
        head_width: int,
        *,
        qkv_bias: bool = False,
        share_norm: bool = False,
        residual: bool = True,
        scale: float | None = 0.1,
        mask_scores: bool = True,
        scale_weights: bool = False,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        inner, options = heads * head_width, modulation or {}
        self.heads, self.residual, self.mask_scores, self.scale_weights = heads, residual, mask_scores, scale_weights
        self.receiver_norm = nn.LayerNorm(width)
        self.sender_norm = None if share_norm else nn.LayerNorm(width)
        self.query = ModFC(width, inner, codes, qkv_bias, **options)
        self.key = ModFC(width, inner, codes, qkv_bias, **options)
        self.value = ModFC(width, inner, codes, qkv_bias, **options)
        self.exit = ModFC(inner, width, codes, **options)
        self.gamma = layer_scale(width, scale)

    def weights(self, query: Tensor, key: Tensor, log_kernel: Tensor | None) -> Tensor:
        """Attention weights (B, H, U, V) of queries (B, H, U, h) and keys (B, H, V, h), after the softmax.

        A receiver whose every link is cut hears nothing: its row is zero.
        """
        scores: Tensor = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if log_kernel is None or not self.mask_scores:
            return scores.softmax(-1)
        log_kernel = over_heads(log_kernel)
        silent = log_kernel.isneginf().all(-1, keepdim=True)
        scores = scores + log_kernel.masked_fill(silent, 0)
        return scores.softmax(-1).masked_fill(silent, 0)

    def projected(
        self, receivers: Tensor, codes: Tensor, senders: Tensor, sender_codes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, rows, h)."""
        heard = (self.receiver_norm if self.sender_norm is None else self.sender_norm)(senders)
        query = self.query(self.receiver_norm(receivers), codes)
        key, value = self.key(heard, sender_codes), self.value(heard, sender_codes)
        return self._split(query), self._split(key), self._split(value)

    def forward(
        self,
        receivers: Tensor,
        codes: Tensor,
        senders: Tensor,
        sender_codes: Tensor,
        log_kernel: Tensor | None = None,
        survival: Tensor | None = None,
    ) -> Tensor:
        """States of the receivers (B, U, width) after hearing the senders (B, V, width), codes a row each.

        ``survival`` is the factor of each sample's branch while paths are dropped.
        """
        query, key, value = self.projected(receivers, codes, senders, sender_codes)
        weights = self.weights(query, key, log_kernel)
        if self.scale_weights and log_kernel is not None:
            weights = weights * over_heads(normalised(log_kernel)).exp()
        mixed = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        branch = scaled(self.exit(mixed, codes), self.gamma, survival)
        return receivers + branch if self.residual else branch

    def _split(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (self.heads, -1))
        return split.transpose(1, 2)


def over_heads(log_kernel: Tensor) -> Tensor:
    """A kernel (U, V) or (B, U, V) as (1, 1, U, V) or (B, 1, U, V)."""
    return log_kernel[:, None] if log_kernel.ndim == 3 else log_kernel[None, None]
