"""Hybrids: one module of a network among the frozen modules of another."""

from __future__ import annotations

from modnet.chain import Chain


def hybrid(host: Chain, module: Chain, at: int) -> Chain:
    """``host`` frozen, with its module ``at`` replaced by ``module``, which alone stays trainable.

    Shares all storage. Raises PortMismatch if the module does not fit and IndexError for a place that is not there.
    Source: Deep Incubation (arXiv 2212.04129), module incubation.
    """
    at = range(len(host))[at]
    return host[:at].frozen() + module + host[at + 1 :].frozen()
