"""What a trained circuit has become: who hears whom, which modules are used, and what it loses by pruning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.cluster.hierarchy import leaves_list, linkage
from torch import Tensor

from modnet.chain import Chain, Port
from modnet.data import Dataset
from modnet.evaluation.accuracy import Images, Normaliser, measure, predict
from modnet.evaluation.cost import cost
from modnet.layers.nac.circuit import Propagator, ReadOut
from modnet.store import atomic_write_json
from modnet.surgery.pruning import latents_in, open_links, with_mediators, with_nearest_links

PIXELS = 768  # at least so many along the mediators
PAPER, INK = np.array([255.0, 255.0, 255.0]), np.array([8.0, 29.0, 88.0])


@torch.no_grad()
def connectivity(network: Chain) -> Tensor:
    """The kernel of each propagator in evaluation: (propagators, mediators, inputs + mediators), 0 where a link is cut.

    Raises RequestError for a network that is no circuit.
    """
    latents = latents_in(network)
    receivers, senders = latents.signatures(("mediator",)), latents.signatures(("input", "mediator"))
    kernels = [leaf.kernel.log(receivers, senders).exp() for leaf in network.leaves if isinstance(leaf, Propagator)]
    return torch.stack(kernels).cpu()


def usage(network: Chain, images: Images, dataset: Normaliser, batch: int = 64) -> Tensor:
    """How much every mediator is heard, (mediators,): the mean attention that it gets from propagators and read-out.

    Over images, receivers, heads and rounds; a mediator that all attend to alike has 1 / senders.
    """
    mediators = latents_in(network).counts[1]
    total, calls = torch.zeros(mediators, dtype=torch.float64), 0
    with _watched(network) as seen:
        predict(network, images, dataset, batch)
    for weights in seen:
        total += weights.sum(0)[-mediators:].double().cpu()
        calls += len(weights)
    return total / max(1, calls)


@contextmanager
def _watched(network: Chain) -> Iterator[list[Tensor]]:
    """Collect the mean attention to each sender, (B, senders), of every call of an attention that hears mediators."""
    seen: list[Tensor] = []

    def note(attention: Any, given: tuple[Any, ...], _: Any) -> None:
        query, key, _ = attention.projected(*given[:4])
        links = given[4] if len(given) > 4 else None
        seen.append(attention.weights(query, key, links).mean((1, 2)))

    listening = [leaf.attention for leaf in network.leaves if isinstance(leaf, Propagator | ReadOut)]
    hooks = [attention.register_forward_hook(note) for attention in listening]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Pruned:
    """A pruned circuit's scores: ``what`` was pruned, the ``share`` kept, and what is left of modules, links, MACs."""

    what: str
    share: float
    mediators: int
    links: int
    macs: int
    top1: float


def pruning(
    network: Chain, heard: Tensor, shares: Sequence[float], images: Images, dataset: Normaliser, port: Port
) -> list[Pruned]:
    """Top-1 in percent with these shares of the mediators kept (the most heard), and of the links (the nearest)."""
    order = heard.argsort(descending=True, stable=True)
    found = []
    for share in shares:
        kept = order[: max(1, round(share * len(order)))].sort().values
        found.append(_scored("modules", share, with_mediators(network, kept), images, dataset, port))
    for share in shares:
        found.append(_scored("links", share, with_nearest_links(network, share), images, dataset, port))
    return found


def _scored(what: str, share: float, smaller: Chain, images: Images, dataset: Normaliser, port: Port) -> Pruned:
    count, macs = latents_in(smaller).counts[1], cost(smaller, port).macs
    return Pruned(what, share, count, open_links(smaller), macs, measure(smaller, images, dataset).top1)


def analyse(network: Chain, dataset: Dataset, folder: Path, shares: Sequence[float], limit: int) -> list[Pruned]:
    """Write ``links.png`` and ``circuit.json`` of a trained circuit into a folder, and give what pruning costs.

    Usage is measured on the first ``limit`` images of val, accuracy on test. Raises RequestError if it is no circuit.
    """
    kernels, val = connectivity(network), dataset.val.take(torch.arange(min(limit, len(dataset.val))))
    heard = usage(network, val, dataset)
    found = pruning(network, heard, shares, dataset.test, dataset, dataset.port)
    folder.mkdir(parents=True, exist_ok=True)
    picture(kernels.mean(0), folder / "links.png")
    facts = {
        "open_links": open_links(network),
        "bandwidths": [e.kernel.bandwidth.item() for e in network.leaves if isinstance(e, Propagator)],
        "usage": heard.tolist(),
        "pruning": [asdict(each) for each in found],
    }
    atomic_write_json(folder / "circuit.json", facts)
    return found


def picture(links: Tensor, path: Path) -> None:
    """Draw a kernel (mediators, inputs + mediators) as a PNG: rows hear, columns are heard, dark is near.

    Mediators stand in the order of a hierarchical clustering of their links, so that communities are blocks on the
    diagonal; input modules stand to the left of the line.
    """
    mediators = len(links)
    inputs = links.shape[1] - mediators
    own = links[:, inputs:]
    order = torch.from_numpy(leaves_list(linkage(own.double().numpy(), "average", optimal_ordering=mediators <= 512)))
    shown = torch.cat([links[order][:, :inputs], torch.full((mediators, 1), float("nan")), own[order][:, order]], 1)
    values = shown.double().numpy()
    share = np.sqrt(np.nan_to_num(values / max(1e-12, float(links.max())), nan=0.0))[..., None]
    pixels = PAPER + (INK - PAPER) * share
    pixels[np.isnan(values)] = (200, 60, 40)
    scale = max(1, -(-PIXELS // mediators))
    drawn = np.kron(pixels.round().astype(np.uint8), np.ones((scale, scale, 1), np.uint8))
    Image.fromarray(drawn).save(path)
