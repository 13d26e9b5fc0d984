"""The core: a network is a chain of leaves, grouped into modules, that can be cut, spliced and frozen.

>>> hybrid = meta[:i].frozen() + target[i] + meta[i + 1 :].frozen()

A *leaf* is the smallest part that is never divided (a stem, a block, a head, a stitch). It says what it takes and
gives by a :class:`Port`, and it keeps no state of a pass: all that belongs to one pass lives in a :class:`Pass`.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, overload

from torch import Tensor, nn

from modnet.ports import Port as Port
from modnet.ports import PortMismatch as PortMismatch
from modnet.randomness import Key


class Pass:
    """All that belongs to one forward pass; every leaf receives it and may write to it.

    ``ids``: sample numbers of the batch, int64 (B,), which key the random draws of each sample.
    ``losses``: what a leaf adds to the objective. ``stats``: what it measured. ``taps``: activations asked for by
    leaf position (set ``wanted`` to collect them). ``batch``: further inputs. ``shared``: what a chain's modules
    own together. ``progress``: the share of a training run's epochs that is over. A pass without a key is an
    evaluation pass: nothing is drawn.
    """

    # No dataclass: FSDP hands a leaf a copy of one that holds tensors, and what the leaf writes would be lost.
    def __init__(
        self,
        key: Key | None = None,
        ids: Tensor | None = None,
        batch: Mapping[str, Any] | None = None,
        *,
        shared: nn.Module | None = None,
        wanted: frozenset[int] = frozenset(),
        leaf: int = 0,
        progress: float = 0.0,
    ) -> None:
        self.key, self.ids, self.shared = key, ids, shared
        self.wanted, self.leaf, self.progress = wanted, leaf, progress
        self.batch: Mapping[str, Any] = batch if batch is not None else {}
        self.losses: dict[str, Tensor] = {}
        self.stats: dict[str, Tensor] = {}
        self.taps: dict[int, Tensor] = {}

    @property
    def stochastic(self) -> bool:
        """Whether leaves may draw random numbers in this pass."""
        return self.key is not None

    def rng(self, purpose: str) -> Key:
        """The key of a draw in the leaf that is running; raises ValueError in an evaluation pass."""
        if self.key is None:
            raise ValueError("an evaluation pass draws no random numbers; give the Pass a key")
        return self.key.fold("leaf", self.leaf, purpose)

    def enter(self, *scope: int | str) -> Pass:
        """A pass of its own for one module of several that share a batch: same samples, own key and records."""
        key = self.key and self.key.fold(*scope)
        return Pass(key, self.ids, self.batch, wanted=self.wanted, progress=self.progress)


class Module(nn.Module):
    """One leaf of a chain: ``takes`` and ``gives`` say what flows; ``forward(x, ctx)`` computes.

    ``role`` is ``stem``, ``block``, ``head`` or ``stitch``; cutting counts blocks. The constructor's arguments are
    kept as :attr:`arguments`, so that any chain can be written as data and built again; they must be plain values,
    ports, or chains of such leaves.

    ``reads``: of tokens it reads only so many, the first ones; None: all. ``narrows``: its ``forward`` takes ``first``
    as well, and then gives so many tokens, whose values are the same up to rounding.
    """

    takes: Port | None = None
    gives: Port | None = None
    role: str = "block"
    reads: int | None = None
    narrows: bool = False
    arguments: dict[str, Any]
    is_frozen: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        initialise = cls.__init__
        signature = inspect.signature(initialise)

        @functools.wraps(initialise)
        def recorded(self: Module, *args: Any, **kw: Any) -> None:
            initialise(self, *args, **kw)
            if type(self) is cls:
                bound = signature.bind(self, *args, **kw)
                bound.apply_defaults()  # a default that changes later must not change stored networks
                self.arguments = dict(list(bound.arguments.items())[1:])

        cls.__init__ = recorded  # type: ignore[method-assign, assignment]

    def forward(self, x: Any, ctx: Pass) -> Any:
        raise NotImplementedError

    def matrices(self) -> dict[str, int]:
        """For optimizers that act on matrices: parameter name → how many are stacked along its first axis."""
        return {}

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.is_frozen)


class Plain(Module):
    """An ordinary ``nn.Module`` as a leaf that fits anything; it cannot be rebuilt from data."""

    def __init__(self, module: nn.Module, role: str = "block") -> None:
        super().__init__()
        self.module, self.role = module, role

    def forward(self, x: Any, ctx: Pass) -> Any:
        return self.module(x)


class Chain(nn.Module):
    """Leaves in a row, grouped into modules by ``bounds`` (positions 0 … len(leaves), increasing).

    ``chain[i]``, ``chain[a:b]``, ``chain.flat`` and ``a + b`` are chains that share the same parameters. The empty
    chain is legal and neutral. Parameter keys count leaves from 0 in this chain, whatever the bounds.
    """

    def __init__(
        self, leaves: Iterable[nn.Module] = (), bounds: Sequence[int] | None = None, shared: nn.Module | None = None
    ) -> None:
        super().__init__()
        for position, leaf in enumerate(leaves):
            self.add_module(str(position), leaf if isinstance(leaf, Module) else Plain(leaf))
        if shared is not None:
            self.add_module("shared", shared)
        count = len(self.leaves)
        self.bounds = tuple(bounds) if bounds is not None else ((0, count) if count else (0,))
        if self.bounds[0] != 0 or self.bounds[-1] != count or list(self.bounds) != sorted(self.bounds):
            raise ValueError(f"bounds {self.bounds} do not divide {count} leaves")
        for left, right in zip(self.leaves, self.leaves[1:], strict=False):
            if left.gives is not None and not left.gives.fits(right.takes):
                assert right.takes is not None
                raise PortMismatch(left, left.gives, right, right.takes)

    @functools.cached_property
    def leaves(self) -> tuple[Module, ...]:
        """All leaves in order."""
        return tuple(m for name, m in self._modules.items() if name != "shared" and isinstance(m, Module))

    @property
    def shared_part(self) -> nn.Module | None:
        """What all modules own together."""
        return self._modules.get("shared")

    @property
    def takes(self) -> Port | None:
        """What the first leaf takes; None for the empty chain."""
        return self.leaves[0].takes if self.leaves else None

    @property
    def gives(self) -> Port | None:
        """What the last leaf gives; None for the empty chain."""
        return self.leaves[-1].gives if self.leaves else None

    @property
    def flat(self) -> Chain:
        """The same leaves, each a module of its own."""
        return self.divided(range(len(self.leaves) + 1))

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks in each module."""
        return tuple(sum(leaf.role == "block" for leaf in module.leaves) for module in self)

    def divided(self, bounds: Iterable[int]) -> Chain:
        """The same leaves under other bounds."""
        return Chain(self.leaves, tuple(bounds), self.shared_part)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __bool__(self) -> bool:
        return bool(self.leaves)

    def __iter__(self) -> Iterator[Chain]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Chain: ...
    @overload
    def __getitem__(self, index: slice) -> Chain: ...
    def __getitem__(self, index: int | slice) -> Chain:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("a chain is sliced without gaps: the step must be 1")
            stop = max(start, stop)
        else:
            start = range(len(self))[index]
            stop = start + 1
        first, last = self.bounds[start], self.bounds[stop]
        bounds = [bound - first for bound in self.bounds[start : stop + 1]]
        return Chain(self.leaves[first:last], bounds, self.shared_part)

    def __add__(self, other: Chain) -> Chain:
        if not isinstance(other, Chain):
            return NotImplemented
        if not _one_part(self.shared_part, other.shared_part):
            raise ValueError(
                "two chains that each own shared parts cannot be joined, nor a frozen twin with its original: the same "
                "part would be frozen and not; freeze both sides, or neither"
            )
        offset = len(self.leaves)
        bounds = self.bounds + tuple(bound + offset for bound in other.bounds[1:])
        return Chain(self.leaves + other.leaves, bounds, self.shared_part or other.shared_part)

    def forward(self, x: Any, ctx: Pass | None = None) -> Any:
        """Run the leaves in order; without a pass, in a throw-away evaluation pass."""
        ctx = ctx if ctx is not None else Pass()
        if self.shared_part is not None:
            ctx.shared = self.shared_part
        for position, leaf in enumerate(self.leaves):
            ctx.leaf = position
            first = self._needed.get(position)
            # On the meta device costs are counted: those of all tokens, as networks are compared.
            whole = first is None or position in ctx.wanted or x.is_meta
            x = leaf(x, ctx) if whole else leaf(x, ctx, first=first)
            if position in ctx.wanted:
                ctx.taps[position] = x
        return x

    @functools.cached_property
    def _needed(self) -> dict[int, int]:
        """How many tokens are needed of those leaves that can give some alone, as the next leaf reads no more."""
        pairs = enumerate(itertools.pairwise(self.leaves))
        return {at: right.reads for at, (left, right) in pairs if left.narrows and right.reads is not None}

    def train(self, mode: bool = True) -> Self:
        """As for any module, but what is frozen stays in eval, the shared part included."""
        super().train(mode)
        if self.shared_part is not None and _is_frozen(self.shared_part):
            self.shared_part.eval()
        return self

    def frozen(self) -> Chain:
        """A twin on the same storage whose parameters take no gradient, always in eval; this chain is untouched.

        Frozen twins of one shared part count as one part, so that slices which were frozen apart can be joined.
        """
        memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in self.parameters()}
        memo |= {id(buffer): buffer for buffer in self.buffers()}
        twin = copy.deepcopy(self, memo)
        for part in (*twin.leaves, *([twin.shared_part] if twin.shared_part is not None else [])):
            part.is_frozen = True  # type: ignore[assignment]
        return twin.eval()

    def cloned(self) -> Chain:
        """A copy on its own storage; the copy of a frozen chain is frozen as well."""
        return copy.deepcopy(self)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Tensors by flat position; a tensor that stands in several leaves is listed once, at the first."""
        if args or kwargs.get("destination") is not None:  # as a part of a larger module: its rules
            return super().state_dict(*args, **kwargs)
        state = super().state_dict(prefix=kwargs.get("prefix", ""), keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(state.items())}
        unique = {name: tensor for name, tensor in state.items() if first[id(tensor)] == name}
        if kwargs.get("keep_vars"):
            return unique
        return {name: tensor.detach() for name, tensor in unique.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Copy tensors in; raises RuntimeError naming every missing, unexpected or misshapen key."""
        own = super().state_dict(keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(own.items())}
        repeated = {
            name: state_dict[first[id(tensor)]]
            for name, tensor in own.items()
            if name not in state_dict and first[id(tensor)] in state_dict
        }
        return super().load_state_dict({**state_dict, **repeated}, strict=strict, assign=assign)

    def __repr__(self) -> str:
        modules = " | ".join(" ".join(type(leaf).__name__ for leaf in module.leaves) for module in self)
        return f"Chain({modules})"


def describe(chain: Chain) -> dict[str, Any]:
    """A chain's structure as plain data; with its tensors it is the whole network.

    Raises TypeError on a :class:`Plain` leaf, and on a shared part that is no :class:`Module`: data cannot hold them.
    """
    leaves: list[dict[str, Any]] = []
    first: dict[int, int] = {}
    for position, leaf in enumerate(chain.leaves):
        if isinstance(leaf, Plain):
            raise TypeError(f"leaf {position} wraps an ordinary module and cannot be written as data")
        if id(leaf) in first:
            leaves.append({"same_as": first[id(leaf)]})
            continue
        first[id(leaf)] = position
        leaves.append(_written(leaf))
    shared = chain.shared_part
    if shared is None:
        return {"leaves": leaves, "bounds": list(chain.bounds)}
    if not isinstance(shared, Module) or isinstance(shared, Plain):
        raise TypeError(f"the shared part ({type(shared).__name__}) cannot be written as data")
    return {"leaves": leaves, "bounds": list(chain.bounds), "shared": _written(shared)}


def rebuild(description: Mapping[str, Any]) -> Chain:
    """The chain that :func:`describe` described, with fresh parameters; raises ValueError on a foreign class."""
    leaves: list[Module] = []
    for entry in description["leaves"]:
        if "same_as" in entry:
            leaves.append(leaves[entry["same_as"]])
            continue
        leaves.append(_built(entry))
    shared = description.get("shared")
    return Chain(leaves, description["bounds"], _built(shared) if shared is not None else None)


def _written(leaf: Module) -> dict[str, Any]:
    name = f"{type(leaf).__module__}:{type(leaf).__qualname__}"
    return {"leaf": name, **{k: _plain(v) for k, v in leaf.arguments.items()}}


def _built(entry: Mapping[str, Any]) -> Module:
    return _leaf_class(entry["leaf"])(**{k: _from_plain(v) for k, v in entry.items() if k != "leaf"})


def _leaf_class(name: str) -> type[Module]:
    module, _, qualname = name.partition(":")
    found = next((c for c in _subclasses(Module) if f"{c.__module__}:{c.__qualname__}" == name), None)
    if found is None and module.startswith("modnet."):
        found = getattr(importlib.import_module(module), qualname, None)
    if not (isinstance(found, type) and issubclass(found, Module)):
        raise ValueError(f"{name!r} is no leaf that modnet or a loaded plug-in defines")
    return found


def _subclasses(cls: type[Module]) -> Iterator[type[Module]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _plain(value: Any) -> Any:
    if isinstance(value, Port):
        return {"port": value.kind, **{k: _plain(v) for k, v in value.dims}}
    if isinstance(value, Chain):
        return {"chain": describe(value)}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict) and "port" in value:
        return Port.of(value["port"], **{k: v for k, v in value.items() if k != "port"})
    if isinstance(value, dict) and "chain" in value:
        return rebuild(value["chain"])
    return tuple(_from_plain(v) for v in value) if isinstance(value, list) else value


def _is_frozen(part: nn.Module) -> bool:
    return bool(getattr(part, "is_frozen", False))


def _one_part(left: nn.Module | None, right: nn.Module | None) -> bool:
    """Whether two chains may be joined: at most one shared part, or frozen twins of one."""
    if left is None or right is None or left is right:
        return True
    storages = [[t.data_ptr() for t in (*part.parameters(), *part.buffers())] for part in (left, right)]
    return type(left) is type(right) and _is_frozen(left) and _is_frozen(right) and storages[0] == storages[1] != []


def unique_parameters(*chains: nn.Module) -> list[nn.Parameter]:
    """Every parameter of the chains once, in order."""
    return list({id(p): p for chain in chains for p in chain.parameters()}.values())


def parameter_count(chain: nn.Module) -> int:
    """Number of parameters, each storage counted once."""
    return sum(p.numel() for p in unique_parameters(chain))
