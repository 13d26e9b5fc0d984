"""What routers of a finished run do, on val: numbers, pictures in the run's folder, and TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from modnet.engine.artifacts import load_chain
from modnet.engine.loggers import TensorBoard
from modnet.errors import RequestError
from modnet.evaluation.routing import observe, summary
from modnet.experiment import inputs_of_run, networks
from modnet.layers.adapters import see
from modnet.methods.base import NETWORK, Inputs
from modnet.report.routing_plots import pictures
from modnet.store import atomic_file, atomic_write_json
from modnet.surgery.conversion import expert_blocks, head_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "load_cv": "load CV",
    "dead": "unused",
    "dropped": "dropped",
    "token_entropy": "entropy",
    "marginal_entropy": "of all",
    "class_mi": "class MI",
    "class_mi_chance": "by chance",
}


def analyse_run(
    path: str | Path, *, of: Sequence[str] = (), device: str | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Look at the routers of a finished run's networks, and write ``routing/STAGE`` into its folder.

    ``of`` defaults to every network with experts. Gives each stage's numbers by block. Raises RequestError if no
    network has experts.
    """
    folder, console = Path(path), console or Console()
    inputs = inputs_of_run(folder, device, console)
    found = {}
    for stage in sparse_stages(folder, of):
        console.print(f"looking at {stage} on val", highlight=False)
        found[stage] = _analyse(inputs, stage, folder / "routing" / stage)
        console.print(table(stage, found[stage]))
    console.print(f"pictures: {folder / 'routing'}", soft_wrap=True, highlight=False)
    return found


def sparse_stages(folder: Path, of: Sequence[str] = ()) -> list[str]:
    """The stages of a run whose networks hold experts; raises RequestError for one of ``of`` that has none."""
    there = networks(folder)
    held = [name for name in there if _has_experts(folder, name)]
    wrong = [name for name in of if name not in held]
    if wrong or not held:
        listing = f"those that have are: {', '.join(held)}" if held else "none has"
        asked = f"{', '.join(wrong)} of " if wrong else "no network of "
        raise RequestError(f"{asked}{folder} has experts in a ViT's blocks to look at; {listing}")
    return list(of) or held


def _has_experts(folder: Path, stage: str) -> bool:
    chain = load_chain(folder / "stages" / stage, NETWORK)
    return bool(expert_blocks(chain) or head_blocks(chain))


def _analyse(inputs: Inputs, stage: str, folder: Path) -> dict[str, Any]:
    dataset = inputs.dataset(inputs.recipe.stages[stage].data)  # type: ignore[attr-defined]
    chain = see(inputs.stored(stage, NETWORK), dataset.mean, dataset.std)
    seen = observe(chain, dataset.val, dataset)
    numbers, drawn = summary(seen.layers), pictures(seen, dataset.classes)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        with atomic_file(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png")
    atomic_write_json(folder / "routing.json", numbers)
    _log(folder / "tb", drawn, numbers)
    return numbers


def _log(folder: Path, drawn: dict[str, Figure], numbers: dict[str, Any]) -> None:
    board = TensorBoard(folder, purge_step=0)
    scalars = {block: {k: v for k, v in found.items() if k != "load"} for block, found in numbers.items()}
    board.scalars(scalars, 0, "routing")
    for name, figure in drawn.items():
        board.figure(f"routing/{name}", figure)
    board.close()


def table(stage: str, numbers: dict[str, Any]) -> Table:
    """A row for each block."""
    shown = Table(title=f"{stage}: routing on val")
    shown.add_column("")
    for name in COLUMNS.values():
        shown.add_column(name, justify="right")
    for block, found in numbers.items():
        shown.add_row(block, *(f"{found[key]:.0f}" if key == "dead" else f"{found[key]:.3f}" for key in COLUMNS))
    return shown
