"""What of a job's networks is divided over the ranks of its team: experts, and whole parameters (FSDP2).

While a job trains, what is divided are DTensors; afterwards the chains are as they were, with the weights learned. So
checkpoints, stored networks, and all that methods do before and after training never see a part of a tensor.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.modules.batchnorm import _BatchNorm

from modnet.chain import Chain
from modnet.engine.divided import local, whole
from modnet.engine.job import Job
from modnet.engine.parallel import spread
from modnet.engine.ranks import Team
from modnet.engine.sharding import Degrees, Sharding
from modnet.errors import RequestError
from modnet.layers.exchange import Exchange, PerExpert
from modnet.layers.head_experts import HeadExperts

COPIES, EXPERTS, SHARDS = "copies", "experts", "shards"
AS_THEY_ARE = ("_buffers", "training")  # attributes of a module that training may change


class Sharded(Sharding):
    """What is divided of a job."""

    divides = True

    def __init__(self, job: Job, degrees: Degrees, team: Team, device: torch.device) -> None:
        super().__init__(team)
        _check(job, team, device)
        self._dealt: list[nn.Parameter] = []  # stacks of experts, of which this rank has some
        self._copies: distributed.ProcessGroup | None = None  # the ranks that have the same experts as this one
        self._kept = [_Kept(track.chain) for track in job.tracks]
        self._chains: list[FSDPModule] = []
        if degrees.experts > 1:
            self._deal(job, degrees.experts, device)
        if degrees.fsdp > 1:
            self._shard(job, degrees.fsdp, device)
        for kept in self._kept:
            kept.empty()

    def _deal(self, job: Job, ranks: int, device: torch.device) -> None:
        """Leave each rank its experts of every layer that learns."""
        stacks = list({id(stack): stack for track in job.tracks for stack in _stacks(track.chain)}.values())
        if not stacks:
            raise RequestError("parallel.experts: this network has no experts that learn; leave it out")
        counts = sorted({len(p) for stack in stacks for p in stack.parameters()})
        for count in counts:
            if count % ranks:
                raise RequestError(f"parallel.experts: {count} experts cannot be dealt evenly to {ranks} processes")
        mesh = _mesh(device.type, EXPERTS, self.team.size // ranks, ranks)
        if mesh[COPIES].size() > 1:
            self._copies = mesh.get_group(COPIES)
        exchange = Exchange(mesh.get_group(EXPERTS))
        for stack in stacks:
            _deal(stack, mesh[EXPERTS], exchange)
        self._dealt = [p for stack in stacks for p in stack.parameters()]
        shares = " or ".join(f"{count // ranks} of {count}" for count in counts)
        self.told.append(f"experts are dealt to {ranks} processes, {shares} to each")

    def _shard(self, job: Job, ranks: int, device: torch.device) -> None:
        """Shard every leaf for itself by FSDP2, all parameters but the experts that were dealt."""
        for track in job.tracks:
            _check_shardable(track.chain)
        mesh = _mesh(device.type, SHARDS, self.team.size // ranks, ranks)
        mesh = mesh if mesh[COPIES].size() > 1 else mesh[SHARDS]
        for track in job.tracks:
            for part in (*dict.fromkeys(track.chain.leaves), track.chain):
                fully_shard(part, mesh=mesh, ignored_params=set(self._dealt))
            assert isinstance(track.chain, FSDPModule)
            self._chains.append(track.chain)
        copies = self.team.size // ranks
        many = f", {copies} copies" if copies > 1 else ""
        self.told.append(f"parameters, gradients and optimizer are sharded over {ranks} processes{many}")

    def spread(self, objective: nn.Module) -> nn.Module:
        if self._chains:  # FSDP averages itself
            return objective
        dealt = {id(p) for p in self._dealt}
        return spread(objective, self.team, {name for name, p in objective.named_parameters() if id(p) in dealt})

    def unsynced(self, objective: nn.Module, wanted: bool) -> AbstractContextManager[None]:
        for chain in self._chains:
            chain.set_requires_gradient_sync(not wanted)
        return super().unsynced(objective, wanted)

    def average(self) -> None:
        """After backward: what each rank's experts learned from all tokens, as one process has it.

        An expert's gradient is the sum over the ranks that send it tokens; others that have the same expert add theirs.
        """
        grads = [local(p.grad) for p in self._dealt if p.grad is not None]
        if self._copies is not None:
            for grad in grads:
                distributed.all_reduce(grad, group=self._copies)
        if grads:
            torch._foreach_div_(grads, self.team.size)

    def restore(self) -> None:
        for kept in self._kept:
            kept.restore()
        self._kept, self._dealt, self._chains = [], [], []


@functools.cache
def _mesh(device: str, parts: str, copies: int, ranks: int) -> DeviceMesh:
    """All processes, neighbours having different parts; made once, as its groups last."""
    return init_device_mesh(device, (copies, ranks), mesh_dim_names=(COPIES, parts))


def _stacks(module: nn.Module) -> Iterator[PerExpert]:
    """The outermost stacks of experts that learn; heads of attention stay whole, as every token needs all keys."""
    for child in module.children():
        if isinstance(child, HeadExperts):
            continue
        if not isinstance(child, PerExpert):
            yield from _stacks(child)
        elif any(p.requires_grad for p in child.parameters()):
            yield child


def _deal(stack: PerExpert, mesh: DeviceMesh, exchange: Exchange) -> None:
    """Keep this rank's experts of a stack."""
    stack.exchange = exchange
    for module in stack.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            own = p.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
            divided = DTensor.from_local(own, mesh, [Shard(0)], run_check=False)
            setattr(module, name, nn.Parameter(divided, requires_grad=p.requires_grad))


def _check(job: Job, team: Team, device: torch.device) -> None:
    """Raises RequestError for what divided networks cannot do."""
    if device.type == "cuda" and distributed.get_backend(team.group) != "nccl":
        raise RequestError(
            "parallel: networks are divided over processes that each have a GPU, or none; use --device cpu"
        )
    if job.settings.compile is True:
        raise RequestError(
            "parallel: a network that is divided over processes cannot be compiled; set compile to false"
        )
    shares = [-(-job.batches.batch_size // team.size), job.batches.batch_size // team.size]
    if len({_parts(share, job.settings.accumulate) for share in shares}) > 1:
        raise RequestError(
            f"parallel: a batch of {job.batches.batch_size} images in {job.settings.accumulate} parts does not give "
            f"each of {team.size} processes as many; let batch be a multiple of their product"
        )


def _check_shardable(chain: Chain) -> None:
    """Raises RequestError for networks that FSDP does not shard leaf by leaf as one process has them."""
    held = [id(p) for leaf in chain.leaves for p in set(leaf.parameters())]
    hindrances = {
        "running statistics (BatchNorm)": any(isinstance(part, _BatchNorm) for part in chain.modules()),
        "a part that all its modules share": chain.shared_part is not None,
        "a parameter that stands in several places": len(held) > len(set(held)),
        "a parameter that is one number": any(p.ndim == 0 for p in chain.parameters()),
    }
    found = [name for name, there in hindrances.items() if there]
    if found:
        raise RequestError(f"parallel.fsdp: this network has {' and '.join(found)}, so leave fsdp out")


def _parts(images: int, accumulate: int) -> int:
    size = -(-images // accumulate)
    return -(-images // size) if size else 0


class _Kept:
    """A chain's modules as they were before it was divided."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._state = {module: (type(module), _copied(vars(module))) for module in chain.modules()}
        # A parameter that stands in several modules is one here as well.
        self._params = dict(chain.named_parameters())

    def empty(self) -> None:
        """Free what is whole of what is divided now."""
        standing = dict(self.chain.named_parameters())
        self._params = {name: p for name, p in self._params.items() if isinstance(standing[name], DTensor)}
        for p in self._params.values():
            p.data = p.data.new_empty(0)

    def restore(self) -> None:
        """Put everything back, the parameters with the values they have now."""
        standing = dict(self.chain.named_parameters())
        for name, p in self._params.items():
            p.data = whole(standing[name], standing[name])
        for module, (kind, state) in self._state.items():
            module.__class__ = kind
            for gone in vars(module).keys() - state.keys() - set(AS_THEY_ARE):
                del vars(module)[gone]
            vars(module).update(state)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module, its dictionaries copied, but buffers and mode."""
    return {
        name: copy.copy(value) if isinstance(value, dict | set) else value
        for name, value in state.items()
        if name not in AS_THEY_ARE
    }
