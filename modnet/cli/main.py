"""The command line: one file per command, and the one place where errors become words and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import typer

from modnet.cli import (
    assemble,
    bench,
    cp,
    data,
    distill,
    evaluate,
    exports,
    imports,
    incubate,
    ls,
    plan,
    route,
    show,
    train,
    validate,
)
from modnet.cli.failures import report, report_usage
from modnet.cli.launch import HELP, launch, parted, started
from modnet.errors import Interrupted, RequestError

COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("train", train.train),
    ("incubate", incubate.incubate),
    ("assemble", assemble.assemble),
    ("distill", distill.distill),
    ("route", route.route),
    ("evaluate", evaluate.evaluate),
    ("ls", ls.ls),
    ("cp", cp.cp),
    ("show", show.show),
    ("validate", validate.validate),
    ("plan", plan.plan),
    ("bench", bench.bench),
    ("import", imports.import_),
    ("export", exports.export),
)
VERBS = ("train", "incubate", "assemble", "distill", "route", "evaluate")
# typer brings its own click, or uses the installed one: what is the base of its usage errors?
_bases: Iterable[Any] = typer.BadParameter.__mro__
USAGE_ERROR: type[Exception] = next(base for base in _bases if base.__name__ == "ClickException")


def _version(asked: bool) -> None:
    if asked:
        import modnet

        typer.echo(f"modnet {modnet.__version__}")
        raise typer.Exit


def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Experiments with modular neural networks: a recipe in, a table with error bars out."""


def application(commands: Iterable[tuple[str, Callable[..., None]]]) -> typer.Typer:
    """The command line with these commands."""
    made = typer.Typer(
        name="modnet",
        help="Experiments with modular neural networks: a recipe in, a table with error bars out.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: rich alone costs more than the help may take
    )
    made.callback()(options)
    for name, command in commands:
        made.command(name, epilog=HELP if name in VERBS else None)(command)
    return made


app = application(COMMANDS)
app.command("eval", hidden=True)(evaluate.evaluate)
app.add_typer(data.app, name="data")


def asked_for(words: list[str]) -> typer.Typer:
    """The command line with the one command that the first word names, as each takes milliseconds to make; or all."""
    named = [(name, command) for name, command in COMMANDS if [name] == words[:1]]
    return application(named) if named else app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code: 0 done, 1 the run failed, 2 the request was wrong, 130 interrupted."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for some takes 15 ms
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    words, options = parted(words)
    try:
        if options and not started():
            if not {*words[:1]} & {*VERBS, "eval"}:
                raise RequestError(f"{options[0]} starts one of {', '.join(VERBS)}; other commands run in one process")
            return launch(words, options)
        done: Any = asked_for(words)(words, standalone_mode=False)
        if done == Interrupted.exit_code:  # what typer makes of Ctrl-C
            return report(KeyboardInterrupt())
        return done if isinstance(done, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except USAGE_ERROR as error:
        return report_usage(error)
    except (Exception, KeyboardInterrupt) as error:
        return report(error)


if __name__ == "__main__":
    sys.exit(main())
