"""Bringing the stages of a recipe up to date: order, skip what is done, hand each to its method, sum up over seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from modnet import data
from modnet.chain import Chain
from modnet.data.large import FolderSplit
from modnet.engine.artifacts import load_chain, save_chain
from modnet.engine.choices import choose, describe
from modnet.engine.display import MUCH_WAITING
from modnet.engine.job import Job
from modnet.engine.loggers import LOG, merge_logs, own_log
from modnet.engine.outcome import Outcome
from modnet.engine.ranks import ALONE, Dealt, Team, World, join, local_device, other_process, sharing
from modnet.engine.reporter import Reporter
from modnet.engine.trainer import train
from modnet.engine.trials import Trials
from modnet.errors import RequestError
from modnet.evaluation.summary import summarise
from modnet.methods.base import NETWORK, Inputs, Method
from modnet.methods.costs import ancestors
from modnet.recipe import Recipe, inputs_of, load_recipe, resolve_suite, stage_keys
from modnet.recipe.stages import Evaluate, Stage, TrainingStage
from modnet.registry import VERBS
from modnet.store import RunFolder, Store, atomic_write_json, read_json

DEFAULT_RUNS = Path("runs")
WORTH_TELLING = 10.0  # seconds of waiting for data


@dataclass
class Session:
    """One seed of a recipe on its way: where things lie, and what is still to do."""

    recipe: Recipe
    store: Store
    keys: dict[str, str]
    folder: RunFolder
    console: Console
    device: torch.device
    world: World = ALONE
    threads: int = field(default_factory=torch.get_num_threads)
    told: set[str] = field(default_factory=set)

    @property
    def inputs(self) -> Inputs:
        """What stages read from."""
        return Inputs(self.recipe, self.store, self.keys, self.say, self.device, world=self.world)

    def say(self, text: str) -> None:
        """Print a message below the stage that it is about."""
        self.console.print(f"  {text}", markup=False, highlight=False, soft_wrap=not self.console.is_terminal)


def run(
    recipe: Recipe | str | Path,
    *,
    runs: Path = DEFAULT_RUNS,
    verb: str | None = None,
    dry_run: bool = False,
    seeds: Sequence[int] | None = None,
    threads: int | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Bring every stage of a recipe (or those of one verb and what they need) up to date, for each seed.

    Gives the summary: ``{"rows": {stage: {metric: {"values", "mean", "half_width"}}}, …}``. A stage whose key is in
    the store is not trained again. ``folder`` names the run's folder. Raises UserError with one readable paragraph.
    """
    console = console or Console(quiet=other_process())
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
    if threads is not None:
        torch.set_num_threads(threads)
    place = pick_device(local_device(device))
    world = join(place)
    if world.size > 1:
        console.print(world.describe(), highlight=False)
    results, chosen = {}, torch.get_num_threads()
    for seed in seeds if seeds is not None else [recipe.seed]:
        torch.set_num_threads(chosen)  # a stage of another seed may have gone on with those of its first start
        session = open_session(recipe.with_seed(seed), runs, console, str(place), world)
        wanted = stages_for(session.recipe, verb)
        announce(session, wanted)
        if not dry_run:
            results[seed] = bring_up_to_date(session, wanted)
    if dry_run:
        return {}
    summary = summarise({seed: rows for seed, rows in results.items() if rows}, pinned=recipe.pinned())
    if summary["rows"] and world.team.leads:
        write_summary(session.folder.path.parent / "summary.json", summary)
    return {**summary, "folder": str(session.folder.path if len(results) == 1 else session.folder.path.parent)}


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary of a recipe's runs; some of the seeds do not replace what more of them gave."""
    if path.is_file() and set(summary["seeds"]) < set(read_json(path, f"delete {path}")["seeds"]):
        return
    atomic_write_json(path, summary)


def open_session(
    recipe: Recipe, runs: Path, console: Console, device: str | None = None, world: World = ALONE
) -> Session:
    """Keys, store and run folder of one seed of a recipe; ``device`` None is the GPU if there is one."""
    keys = stage_keys(recipe, fingerprints(recipe))
    return Session(
        recipe,
        Store(runs / "store", lambda text: console.print(f"  {text}")),
        keys,
        RunFolder(runs, recipe.name, recipe.seed),
        console,
        pick_device(device),
        world,
    )


def pick_device(name: str | None) -> torch.device:
    """The device of a name, or the first GPU, else the CPU; raises RequestError if torch cannot use it."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"--device {name}: torch cannot use it here ({str(error).splitlines()[0]})") from error
    return device


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """What stands for the contents of every data source and shift suite of a recipe."""
    found = {name: data.fingerprint(params) for name, params in recipe.sources().items()}
    for stage in recipe.stages.values():
        for name in stage.on if isinstance(stage, Evaluate) else ():
            found.setdefault(name, data.fingerprint(*resolve_suite(name, recipe)))
    return found


def stages_for(recipe: Recipe, verb: str | None) -> list[str]:
    """The stages to bring up to date, in order; raises RequestError if no stage has the verb."""
    if verb in (None, "train"):
        return list(recipe.stages)
    chosen = [name for name, stage in recipe.stages.items() if stage.run == verb]
    if not chosen:
        known = ", ".join(sorted({stage.run for stage in recipe.stages.values()}))
        raise RequestError(f"recipe {recipe.name!r} has no stage with run: {verb}; its verbs are {known}")
    needed = set().union(*(ancestors(name, recipe) for name in chosen))
    return [name for name in recipe.stages if name in needed]


def announce(session: Session, wanted: list[str]) -> None:
    """Say what is there already and what is to do."""
    recipe, console = session.recipe, session.console
    console.print(f"[bold]{recipe.name}[/bold], seed {recipe.seed}: {recipe.description()}", highlight=False)
    for line in recipe.reductions:
        console.print(f"  smoke: {line}", highlight=False)
    width = max(map(len, wanted))
    for name in wanted:
        done = session.store.is_done(session.keys[name])
        state = "[green]done[/green]" if done else "to do"
        console.print(
            f"  {name:<{width}}  {recipe.stages[name].run:<9} {session.keys[name][:8]}  {state}", highlight=False
        )


def bring_up_to_date(session: Session, wanted: list[str]) -> dict[str, Any]:
    """Run what is not done, link every stage into the run folder, and give the evaluated rows."""
    recipe, keys = session.recipe, session.keys
    team = session.world.team
    if team.leads:
        session.folder.begin(recipe.to_yaml(), {"recipe": recipe.name, "seed": recipe.seed, "keys": keys})
    rows: dict[str, Any] = {}
    with session.store as store:
        for name in wanted:
            stage, key = recipe.stages[name], keys[name]
            if not team.told(store.is_done(key)):
                run_stage(session, name, stage)
            if team.leads:
                session.folder.link(name, key)
            if isinstance(stage, Evaluate):
                for of, row in named_rows(stage, store.result(key)["rows"]).items():
                    rows[of] = rows.get(of, {}) | row
    if rows and team.leads:
        session.folder.write_results(rows)
    return rows


def named_rows(stage: Evaluate, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """An evaluation's rows by the names that stages and suites have in this recipe: the store knows them by place."""
    named = {}
    for name, row in zip(stage.of, rows, strict=True):
        suites = dict(zip(stage.on, row["suites"], strict=True))
        named[name] = {**row, "suites": suites}
    return named


def run_stage(session: Session, name: str, stage: Stage) -> None:
    """Run one stage to its end and put what it leaves into the store; the first process alone writes there."""
    store, key, team = session.store, session.keys[name], session.world.team
    inputs = {earlier: session.keys[earlier] for earlier in inputs_of(stage, session.recipe)}
    folder = store.folder(key)
    if team.leads:
        store.begin(key, {**session.recipe.manifest(name), "inputs": inputs})
    if team.told(store.is_done(key)):  # another process finished it while this one waited
        store.release(key)
        return
    torch.set_num_threads(session.threads)  # an earlier stage may have gone on with those of its first start
    method = VERBS.get(stage.run).resolve()(stage, replace(session.inputs, home=folder))
    if isinstance(stage, Evaluate):
        with sharing(team):
            result: dict[str, Any] = {"rows": method.rows()}
    else:
        result = learn(session, name, method, folder)
    if team.leads:
        store.finish(key, result)
    team.wait()


def learn(session: Session, name: str, method: Method, folder: Path) -> dict[str, Any]:
    """Train a stage's jobs, dealt to the processes there are, save its chains, and give its result."""
    outcomes = trained(session, name, method, folder)
    if not session.world.team.leads:
        return {}
    metrics = {track: found for outcome in outcomes for track, found in outcome.metrics.items()}
    metrics = metrics if outcomes else method.untrained()
    kept = method.keep(metrics)
    for chain_name, chain in kept.chains.items():
        save_chain(folder, chain_name, chain)
    images = sum(outcome.images for outcome in outcomes) / max(1, len(outcomes))
    seconds, waiting = (sum(getattr(outcome, part) for outcome in outcomes) for part in ("seconds", "waiting"))
    scores = "  ".join(f"{found['top1']:.2f}" for found in metrics.values())
    measured = "val top-1" if len(metrics) == 1 else "val top-1 of the hybrids"
    session.console.print(f"  [green]{name}[/green]: {measured} {scores} % after {seconds:.0f} s", highlight=False)
    if waiting > max(MUCH_WAITING * seconds, WORTH_TELLING):
        remedy = "; MODNET_WORKERS says how many processes read files" * isinstance(method.dataset.train, FolderSplit)
        session.console.print(f"  {100 * waiting / seconds:.0f} % of it waiting for data{remedy}", highlight=False)
    return {
        **kept.facts,
        **method.facts,
        "seconds": seconds,
        "waiting": waiting,
        "epochs": method.stage.epochs,
        "images": images,
        "flops": {part: flops * images for part, flops in method.flops().items()},
        "metrics": metrics,
    }


def trained(session: Session, name: str, method: Method, folder: Path) -> list[Outcome]:
    """The outcome of every job, in order; in a process other than the first only of its own."""
    jobs, world = method.jobs(), session.world
    costs = method.job_costs()
    if jobs and world.size > 1 and world.team.leads:  # before others look for them
        sharing_all = world.size if costs is None else 1
        choices, known = choose(folder, method.stage, session.device, Trials(jobs[0], session.device, sharing_all))
        if not known:
            session.console.print(f"  {name}: {describe(choices, known, session.device)}", highlight=False)
    world.team.wait()
    mine = Dealt(list(range(len(jobs))), world.team) if costs is None else world.deal(costs)
    outcomes = {}
    for number in mine.jobs:
        reporter = job_reporter(session, name, method, folder, jobs, number, mine.team)
        outcomes[number] = train(jobs[number], folder, reporter, mine.team)
    world.team.wait()
    if world.team.leads:
        merge_logs(folder)
        for number in set(range(len(jobs))) - outcomes.keys():  # finished by others: only read
            outcomes[number] = train(jobs[number], folder, Reporter(folder, name, tensorboard=False))
    return [outcomes[number] for number in sorted(outcomes)]


def job_reporter(
    session: Session, name: str, method: Method, folder: Path, jobs: list[Job], number: int, team: Team
) -> Reporter:
    """Where a job reports to; jobs of several processes write logs of their own, which are merged at the end."""
    job, dataset = jobs[number], method.dataset
    if not team.leads:
        return Reporter(folder, name, tensorboard=False, log=os.devnull)
    title = name if len(jobs) == 1 else f"{name}/{job.name}"
    own = own_log(job.name)
    apart = len(jobs) > 1 and (session.world.size > 1 or (folder / own).exists())
    log, look = own if apart else LOG, (dataset.mean, dataset.std)
    return Reporter(folder, title, session.console, mean=look[0], std=look[1], told=session.told, log=log)


def load(path: str | Path, stage: str | None = None) -> Chain:
    """The trained network of a run folder or of a stage's folder, in eval mode.

    ``path``: a run (``runs/NAME/seed-0``; give ``stage`` if it trained several networks) or a store folder.
    Raises RequestError if there is none, and lists the networks there are; RunFailed if a file is damaged.
    """
    folder = Path(path)
    if (folder / "recipe.yaml").is_file():
        load_recipe(str(folder / "recipe.yaml"))  # for the leaves of its plug-ins
    if not (folder / f"{NETWORK}.json").exists():
        there = networks(folder)
        stage = there[0] if stage is None and len(there) == 1 else stage
        if stage not in there:
            listing = f"the networks there are: {', '.join(there)}" if there else "there is none"
            raise RequestError(f"{folder} does not say which network to load; {listing}")
        folder = folder / "stages" / str(stage)
    return load_chain(folder, NETWORK).eval()


def data_of(path: str | Path, stage: str | None = None) -> data.Dataset:
    """The data that a network of a run was trained on last; raises RequestError as :func:`load` does."""
    recipe, there = load_recipe(str(Path(path) / "recipe.yaml")), networks(Path(path))
    found = recipe.stages[stage or there[0]]
    assert isinstance(found, TrainingStage)
    return data.load(recipe.data[found.data])


def load_modules(path: str | Path, stage: str) -> list[Chain]:
    """The modules that an incubation or distillation stage of a run trained, in order, in eval mode.

    Raises RequestError if the stage has left none.
    """
    folder = Path(path) / "stages" / stage
    names = sorted(folder.glob("module*.json"), key=lambda file: int(file.stem.removeprefix("module")))
    if not names:
        there = sorted({file.parent.name for file in Path(path).glob("stages/*/module0.json")})
        raise RequestError(f"{folder} has no modules; stages with modules: {', '.join(there) or 'none'}")
    return [load_chain(folder, file.stem).eval() for file in names]


def networks(run_folder: Path) -> list[str]:
    """The stages of a run that hold a trained network."""
    return sorted(path.parent.name for path in run_folder.glob(f"stages/*/{NETWORK}.json"))


def by_source(recipe: Recipe) -> Recipe:
    """The recipe with its data also under their sources' own names, so that ``tiny-imagenet-r`` is read as they are."""
    own = {source.name: source for source in reversed(list(recipe.data.values()))}
    return replace(recipe, data={**own, **recipe.data})


def evaluate_run(
    path: str | Path,
    on: Sequence[str] = (),
    *,
    of: Sequence[str] = (),
    device: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure the networks of a finished run on other test sets or shift suites, and give the summary.

    ``of`` defaults to the stages that the recipe evaluates, or to every network of the run; ``on`` to what the recipe
    evaluates on.
    """
    folder, console = Path(path), console or Console(quiet=other_process())
    inputs = inputs_of_run(folder, device, console)
    recipe = inputs.recipe
    stated = next((s for s in recipe.stages.values() if isinstance(s, Evaluate)), None)
    of = tuple(of) or (stated.of if stated else tuple(networks(folder)))
    on = tuple(on) or (stated.on if stated else ())
    if not on:
        raise RequestError(f"say on what: modnet eval {folder} --on NAME; the run's recipe evaluates nothing itself")
    unknown = [name for name in of if name not in networks(folder)]
    if unknown:
        raise RequestError(f"{folder} has no network {', '.join(unknown)}; it has {', '.join(networks(folder))}")
    stage = Evaluate(of=of, on=on)
    with sharing(join(inputs.device).team):
        rows = VERBS.get("evaluate").resolve()(stage, inputs).rows()
    return summarise({recipe.seed: named_rows(stage, rows)})


def inputs_of_run(folder: Path, device: str | None = None, console: Console | None = None) -> Inputs:
    """What the stages of a run's folder read from; raises RequestError or RunFailed if it is none."""
    folder = folder.resolve()  # it may be named from within the folder of runs
    recipe = by_source(load_recipe(str(folder / "recipe.yaml")))
    keys = RunFolder(folder.parent.parent, folder.parent.name, recipe.seed).record()["keys"]
    say = (console or Console(quiet=other_process())).print
    return Inputs(recipe, Store(folder.parent.parent / "store"), keys, say, pick_device(local_device(device)))
