"""What a device cannot do, said so that the user knows what helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from modnet.errors import RunFailed
from modnet.recipe.stages import TrainingStage


@contextmanager
def device_errors(
    step: int, device: torch.device, settings: TrainingStage, checkpoint: Callable[[], Path | None], choices: Path
) -> Iterator[None]:
    """In the body, step ``step`` (from 1): too little memory and missing deterministic algorithms become RunFailed.

    ``checkpoint`` gives the last one there is; ``choices`` is the file of automatic choices.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        last = checkpoint()
        kept = f" The last checkpoint is {last}." if last else ""
        raise RunFailed(
            f"step {step} needs more memory than {device} has free, with batch={settings.batch} in "
            f"{settings.accumulate} part{'s' * (settings.accumulate > 1)}.{kept} "
            f"Try a smaller batch, or accumulate={2 * settings.accumulate}."
        ) from error
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise RunFailed(
            f"step {step}: {str(error).partition(',')[0]} on {device}. To train all the same, with last "
            f"bits that differ from run to run, set the value of deterministic to false in {choices}."
        ) from error
