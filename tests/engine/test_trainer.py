from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from modnet.chain import Pass
from modnet.engine.batch import Batch
from modnet.engine.checkpoint import Best, Checkpoints
from modnet.engine.choices import choose, describe
from modnet.engine.job import Job, Track
from modnet.engine.reporter import Reporter
from modnet.engine.tracks import LiveTrack, better, check_partition
from modnet.engine.trainer import train
from modnet.errors import RunFailed
from modnet.randomness import Key
from modnet.recipe.training import SGD, AdamW, Muon, Schedule
from tests.engine.toy import Objective, quiet, run, toy_chain, toy_job, weights


def test_training_learns_and_gives_on_the_best_weights(tmp_path: Path) -> None:
    job, outcome = run(tmp_path, optimizer=Muon(), epochs=15)
    best = outcome.best["track0"]
    assert best.score > 80
    assert best.score == max(row["metrics"]["track0"]["top1"] for row in outcome.history)
    first = next(r for r in outcome.history if r["metrics"]["track0"]["top1"] == best.score)
    assert best.epoch == first["epoch"]  # ties: the earlier
    assert job.validate()["track0"] == best.metrics == outcome.metrics["track0"]
    assert outcome.steps == 60
    assert outcome.images == 60 * 12


def test_select_last_gives_on_the_last_weights(tmp_path: Path) -> None:
    job, outcome = run(tmp_path, optimizer=Muon(), epochs=15, select="last")
    last = outcome.history[-1]["metrics"]["track0"]
    assert job.validate()["track0"] == last == outcome.metrics["track0"]
    assert last != outcome.best["track0"].metrics


@pytest.mark.parametrize("parts", [2, 5, 12])
def test_accumulation_equals_the_whole_batch(parts: int, tmp_path: Path) -> None:
    # 12 samples in 5 parts are 3, 3, 3, 3; SGD, as AdamW turns rounding of zero gradients into steps.
    whole, _ = run(tmp_path / "whole", optimizer=SGD(lr=0.1))
    split, _ = run(tmp_path / "split", optimizer=SGD(lr=0.1), accumulate=parts)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], tensor, atol=2e-6, rtol=1e-5)


def test_tracks_learn_independently(tmp_path: Path) -> None:
    """Two tracks side by side equal the second alone, clipped by its own norm only."""
    both, outcome = run(tmp_path / "both", tracks=2, clip=0.1, ema=0.9)
    alone = toy_job(tracks=2, clip=0.1, ema=0.9)
    alone.tracks = alone.tracks[1:]
    alone.objective = Objective({"track1": alone.tracks[0].chain})
    validate = alone.validate
    alone.validate = lambda: {"track1": validate()["track1"]}
    (tmp_path / "alone").mkdir()
    single = train(alone, tmp_path / "alone", quiet(tmp_path / "alone"))
    mine = {k: v for k, v in weights(both).items() if k.startswith("track1")}
    assert all(torch.equal(mine[k], v) for k, v in weights(alone).items())
    assert single.metrics["track1"] == outcome.metrics["track1"]


class ApartObjective(Objective):
    """The same losses, a track at a time; notes whether a track's graph was gone when the next was made."""

    def __init__(self, chains: dict[str, Any]) -> None:
        super().__init__(chains)
        self.gone: list[bool] = []

    def apart(self, batch: Batch, ctx: Pass) -> Iterator[dict[str, Tensor]]:
        for name, chain in self.chains.items():
            loss = torch.nn.functional.cross_entropy(chain(batch.x, ctx.enter(name)), batch.y)
            yield {name: loss}
            with pytest.raises(RuntimeError, match="second time"):
                loss.backward()
            self.gone.append(True)


@pytest.mark.parametrize("parts", [1, 3])
def test_losses_that_come_apart_give_the_same_bits(tmp_path: Path, parts: int) -> None:
    together, _ = run(tmp_path / "together", tracks=3, accumulate=parts)
    apart = toy_job(tracks=3, accumulate=parts)
    apart.objective = ApartObjective({track.name: track.chain for track in apart.tracks})
    (tmp_path / "apart").mkdir()
    train(apart, tmp_path / "apart", quiet(tmp_path / "apart"))
    assert all(torch.equal(weights(together)[name], tensor) for name, tensor in weights(apart).items())
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("together", "apart")]
    assert [json.loads(line).get("loss") for line in logs[0]] == [json.loads(line).get("loss") for line in logs[1]]
    assert len(apart.objective.gone) == 3 * 12 * parts


def test_the_pass_has_the_steps_key_and_the_samples_ids(tmp_path: Path) -> None:
    seen: list[tuple[Key | None, Tensor | None, bool]] = []

    class Spy(Objective):
        def forward(self, batch: Any, ctx: Pass) -> dict[str, Tensor]:
            seen.append((ctx.key, ctx.ids, self.training))
            return super().forward(batch, ctx)

    job = toy_job(epochs=1, accumulate=2)
    job.objective = Spy({"track0": job.tracks[0].chain})
    train(job, tmp_path, quiet(tmp_path))
    expected = [job.key.fold("step", step) for step in range(4) for _ in range(2)]
    assert [key for key, _, _ in seen] == expected
    first = next(job.batches.epoch(0))
    assert torch.equal(torch.cat([ids for _, ids, _ in seen[:2] if ids is not None]), first.ids)
    assert all(training for _, _, training in seen)


def test_no_epochs_validates_and_returns(tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in weights(toy_job()).items()}
    job, outcome = run(tmp_path, epochs=0)
    assert outcome.steps == 0
    assert outcome.best["track0"].epoch == 0
    assert outcome.metrics == job.validate()
    assert all(torch.equal(v, before[k]) for k, v in weights(job).items())


def test_evaluate_every_also_measures_the_last_epoch(tmp_path: Path) -> None:
    _, outcome = run(tmp_path, epochs=5, evaluate_every=2)
    assert [row["epoch"] for row in outcome.history] == [2, 4, 5]


def test_ema_weights_are_validated_and_given_on(tmp_path: Path) -> None:
    chain = toy_chain()
    live = LiveTrack(Track("t", chain, SGD(lr=0.1), Schedule(), ema=0.9), 10, 5)
    expected = [p.detach().clone() for p in chain.parameters()]
    for step in range(5):
        chain(torch.randn(4, 8, generator=Key.of(step).generator())).square().mean().backward()
        live.step(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, chain.parameters(), strict=True)]
    raw = [p.detach().clone() for p in chain.parameters()]
    with live.averaged():
        for p, e in zip(chain.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), e)
    assert all(torch.equal(p, r) for p, r in zip(chain.parameters(), raw, strict=True))
    live.give(best=False)
    for p, e in zip(chain.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e)


def test_clip_bounds_the_tracks_gradient(tmp_path: Path) -> None:
    chain = toy_chain()
    live = LiveTrack(Track("t", chain, SGD(lr=1.0, momentum=0), Schedule(name="constant", warmup=0), clip=0.5), 10, 5)
    before = [p.detach().clone() for p in chain.parameters()]
    (100 * chain(torch.ones(4, 8))).square().sum().backward()
    live.step(0)
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(chain.parameters(), before, strict=True)]).norm()
    assert float(moved) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_checkpoint(
    bad: float, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("modnet.engine.trainer.LOGS_PER_EPOCH", 1)

    class Breaks(Objective):
        def forward(self, batch: Any, ctx: Pass) -> dict[str, Tensor]:
            losses = super().forward(batch, ctx)
            return {k: v * (bad if self.calls == 6 else 1) for k, v in losses.items()}

    job = toy_job()
    job.objective = Breaks({"track0": job.tracks[0].chain})
    with pytest.raises(RunFailed, match=r"the loss at step 6 of track track0.*learning rate 0\.0.*last good"):
        train(job, tmp_path, quiet(tmp_path))
    found = Checkpoints(tmp_path, "toy").load()
    assert found is not None
    assert found.progress.step == 4
    assert all(t.isfinite().all() for t in found.weights.values())


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    """The loss may still be finite when the weights are not."""
    job = toy_job()

    def poison(calls: int) -> None:
        if calls == 8:
            weight = dict(job.tracks[0].chain.named_parameters())["2.head.weight"]
            weight.register_hook(lambda grad: grad * float("nan"))

    job.objective = Objective({"track0": job.tracks[0].chain}, poison)
    with pytest.raises(RunFailed, match=r"a weight after step 8 of track track0 is not a finite number"):
        train(job, tmp_path, quiet(tmp_path))
    found = Checkpoints(tmp_path, "toy").load()
    assert found is not None
    assert found.progress.step == 4


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "step 6 needs more memory.*a smaller batch, or accumulate=4"),
        (
            RuntimeError("put_kernel does not have a deterministic implementation, but you set ..."),
            r"step 6: put_kernel does not .* deterministic to false in .*choices\.json",
        ),
    ],
)
def test_what_the_device_cannot_do_is_one_paragraph(error: Exception, message: str, tmp_path: Path) -> None:
    def fault(calls: int) -> None:
        if calls == 11:
            raise error

    with pytest.raises(RunFailed, match=message):
        run(tmp_path, fault=fault, accumulate=2)


def test_seconds_count_the_reading_of_batches(tmp_path: Path, monkeypatch: Any) -> None:
    job = toy_job(epochs=1)
    epoch, clock = job.batches.epoch, [0.0]

    def slow(number: int, start: int = 0) -> Iterator[Batch]:
        for batch in epoch(number, start):
            clock[0] += 5.0
            yield batch

    monkeypatch.setattr(job.batches, "epoch", slow)
    monkeypatch.setattr("modnet.engine.trainer.time.perf_counter", lambda: clock[0])
    outcome = train(job, tmp_path, quiet(tmp_path))
    assert outcome.seconds == outcome.waiting == 20.0
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["waiting_for_data"] for row in told if row["kind"] == "train"} == {1.0}


@pytest.mark.parametrize("wanted", [True, False])
def test_a_gpu_is_kept_to_deterministic_algorithms_as_chosen(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    device, settings = torch.device("cuda"), toy_job().settings
    try:
        choices, _ = choose(tmp_path, settings, device)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        told = describe(choices, False, device)
        assert "fp32, deterministic algorithms; Newton-Schulz of Muon in float32 (the GPU only emulates bf16)" in told
        path = tmp_path / "choices.json"
        stored = json.loads(path.read_text())
        path.write_text(json.dumps(stored | {"deterministic": {"value": wanted, "reason": "test"}}))
        choose(tmp_path, settings, device)
        assert torch.are_deterministic_algorithms_enabled() is wanted
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def broken(job: Job, kind: str) -> Job:
    chain = job.tracks[0].chain
    if kind == "loose":
        job.tracks = [Track("track0", chain[:1], AdamW(), Schedule())]
    elif kind == "twice":
        job.tracks.append(Track("other", chain[1:], AdamW(), Schedule()))
    elif kind == "foreign":
        job.tracks.append(Track("other", toy_chain(5), AdamW(), Schedule()))
    else:
        job.tracks.append(Track("other", chain.frozen(), AdamW(), Schedule()))
    return job


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("loose", "no track trains chains.track0.1.norm.weight"),
        ("twice", "also belongs to track track0"),
        ("foreign", "no trainable parameter of the objective"),
        ("frozen", "has no trainable parameter"),
    ],
)
def test_tracks_must_be_exactly_what_is_trainable(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(broken(toy_job(), kind), tmp_path, quiet(tmp_path))


def test_the_partition_is_printed_and_counts_frozen_parts(tmp_path: Path) -> None:
    job = toy_job()
    hybrid = job.tracks[0].chain[:1].frozen() + job.tracks[0].chain[1:]
    job.tracks[0].chain, job.objective = hybrid[1:], Objective({"track0": hybrid})
    assert check_partition(job) == "trains track0 459 parameters; 432 frozen"


def test_frozen_parts_do_not_move_and_stay_in_eval(tmp_path: Path) -> None:
    job = toy_job()
    meta = job.tracks[0].chain
    hybrid = meta[:1].frozen() + toy_chain(9)[1:]
    before = [p.clone() for p in hybrid[:1].parameters()]
    job.tracks[0].chain, job.objective = hybrid[1:], Objective({"track0": hybrid})
    train(job, tmp_path, quiet(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(hybrid[:1].parameters(), before, strict=True))
    assert not any(leaf.training for leaf in hybrid.leaves[:1])


def test_bf16_runs_and_is_said(tmp_path: Path) -> None:
    job = toy_job(dtype="bf16")
    console = Console(record=True, width=200)
    train(job, tmp_path, Reporter(tmp_path, "toy", console, tensorboard=False))
    assert re.search(r", bf16( \(as the recipe says.*\))?; Newton-Schulz", console.export_text())  # slow here, if it is
    assert json.loads((tmp_path / "choices.json").read_text())["dtype"]["value"] == "bf16"
    whole, _ = run(tmp_path / "fp32")
    moved = weights(job)["track0/2.head.weight"] - weights(whole)["track0/2.head.weight"]
    assert 0 < float(moved.abs().max()) < 0.05


def test_better_prefers_the_earlier_and_numbers() -> None:
    assert better({"top1": 1.0}, "top1", None)
    assert better({"bits_per_byte": 2.0}, "bits_per_byte", Best(1, 2.1, {}))
    assert not better({"bits_per_byte": 2.1}, "bits_per_byte", Best(1, 2.1, {}))
    assert not better({"top1": 1.0}, "top1", Best(1, 1.0, {}))
    assert better({"top1": 1.0}, "top1", Best(1, float("nan"), {}))
    assert not better({"top1": float("nan")}, "top1", Best(1, 1.0, {}))
    with pytest.raises(RunFailed, match="no metric 'top1'.*it gave loss"):
        better({"loss": 1.0}, "top1", None)


def test_the_best_file_is_linked_while_the_best_stays(tmp_path: Path) -> None:
    """An unchanged best is not written again, and still belongs to every checkpoint."""
    _, outcome = run(tmp_path, optimizer=SGD(lr=1e-30), epochs=4)
    assert outcome.best["track0"].epoch == 1
    found = Checkpoints(tmp_path, "toy").load()
    assert found is not None
    assert found.best["track0"].keys() == toy_chain().state_dict().keys()


def test_start_skips_what_does_not_fit_and_another_optimizers_state(tmp_path: Path) -> None:
    run(tmp_path / "first", optimizer=SGD(lr=0.1), select="last")
    job = toy_job(optimizer=AdamW(), epochs=0)
    job.tracks[0].chain.leaves[2].head = torch.nn.Linear(8, 5)
    kept = job.tracks[0].chain.leaves[2].head.weight.detach().clone()
    job.start = tmp_path / "first/checkpoints/toy/last"
    job.validate = lambda: {"track0": {"top1": 0.0}}
    console = Console(record=True, width=300)
    (tmp_path / "second").mkdir()
    train(job, tmp_path / "second", Reporter(tmp_path / "second", "toy", console, tensorboard=False))
    said = console.export_text()
    assert "without its optimizer state" in said
    assert "not taken over, as name or shape differ: 2.head.bias, 2.head.weight" in said
    assert torch.equal(job.tracks[0].chain.leaves[2].head.weight, kept)
    assert not torch.equal(job.tracks[0].chain.state_dict()["0.fc1.weight"], toy_chain().state_dict()["0.fc1.weight"])
