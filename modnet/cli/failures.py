"""Errors as one readable paragraph on stderr, and the exit codes that go with them."""

from __future__ import annotations

import os
import sys
import time
import traceback

import typer

from modnet.errors import Interrupted, RequestError, UserError

SECONDS_TO_TELL = 10.0

_shown = {"traceback": False}


def show_tracebacks(asked: bool) -> None:
    """What ``--debug`` does: errors come with where they were raised."""
    _shown["traceback"] = asked


def report(error: BaseException) -> int:
    """Tell an error that a command raised; gives its exit code."""
    if _shown["traceback"]:
        traceback.print_exception(error)
    if isinstance(error, UserError):
        rank = int(os.environ.get("RANK", "0"))
        if not rank or error.exit_code == 1:
            say(str(error), label=f"error in process {rank}" if rank else "error")
        elif error.exit_code == RequestError.exit_code:  # the same in every process: the first one tells it
            time.sleep(SECONDS_TO_TELL)  # the launcher ends all as soon as one has failed
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        say("stopped; the same command goes on from the last checkpoint", label="interrupted")
        return Interrupted.exit_code
    hint = "" if _shown["traceback"] else "\nThis is a bug in modnet or a plug-in; --debug shows where it happened."
    say(f"{type(error).__name__}: {error}{hint}")
    return 1


def report_usage(error: Exception) -> int:
    """Tell what is wrong with the command line itself; gives exit code 2."""
    context = getattr(error, "ctx", None)
    where = f"\n`{context.command_path} --help` shows what there is." if context else ""
    message = getattr(error, "format_message", error.__str__)()
    say(f"{message}{where}")
    return 2


def say(text: str, label: str = "error") -> None:
    """Print a paragraph to stderr: wrapped at the terminal's width, or as it is into a file or pipe."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(stderr=True)
    if not sys.stderr.isatty():
        console.print(Text(f"{label}: {text}"), soft_wrap=True)
        return
    first, *rest = text.split("\n")
    console.print(Text.assemble((f"{label}: ", "bold red"), first))
    for line in rest:
        indent = len(line) - len(line.lstrip())
        console.print(Padding(Text(line.lstrip()), (0, 0, 0, indent)))
