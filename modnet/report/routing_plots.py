"""Pictures of what routers do (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from modnet.evaluation.routing import LayerRouting, Observed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 4  # panels in a row
INK, QUIET = "#333333", "#999999"
COLOURS = (
    "#4477aa", "#ee7733", "#228833", "#cc3377", "#ddcc33", "#33bbee", "#aa5500", "#9966cc",
    "#99cc66", "#000080", "#ff99bb", "#006655", "#bb2222", "#77ddcc", "#eebb99", "#552266",
)  # fmt: skip
"""No greys, which dark and light patches are."""
Layers = Mapping[str, LayerRouting]


def pictures(seen: Observed, classes: Sequence[str]) -> dict[str, Figure]:
    """All pictures of a network's routing, by name."""
    layers = seen.layers
    found = {
        "load": load(layers),
        "classes": by_class(layers, classes),
        "entropy": entropies(layers),
        "together": together(layers),
    }
    if all(layer.patches is not None for layer in layers.values()):
        found["patches"] = patches(seen, classes)
    return found


def _figure(width: float, height: float, title: str, **grid: Any) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    figure.suptitle(title, fontsize=11, color=INK)
    return figure, figure.subplots(squeeze=False, **grid)


def _panels(layers: Layers, width: float, height: float, title: str, **grid: Any) -> tuple[Figure, list[Any]]:
    """A panel of so many inches for each layer, in rows of at most ``ACROSS``."""
    columns = min(ACROSS, len(layers))
    rows = -(-len(layers) // columns)
    figure, axes = _figure(width * columns, height * rows + 0.3, title, nrows=rows, ncols=columns, **grid)
    figure.set_layout_engine("constrained", h_pad=0.08)  # or a panel's label touches the title of the one below
    for empty in axes.flat[len(layers) :]:
        empty.set_visible(False)
    return figure, list(axes.flat[: len(layers)])


def _scale(figure: Figure, shown: Any, axes: Sequence[Any], label: str) -> None:
    """The colours' meaning, beside the panels."""
    rows = -(-len(axes) // ACROSS)
    bar = figure.colorbar(shown, ax=list(axes), shrink=max(0.3, 0.8 / rows), aspect=20)
    bar.set_label(label, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)


def _experts(axis: Any, count: int, which: str = "x") -> None:
    """Ticks at few enough experts to be read."""
    ticks = range(0, count, max(1, -(-count // 8)))
    (axis.set_xticks if which == "x" else axis.set_yticks)(ticks)


def _plain(axes: Any) -> None:
    """Take away the frame, which says nothing."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)


def load(layers: Layers) -> Figure:
    """The share of choices that each expert gets, as a multiple of an even share, a panel for each layer."""
    width = max(3.2, 0.2 * max(layer.experts for layer in layers.values()))
    figure, axes = _panels(layers, width, 2.5, "Load: how tokens' choices are spread over the experts", sharey=True)
    for axis, layer in zip(axes, layers.values(), strict=True):
        numbers = layer.numbers()
        axis.bar(range(layer.experts), (layer.experts * layer.load).tolist(), color="#4477aa", width=0.8)
        axis.axhline(1, color="#cc6677", linewidth=1, linestyle="--", label="even share")
        axis.set_title(f"{layer.label}: CV {numbers['load_cv']:.2f}, {numbers['dead']:.0f} unused", fontsize=9)
        axis.set_xlabel("expert", fontsize=8)
        _experts(axis, layer.experts)
        _plain(axis)
    for axis in axes[::ACROSS]:
        axis.set_ylabel("choices, times an even share", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", fontsize=8, frameon=False)
    return figure


def by_class(layers: Layers, classes: Sequence[str]) -> Figure:
    """Of each class's choices, how many go to each expert; the title says how much that tells.

    As multiples of an even share, so that layers of few and of many experts can be compared.
    """
    width = max(3.4, 0.2 * max(layer.experts for layer in layers.values()) + 1.2)
    height = 0.9 + 0.24 * max(6, min(len(classes), 40))
    figure, axes = _panels(layers, width, height, "Which experts a class's tokens choose", sharey=True)
    tables = [layer.by_class() for layer in layers.values()]
    shares = [table.shape[1] * table / table.sum(1, keepdim=True).clamp(min=1) for table in tables]
    most = max(float(share.max()) for share in shares)
    for axis, layer, share in zip(axes, layers.values(), shares, strict=True):
        shown = axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=most, aspect="auto", interpolation="nearest")
        numbers = layer.numbers()
        axis.set_title(
            f"{layer.label}: information {numbers['class_mi']:.3f} nats\n"
            f"(by chance {numbers['class_mi_chance']:.3f}, at most {math.log(min(layer.experts, len(classes))):.2f})",
            fontsize=8,
        )
        axis.set_xlabel("expert", fontsize=8)
        _experts(axis, layer.experts)
        axis.tick_params(labelsize=8, colors=INK)
    if len(classes) <= 40:
        axes[0].set_yticks(range(len(classes)), labels=[_short(name, 16) for name in classes])
    _scale(figure, shown, axes, "choices, times an even share")
    return figure


def entropies(layers: Layers) -> Figure:
    """How sure routers are of a token, how evenly they use experts overall, and what is dropped."""
    size = max(7.5, 1.1 * len(layers))
    figure, axes = _figure(size, 2.8, "Routing entropy and dropped choices", ncols=2, width_ratios=(2, 1))
    at = np.arange(len(layers))
    numbers = [layer.numbers() for layer in layers.values()]
    names = [f"{layer.label}" for layer in layers.values()]
    for shift, key, label, colour in (
        (-0.2, "token_entropy", "of a token", "#4477aa"),
        (0.2, "marginal_entropy", "of all tokens together", "#ddaa33"),
    ):
        axes[0, 0].bar(at + shift, [found[key] for found in numbers], 0.38, label=label, color=colour)
    axes[0, 0].set_ylim(0, 1.25)
    axes[0, 0].set_yticks((0, 0.5, 1))
    axes[0, 0].set_ylabel("entropy; 1: all experts alike", fontsize=8)
    axes[0, 0].legend(fontsize=8, frameon=False, ncols=2, loc="upper center")
    axes[0, 1].bar(at, [100 * found["dropped"] for found in numbers], 0.5, color="#cc6677")
    axes[0, 1].set_ylabel("dropped choices, %", fontsize=8)
    axes[0, 1].set_ylim(0, max(1.0, *(110 * found["dropped"] for found in numbers)))
    if not any(found["dropped"] for found in numbers):
        axes[0, 1].set_yticks(())
        axes[0, 1].text(0.5, 0.5, "none", transform=axes[0, 1].transAxes, ha="center", fontsize=9, color=QUIET)
    for axis in axes[0]:
        axis.set_xticks(
            at, labels=names, rotation=0 if len(layers) <= 3 else 45, ha="center" if len(layers) <= 3 else "right"
        )
        axis.set_xlim(-0.6, len(layers) - 0.4)
        _plain(axis)
    return figure


def together(layers: Layers) -> Figure:
    """Of the tokens that choose one expert, the share that chooses another as well."""
    figure, axes = _panels(layers, 3.3, 3.2, "Experts that are chosen together")
    shares = [100 * layer.together / layer.together.diagonal().clamp(min=1)[:, None] for layer in layers.values()]
    for share in shares:
        share.fill_diagonal_(torch.nan)
    most = max(1.0, *(float(share.nan_to_num().max()) for share in shares))
    for axis, layer, share in zip(axes, layers.values(), shares, strict=True):
        axis.set_facecolor("#dddddd")  # an expert with itself
        shown = axis.imshow(share.numpy(), cmap="Purples", vmin=0, vmax=most, interpolation="nearest")
        axis.set_title(f"{layer.label}: {layer.top_k} of {layer.experts}", fontsize=9)
        _experts(axis, layer.experts)
        _experts(axis, layer.experts, "y")
        axis.set_xlabel("choose this one too", fontsize=8)
        axis.tick_params(labelsize=8, colors=INK)
    for axis in axes[::ACROSS]:
        axis.set_ylabel("of the tokens of this expert", fontsize=8)
    _scale(figure, shown, axes, "% of the expert's tokens")
    return figure


def patches(seen: Observed, classes: Sequence[str]) -> Figure:
    """Images, and below each the first expert of every patch, a colour for each expert."""
    layers, images, labels = seen.layers, seen.images, seen.labels.tolist()
    count, rows = min(len(images), 20), 1 + len(layers)
    figure, axes = _figure(
        0.95 * count + 0.8, 1.05 * rows + 0.5, "First expert of every patch", nrows=rows, ncols=count
    )
    pixels = images.permute(0, 2, 3, 1).numpy()
    for column in range(count):
        image = pixels[column] if pixels.shape[-1] == 3 else pixels[column][..., 0]
        axes[0, column].imshow(image, cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(_short(classes[labels[column]]), fontsize=7, color=INK)
        for row, layer in enumerate(layers.values(), start=1):
            assert layer.patches is not None
            coloured = expert_colours(layer.experts)[layer.patches[column].numpy()]
            axes[row, column].imshow(_over(coloured, image), interpolation="nearest")
    for row, layer in enumerate(layers.values(), start=1):
        axes[row, 0].set_ylabel(f"{layer.label}", fontsize=8, color=INK)
    _legend(figure, max(layer.experts for layer in layers.values()))
    for axis in axes.flat:
        axis.set_xticks(())
        axis.set_yticks(())
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure


def _legend(figure: Figure, experts: int) -> None:
    """The experts' colours, where they are few enough to be told apart."""
    from matplotlib.patches import Patch

    if experts <= len(COLOURS):
        handles = [Patch(color=colour, label=f"{e}") for e, colour in enumerate(expert_colours(experts))]
        figure.legend(handles=handles, title="expert", loc="outside right center", fontsize=7, title_fontsize=8,
                      frameon=False, handlelength=1)  # fmt: skip


def _over(coloured: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Patch colours (h, w, 3) as large as the image, darkened where it is dark so that its shape shows."""
    light = (image if image.ndim == 2 else image.mean(-1)) / 255
    down, across = light.shape[0] // coloured.shape[0], light.shape[1] // coloured.shape[1]
    large = coloured.repeat(down, 0).repeat(across, 1)
    mixed: np.ndarray = large * (0.55 + 0.45 * light[: large.shape[0], : large.shape[1], None])
    return mixed


def expert_colours(count: int) -> np.ndarray:
    """A colour (count, 3) for every expert, as different as so many can be."""
    import matplotlib as mpl

    if count <= len(COLOURS):
        return np.asarray([mpl.colors.to_rgb(colour) for colour in COLOURS[:count]])
    return np.asarray(mpl.colormaps["hsv"](np.linspace(0, 1, count, endpoint=False)))[:, :3]


def _short(name: str, most: int = 11) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
