"""Which part of a network learns."""

from __future__ import annotations

from modnet.chain import Chain


def only_head(chain: Chain) -> Chain:
    """The network under the same cut, all frozen but its last leaf, on the same storage.

    The last leaf is the classifier, with the norm or pooling that belongs to it. What is frozen is always in eval
    mode, so that BatchNorm's running statistics stay as they are.
    """
    front = chain.flat[:-1].frozen()
    return (front + chain.flat[-1:]).divided(chain.bounds)
