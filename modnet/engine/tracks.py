"""A track at work: its optimizer, learning rates, averaged weights, and what is saved of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modnet.engine.checkpoint import Best, Tensors
from modnet.engine.divided import Part, clip, local, placed, total_norm
from modnet.engine.job import Job, Metrics, Track
from modnet.engine.optimizers import load_state_tensors, state_tensors, trainable
from modnet.errors import RunFailed
from modnet.registry import OPTIMIZERS, SCHEDULES, Params


def _name(params: Params) -> str:
    return str(getattr(params, "name"))  # noqa: B009 - every registered parameter class has one


class LiveTrack:
    """The running state of a :class:`Track`; ``total`` and ``per_epoch`` count optimizer steps."""

    def __init__(self, track: Track, total: int, per_epoch: int) -> None:
        self.name, self.chain, self.clip, self.decay = track.name, track.chain, track.clip, track.ema
        self.named = trainable(track.chain)
        self.params: list[Tensor] = list(self.named.values())
        self.optimizer: torch.optim.Optimizer = OPTIMIZERS.get(_name(track.optimizer)).resolve()(
            track.optimizer, track.chain
        )
        self.optimizer_name = _name(track.optimizer)
        schedule = SCHEDULES.get(_name(track.schedule)).resolve()
        self._rates = [
            schedule(track.schedule, total, per_epoch, group["base_lr"]) for group in self.optimizer.param_groups
        ]
        self.followed = self._followed()
        self.average = [t.clone() for t in self._standing()] if self.decay is not None else None
        self.best: Tensors = {}  # of divided tensors what is here

    def _followed(self) -> Tensors:
        """What is averaged, by name: the parameters, and running statistics (BatchNorm's), which belong to them."""
        state = self.chain.state_dict(keep_vars=True)
        floating = {name: t for name, t in state.items() if not isinstance(t, nn.Parameter) and t.is_floating_point()}
        return {**self.named, **floating}

    def _standing(self) -> list[Tensor]:
        """What is here of all that is averaged, as it stands in the chain."""
        return [local(t.detach()) for t in self.followed.values()]

    @property
    def lr(self) -> float:
        """The learning rate of the first group, which is what logs show."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, step: int) -> None:
        """Clip, set this step's rates, and update weights and averages."""
        if self.clip is not None:
            clip(self.params, self.clip)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None and self.decay is not None:
            # The first steps count more than the decay says, else the initial weights stay in short runs.
            decay = min(self.decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self._standing(), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights stand in the chain for the body, if there are any."""
        if self.average is None:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        assert self.average is not None
        standing = self._standing()
        kept = [t.clone() for t in standing]
        torch._foreach_copy_(standing, self.average)
        torch._foreach_copy_(self.average, kept)

    def give(self, best: bool) -> None:
        """Leave the selected weights in the chain: the best, or the last (averaged if there is an average)."""
        if best and self.best:
            with torch.no_grad():
                for name, tensor in self.chain.state_dict().items():
                    local(tensor).copy_(self.best[name])
        elif self.average is not None:
            self._exchange()
            self.average = None

    def keep_best(self) -> None:
        """Remember the weights that stand in the chain now."""
        self.best = {name: local(tensor).clone() for name, tensor in self.chain.state_dict().items()}

    def take_best(self, best: Tensors) -> None:
        """Remember best weights that were stored, of divided tensors what is here."""
        own = self.chain.state_dict()
        self.best = {name: local(placed(tensor, own[name])) for name, tensor in best.items()}

    def weights(self) -> Iterator[Part]:
        """The chain's tensors, and the averages under ``ema:name``."""
        yield from ((name, tensor, tensor) for name, tensor in self.chain.state_dict().items())
        average = zip(self.followed.items(), self.average or [], strict=False)
        yield from ((f"ema:{name}", tensor, like) for (name, like), tensor in average)

    def best_weights(self) -> Iterator[Part]:
        """The best weights so far."""
        own = self.chain.state_dict()
        yield from ((name, tensor, own[name]) for name, tensor in self.best.items())

    def optimizer_state(self) -> Iterator[Part]:
        """The optimizer's tensors by parameter name."""
        for key, value in state_tensors(self.optimizer, self.chain).items():
            yield key, value, self.named[key.rpartition("/")[0]] if value.ndim else value

    @torch.no_grad()
    def load(self, weights: Tensors, optimizer: Tensors) -> list[str]:
        """Put tensors back where name and shape fit; the names that did not, on either side, are returned."""
        like = self.chain.state_dict()
        own = {name: local(tensor) for name, tensor in like.items()}
        if self.average is not None:
            like |= {f"ema:{name}": tensor for name, tensor in self.followed.items()}
            own |= {f"ema:{name}": tensor for name, tensor in zip(self.followed, self.average, strict=True)}
        fitting = [name for name in own if name in weights and like[name].shape == weights[name].shape]
        for name in fitting:
            own[name].copy_(local(placed(weights[name], like[name])))
        left = sorted((own.keys() | weights.keys()) - set(fitting))
        return left + load_state_tensors(self.optimizer, self.chain, optimizer)

    def start_from(self, weights: Tensors, optimizer: Tensors) -> list[str]:
        """Go on from another job's tensors; averages begin anew at its weights, frozen parameters need no state."""
        frozen = {name for name, p in self.chain.named_parameters() if not p.requires_grad}
        needed = {key: value for key, value in optimizer.items() if key.rpartition("/")[0] not in frozen}
        left = self.load({k: v for k, v in weights.items() if not k.startswith("ema:")}, needed)
        if self.average is not None:
            torch._foreach_copy_(self.average, self._standing())
        return [name for name in left if not name.startswith("ema:")]

    @torch.no_grad()
    def finite(self) -> Tensor:
        """Whether all weights that are here are finite numbers: a bool tensor without dimensions."""
        return torch.stack(torch._foreach_norm([local(p) for p in self.params])).isfinite().all()

    def gradient_norms(self) -> dict[str, Tensor]:
        """The gradient norm of each module of the chain that has gradients; all ranks of a team ask together."""
        norms = {}
        for index, module in enumerate(self.chain):
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            if grads:
                norms[f"{self.name}/{index}"] = total_norm(grads)
        return norms


LOWER = ("bits_per_byte", "nll", "ece")  # metrics of which less is better


def better(metrics: Metrics, score: str, best: Best | None) -> bool:
    """Whether these metrics beat the best so far; ties stay with the earlier, NaN never wins over a number."""
    if score not in metrics:
        raise RunFailed(
            f"validation gave no metric {score!r}, by which the best weights are chosen; "
            f"it gave {', '.join(metrics) or 'none'}"
        )
    sign = -1 if score in LOWER else 1
    return (
        best is None
        or sign * metrics[score] > sign * best.score
        or (math.isnan(best.score) and not math.isnan(metrics[score]))
    )


def check_partition(job: Job) -> str:
    """Assert that what the objective trains is exactly the disjoint union of the tracks; what a user is told.

    Raises ValueError naming parameters that no track or two tracks hold, or that the objective does not reach.
    """
    reachable = {id(p): name for name, p in job.objective.named_parameters() if p.requires_grad}
    frozen = sum({p.data_ptr(): p.numel() for p in job.objective.parameters() if not p.requires_grad}.values())
    owner: dict[int, str] = {}
    lines = []
    for track in job.tracks:
        if not re.fullmatch(r"[\w.:-]+", track.name):
            raise ValueError(f"track name {track.name!r}: letters, digits and . : - _ only, as it names files")
        named = trainable(track.chain)
        for name, p in named.items():
            if id(p) in owner:
                raise ValueError(f"{name} of track {track.name} also belongs to track {owner[id(p)]}")
            if id(p) not in reachable:
                raise ValueError(f"{name} of track {track.name} is no trainable parameter of the objective")
            owner[id(p)] = track.name
        if not named:
            raise ValueError(f"track {track.name} has no trainable parameter")
        lines.append(f"{track.name} {sum(p.numel() for p in named.values()):,}")
    loose = [name for key, name in reachable.items() if key not in owner]
    if loose:
        raise ValueError(f"no track trains {', '.join(loose[:5])}{' ...' if len(loose) > 5 else ''}")
    return f"trains {', '.join(lines)} parameters; {f'{frozen:,}' if frozen else 'none'} frozen"


def module_device(module: nn.Module) -> torch.device:
    """Where a module's parameters lie; the CPU if it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
