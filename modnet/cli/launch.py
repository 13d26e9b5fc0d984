"""``--nproc-per-node N``, with torchrun's own names: a verb again, in several processes."""

from __future__ import annotations

import os
from collections.abc import Sequence

OPTIONS = ("nproc-per-node", "nnodes", "node-rank", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "max-restarts")
HELP = (
    "In several processes: --nproc-per-node N, and torchrun's --nnodes, --node-rank, --rdzv-backend, "
    "--rdzv-endpoint, --rdzv-id, --max-restarts."
)


def parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are modnet's own, and torchrun's as ``--name=value``; both spellings are read."""
    own: list[str] = []
    launch: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        plain = name.removeprefix("--").replace("_", "-")
        if not name.startswith("--") or plain not in OPTIONS:
            own.append(word)
            continue
        if not equals:
            value = rest.pop(0) if rest else ""
        launch.append(f"--{plain}={value}")
    return own, launch


def started() -> bool:
    """Whether this process was started by torchrun, so that it is one of several already."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def follows() -> bool:
    """Whether this is one of several processes, but not the first, so that it prints nothing."""
    return os.environ.get("RANK", "0") != "0"


def launch(words: Sequence[str], options: Sequence[str]) -> int:
    """Run ``python -m modnet WORDS`` under torch's elastic launcher; gives the exit code of the first that failed.

    Raises RequestError if torchrun does not understand the options.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    from modnet.errors import Interrupted, RequestError

    try:
        arguments = get_args_parser().parse_args([*options, "-m", "modnet", *words])
        run(arguments)
    except ChildFailedError as error:
        return int(min(error.failures.values(), key=lambda failure: failure.timestamp).exitcode)
    except SignalException:
        return Interrupted.exit_code
    except SystemExit as error:
        raise RequestError(f"torchrun does not understand {' '.join(options)}") from error
    except ValueError as error:
        raise RequestError(f"{' '.join(options)}: {error}") from error
    return 0
