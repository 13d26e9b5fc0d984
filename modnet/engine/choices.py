"""Automatic choices: made once, printed with their reason, stored, and obeyed when a run is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from modnet.engine.muon import fastest_dtype
from modnet.errors import RunFailed
from modnet.recipe.stages import TrainingStage
from modnet.store import atomic_write_json, read_json

AS_THE_RECIPE_SAYS = "as the recipe says"


@dataclass(frozen=True)
class Choice:
    """A value and why it was chosen."""

    value: Any
    reason: str


class Trials(Protocol):
    """What measures where the recipe leaves a choice open."""

    def dtype(self) -> Choice:
        """Whether steps are faster in bf16 or fp32."""
        ...

    def compile(self, bf16: bool) -> Choice:
        """Whether compiling pays, in the dtype chosen."""
        ...


def choose(
    folder: Path, settings: TrainingStage, device: torch.device, trials: Trials | None = None
) -> tuple[dict[str, Choice], bool]:
    """The choices of a stage folder, and whether they are those of an earlier start.

    ``trials`` measure what the recipe leaves open. The process is set accordingly: the
    number of threads, and on a GPU deterministic algorithms. Raises RunFailed if the stored choices cannot be read.
    """
    path = folder / "choices.json"
    choices = _read(path) if path.is_file() else {}
    stored = "threads" in choices  # a method may have stored choices of its own before
    if not stored:
        if device.type == "cuda":
            _set_deterministic(True)  # as :func:`_make` chooses: trials are to time what will run
        choices |= _make(settings, device, trials)
        _write(path, choices)
    torch.set_num_threads(int(choices["threads"].value))
    if device.type == "cuda":
        _set_deterministic(is_deterministic(choices))
    return choices, stored


def remember(folder: Path, name: str, make: Callable[[], Choice]) -> tuple[Choice, bool]:
    """A choice of the method of a stage folder, and whether it was made now rather than at an earlier start."""
    path = folder / "choices.json"
    choices = _read(path) if path.is_file() else {}
    if name in choices:
        return choices[name], False
    choices[name] = make()
    _write(path, choices)
    return choices[name], True


def _write(path: Path, choices: dict[str, Choice]) -> None:
    atomic_write_json(path, {name: asdict(choice) for name, choice in choices.items()})


def is_deterministic(choices: dict[str, Choice]) -> bool:
    """Whether a GPU is kept to algorithms that give the same bits in every run; False where nothing was chosen."""
    return "deterministic" in choices and bool(choices["deterministic"].value)


def _set_deterministic(wanted: bool) -> None:
    """Keep CUDA to deterministic algorithms.

    Not ``warn_only``: with it the backward passes of fused attention stay as they are, without it they have a
    deterministic variant. An operation that has none raises RuntimeError, which the trainer explains.
    """
    if wanted:
        # Read when cuBLAS makes its first handle; without it its workspaces, and so its sums, may differ.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(wanted)
    # A debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _read(path: Path) -> dict[str, Choice]:
    remedy = "delete it to let the run choose again (the result may then differ in the last bits)"
    try:
        return {name: Choice(**entry) for name, entry in read_json(path, remedy).items()}
    except (TypeError, AttributeError, json.JSONDecodeError) as error:
        raise RunFailed(f"{path} does not hold the choices of a run; {remedy}") from error


def _make(settings: TrainingStage, device: torch.device, trials: Trials | None) -> dict[str, Choice]:
    dtype = trials.dtype() if trials is not None and settings.dtype == "auto" else _dtype(settings, device)
    multiply, why = fastest_dtype(device)
    gpu = {"deterministic": Choice(True, "so that a resumed run ends with the same bits")}
    return {
        **(gpu if device.type == "cuda" else {}),
        "threads": _threads(),
        "device": Choice(device.type, "where the networks were placed"),
        "dtype": dtype,
        "compile": _compile(settings, trials, dtype),
        "newton_schulz": Choice(str(multiply).removeprefix("torch."), why),
    }


def _threads() -> Choice:
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return Choice(threads, "OMP_NUM_THREADS")
    return Choice(threads, f"{os.cpu_count()} processors")


def _dtype(settings: TrainingStage, device: torch.device) -> Choice:
    if settings.dtype != "bf16":
        return Choice("fp32", AS_THE_RECIPE_SAYS if settings.dtype == "fp32" else "nothing was tried")
    native, why = fastest_dtype(device)
    slow = "" if native == torch.bfloat16 else "; expect it to be slower than fp32"
    return Choice("bf16", f"{AS_THE_RECIPE_SAYS}; {why}{slow}")


def _compile(settings: TrainingStage, trials: Trials | None, dtype: Choice) -> Choice:
    if settings.compile != "auto":
        return Choice(settings.compile, AS_THE_RECIPE_SAYS)
    return Choice(False, "nothing was tried") if trials is None else trials.compile(dtype.value == "bf16")


def _compiled(choice: Choice) -> str:
    """Whether, and why where the recipe left it open."""
    if choice.reason == AS_THE_RECIPE_SAYS:
        return ", compiled" if choice.value else ""
    return f", {'' if choice.value else 'not '}compiled ({choice.reason})"


def _reason(dtype: Choice) -> str:
    """Why, where it was measured."""
    return f" ({dtype.reason})" if "times as fast" in dtype.reason or "no bf16" in dtype.reason else ""


def describe(choices: dict[str, Choice], stored: bool, device: torch.device) -> str:
    """What the user is told, with a warning if the run now goes on on another kind of device."""
    value = {name: choice.value for name, choice in choices.items()}
    told = (
        f"{'as at the first start' if stored else 'chosen'}: {value['device']}, "
        f"{value['threads']} thread{'s' * (value['threads'] != 1)} ({choices['threads'].reason}), "
        f"{value['dtype']}{_reason(choices['dtype'])}{_compiled(choices['compile'])}"
        f"{', deterministic algorithms' if is_deterministic(choices) else ''}; "
        f"Newton-Schulz of Muon in {value['newton_schulz']} ({choices['newton_schulz'].reason})"
    )
    if value["device"] != device.type:
        told += f"; now on {device.type}, so that the last bits differ from a run that was not moved"
    return told
