"""What a trained network with experts scores and costs where it routes otherwise: fewer choices, fewer places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from modnet.chain import Chain
from modnet.data import Dataset
from modnet.evaluation.accuracy import measure
from modnet.evaluation.cost import cost
from modnet.evaluation.routing import observe
from modnet.evaluation.throughput import throughput
from modnet.experiment import inputs_of_run
from modnet.layers.adapters import see
from modnet.layers.dispatch import Order
from modnet.layers.head_experts import HeadExperts
from modnet.methods.base import NETWORK, Inputs
from modnet.report.routing import sparse_stages
from modnet.store import atomic_file, atomic_write_json
from modnet.surgery.conversion import expert_blocks, head_blocks
from modnet.surgery.rerouting import rerouted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPACITIES = (2.0, 1.5, 1.0, 0.75, 0.5, 0.25)
ORDERS: dict[Order, str] = {"choice-major": "token order", "batch-priority": "batch priority"}
BATCH = 128  # images that compete for places, and whose MACs and time are measured


@dataclass(frozen=True)
class Point:
    """One way to route: accuracy on val (percent), MACs of an image, images a second, share of choices dropped."""

    top_k: int
    capacity: float | None
    order: Order
    top1: float
    macs: float
    images_per_second: float
    dropped: float


def trade_offs(
    path: str | Path, *, of: Sequence[str] = (), device: str | None = None, console: Console | None = None
) -> dict[str, list[Point]]:
    """Measure a finished run's networks with experts at other K, capacities and priorities; nothing is trained.

    Writes ``trade-offs.json`` and ``trade-offs.png`` to ``routing/STAGE`` in the run's folder. Raises RequestError if
    no network has experts.
    """
    folder, console = Path(path), console or Console()
    inputs = inputs_of_run(folder, device, console)
    found = {}
    for stage in sparse_stages(folder, of):
        console.print(f"measuring {stage} on val", highlight=False)
        found[stage] = points = _points(inputs, stage)
        place = folder / "routing" / stage
        place.mkdir(parents=True, exist_ok=True)
        atomic_write_json(place / "trade-offs.json", [asdict(point) for point in points])
        with atomic_file(place / "trade-offs.png") as temporary:
            drawn(points, stage).savefig(temporary, format="png")
        console.print(table(stage, points))
    console.print(f"table and plot: {folder / 'routing'}", soft_wrap=True, highlight=False)
    return found


def _points(inputs: Inputs, stage: str) -> list[Point]:
    dataset = inputs.dataset(inputs.recipe.stages[stage].data)  # type: ignore[attr-defined]
    chain = see(inputs.stored(stage, NETWORK), dataset.mean, dataset.std)
    return [_measured(chain, dataset, *way) for way in ways(chain)]


def ways(chain: Chain) -> Iterator[tuple[int, float | None, Order]]:
    """K, capacity and order: every K without a limit, then every capacity and order at the K of training.

    Heads that are experts have no capacities.
    """
    held = expert_blocks(chain)
    if not held:
        heads = [block.attn for block in head_blocks(chain).values()]
        count = min(experts.count for experts in heads if isinstance(experts, HeadExperts))
        yield from ((k, None, "choice-major") for k in range(1, count + 1))
        return
    moe = next(iter(held.values())).moe
    count = min(block.moe.count for block in held.values())  # pruning may have left blocks with unequal numbers
    if moe.params.name != "expert-choice":
        choices = {1, 2, moe.top_k, *(2**i for i in range(count.bit_length())), count}
        yield from ((k, None, "choice-major") for k in sorted(choices) if k <= count)
    for order in ORDERS if moe.params.name != "expert-choice" else ("choice-major",):
        yield from ((moe.top_k, capacity, order) for capacity in CAPACITIES)  # type: ignore[misc]


def _measured(chain: Chain, dataset: Dataset, top_k: int, capacity: float | None, order: Order) -> Point:
    network = rerouted(chain, top_k, capacity, order)
    every = observe(network, dataset.val, dataset, BATCH).layers.values()
    layers = [layer for layer in every if not layer.part] or list(every)  # heads drop nothing
    return Point(
        top_k,
        capacity,
        order,
        measure(network, dataset.val, dataset, BATCH).top1,
        cost(network, dataset.port, BATCH).macs / BATCH,
        throughput(network, dataset.port, BATCH),
        sum(layer.numbers()["dropped"] for layer in layers) / len(layers),
    )


def table(stage: str, points: Sequence[Point]) -> Table:
    """A row for each way to route."""
    shown = Table(title=f"{stage}: other routing at inference, on val")
    for name in ("K", "capacity", "first come", "top-1 %", "MACs", "images/s", "dropped %"):
        shown.add_column(name, justify="right")
    for p in points:
        limit, order = ("none", "") if p.capacity is None else (f"{p.capacity:g}", ORDERS[p.order])
        shown.add_row(
            str(p.top_k), limit, order, f"{p.top1:.2f}", f"{p.macs / 1e6:.3g} M", f"{p.images_per_second:,.0f}",
            f"{100 * p.dropped:.1f}",
        )  # fmt: skip
    return shown


def drawn(points: Sequence[Point], stage: str) -> Figure:
    """Accuracy against MACs and against time by K, and against capacity for both priorities."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained", dpi=120)
    figure.suptitle(f"{stage}: other routing at inference, nothing trained", fontsize=11)
    by_k = [p for p in points if p.capacity is None]
    macs, time, places = figure.subplots(1, 3, sharey=True)
    ways: tuple[tuple[Any, list[float], str], ...] = (
        (macs, [p.macs / 1e6 for p in by_k], "MACs of an image, millions"),
        (time, [1000 / p.images_per_second for p in by_k], "time of an image, ms"),
    )
    for axis, across, label in ways:
        axis.plot(across, [p.top1 for p in by_k], marker="o", color="#4477aa")
        for p, x in zip(by_k, across, strict=True):
            axis.annotate(f"K={p.top_k}", (x, p.top1), xytext=(4, -10), textcoords="offset points", fontsize=8)
        axis.set_xlabel(label, fontsize=8)
        axis.margins(x=0.15)
    for order, colour in zip(ORDERS, ("#cc6677", "#228833"), strict=True):
        line = [p for p in points if p.capacity is not None and p.order == order]
        places.plot([p.capacity for p in line], [p.top1 for p in line], marker="o", color=colour, label=ORDERS[order])
    places.set_xlabel("capacity, times an even share", fontsize=8)
    if len(by_k) < len(points):
        places.legend(fontsize=8, frameon=False, loc="lower right")
    else:
        places.text(0.5, 0.5, "nothing is ever dropped", transform=places.transAxes, ha="center", fontsize=8)
    macs.set_ylabel("top-1 on val, %", fontsize=8)
    for axis in (macs, time, places):
        axis.tick_params(labelsize=8)
        axis.grid(color="#eeeeee")
        axis.spines[["top", "right"]].set_visible(False)
    return figure
