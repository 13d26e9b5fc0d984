"""Names of things: models, data sources, optimizers … each with typed parameters and a builder.

An entry holds its builder as a ``"module:function"`` string, so that reading a recipe never imports torch. A name may
carry a tag, ``vit-b.mae``: a named preset of ``vit-b``, registered by :meth:`Registry.tag`. A plug-in registers its
own things with :meth:`Registry.register`, or by :func:`plugin` on a typed function.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
import json
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, create_model
from pydantic_core import PydanticCustomError

EMPTY: Mapping[str, Any] = MappingProxyType({})
P = TypeVar("P", bound="Params")


class Params(BaseModel):
    """Typed parameters of a registered thing: strict about unknown keys, immutable once read."""

    # Validators are built at first use: a recipe uses few of the classes that are registered.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    def changed(self: P, **values: Any) -> P:
        """A copy with some values replaced and checked again."""
        held = {name: getattr(self, name) for name in type(self).model_fields}
        aliases = {name: f.alias or name for name, f in type(self).model_fields.items()}
        return type(self)(**{aliases[name]: value for name, value in (held | values).items()})


Smoke = Callable[[Any, int], Params]
"""``smoke(params, factor)``: the smallest sensible size; ``factor`` is what all widths of a recipe shrink by."""


class UnknownName(LookupError):
    """A name that is not registered; the message holds the nearest names that are."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        self.kind, self.name, self.nearest = kind, name, nearest(name, known)
        hint = f"; did you mean {' or '.join(map(repr, self.nearest))}?" if self.nearest else ""
        listing = "" if self.nearest else f"; known: {', '.join(sorted(known))}"
        super().__init__(f"no {kind} is called {name!r}{hint}{listing}")


def nearest(name: str, known: list[str], most: int = 2) -> list[str]:
    """The known names that look most like ``name``, best first."""
    return difflib.get_close_matches(name, known, n=most, cutoff=0.6)


def first_sentence(thing: object) -> str:
    """What the docstring of a class or function says first, on one line."""
    return sentence((thing.__doc__ or "").replace("``", ""))


def sentence(text: str) -> str:
    """The first sentence of a text, on one line and without its full stop."""
    return re.split(r"(?<! al)\.( |$)", " ".join(text.split()))[0]


@dataclass(frozen=True)
class Entry:
    """One registered name: parameter class, builder, the values that the name fixes, and more.

    ``base`` is the name whose builder a preset shares; ``facts`` are constants known without loading (a source's
    ``size``, ``channels``, ``classes``); ``origin`` is the plug-in module that registered it, empty for our own.
    """

    name: str
    params: type[Params]
    builder: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    smoke: Smoke | None = None
    about: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    origin: str = ""

    def resolve(self) -> Any:
        """Import the builder, a callable; raises ImportError or AttributeError naming it."""
        module, _, function = self.builder.partition(":")
        return getattr(importlib.import_module(module), function)

    def parse(self, values: Mapping[str, Any], name: str) -> Params:
        """Typed parameters from plain values, strictly; raises pydantic's ValidationError."""
        merged = {**self.preset, **values}
        declared = self.params.model_fields.get("name")
        choices = typing.get_args(declared.annotation) if declared else ()
        if choices and name not in choices:  # a preset of a class that has one fixed name
            merged.pop("name", None)
        else:
            merged["name"] = name
        # Strict JSON mode takes lists for tuples and text for paths, but never text or truth
        # values for numbers.
        return self.params.model_validate_json(json.dumps(merged), strict=True)


class Registry:
    """A table of entries of one kind, with globbing, presets, tags, deprecated names and helpful misses."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._families: dict[str, Entry] = {}
        self._deprecated: dict[str, str] = {}

    def register(
        self,
        name: str,
        params: type[Params],
        builder: str,
        *,
        preset: Mapping[str, Any] = EMPTY,
        smoke: Smoke | None = None,
        about: str = "",
        facts: Mapping[str, Any] = EMPTY,
        base: str = "",
    ) -> Entry:
        """Add an entry; a name that ends in ``:`` is a prefix that any ``prefix:rest`` matches.

        Raises ValueError if the name is taken.
        """
        table = self._families if name.endswith(":") else self._entries
        if name in table:
            raise ValueError(f"{self.kind} {name!r} is already registered")
        table[name] = Entry(
            name,
            params,
            builder,
            preset=dict(preset),
            smoke=smoke,
            about=about or first_sentence(params),
            facts=dict(facts),
            base=base or name,
            origin=_origin[-1],
        )
        return table[name]

    def preset(self, name: str, base: str, about: str = "", **values: Any) -> Entry:
        """Register ``name`` as ``base`` with some values as its defaults; a recipe may still set each."""
        entry = self.get(base)
        return self.register(
            name,
            entry.params,
            entry.builder,
            preset={**entry.preset, **values},
            smoke=entry.smoke,
            about=about or entry.about,
            facts=entry.facts,
            base=entry.base,
        )

    def tag(self, name: str, tag: str, about: str = "", **values: Any) -> Entry:
        """Register the preset ``name.tag`` of ``name``, as in ``vit-b.mae``."""
        return self.preset(f"{name}.{tag}", name, about, **values)

    def deprecate(self, old: str, new: str) -> None:
        """Let an old name answer for a new one, with a warning."""
        self._deprecated[old] = new

    def canonical(self, name: str) -> str:
        """The name itself, or what a deprecated one is now called (with a DeprecationWarning)."""
        if name not in self._deprecated:
            return name
        new = self._deprecated[name]
        warnings.warn(f"{self.kind} {name!r} is now called {new!r}", DeprecationWarning, stacklevel=3)
        return new

    def get(self, name: str) -> Entry:
        """The entry of a name; raises UnknownName with the nearest names."""
        name = self.canonical(name)
        if name in self._entries:
            return self._entries[name]
        prefix, colon, rest = name.partition(":")
        if rest and prefix + colon in self._families:
            return self._families[prefix + colon]
        stem, dot, _ = name.rpartition(".")
        if dot and stem in self._entries:
            tags = self.names(f"{stem}.*")
            raise UnknownName(f"{self.kind} with this tag", name, tags or [stem])
        raise UnknownName(self.kind, name, self.names())

    def names(self, pattern: str = "*") -> list[str]:
        """Registered names that match a shell pattern, sorted; prefixes are shown as ``prefix:…``."""
        every = [*self._entries, *(f"{prefix}…" for prefix in self._families)]
        return sorted(name for name in every if fnmatch.fnmatch(name, pattern))

    def read(self, value: Any) -> Any:
        """Typed parameters of a bare name or of a mapping with ``name``; for use as a pydantic validator."""
        if isinstance(value, Params):
            return value
        values = {"name": value} if isinstance(value, str) else value
        if not isinstance(values, Mapping):
            raise PydanticCustomError("not_a_thing", "wants a name or a mapping with a name")
        if not isinstance(values.get("name"), str):
            known = ", ".join(self.names())
            raise PydanticCustomError("unnamed", "wants `name:` ({known})", {"known": known})
        try:
            name = self.canonical(values["name"])
            return self.get(name).parse(values, name)
        except UnknownName as miss:
            raise PydanticCustomError("unknown_name", "{why}", {"why": str(miss)}) from None

    def of(self, origin: str) -> list[str]:
        """The names that a plug-in registered and that are still there."""
        return [e.name for table in (self._entries, self._families) for e in table.values() if e.origin == origin]

    def forget(self, origin: str) -> None:
        """Drop what a plug-in registered, before another version of it is read."""
        for table in (self._entries, self._families):
            for name in [name for name, entry in table.items() if entry.origin == origin]:
                del table[name]

    def __contains__(self, name: str) -> bool:
        try:
            self.get(name)
        except UnknownName:
            return False
        return True


MODELS = Registry("model")
DATA = Registry("data source")
OPTIMIZERS = Registry("optimizer")
SCHEDULES = Registry("schedule")
AUGMENTS = Registry("augmentation")
SHIFTS = Registry("shift suite")
ROUTERS = Registry("router")
VERBS = Registry("verb")
TABLES: Mapping[str, Registry] = MappingProxyType(
    {
        "models": MODELS,
        "data": DATA,
        "optimizers": OPTIMIZERS,
        "schedules": SCHEDULES,
        "augments": AUGMENTS,
        "shifts": SHIFTS,
        "routers": ROUTERS,
        "verbs": VERBS,
    }
)

_origin = [""]


@contextmanager
def origin(module: str) -> Iterator[None]:
    """What is registered in the body belongs to this plug-in module."""
    _origin.append(module)
    try:
        yield
    finally:
        _origin.pop()


def plugin(
    registry: Registry, name: str, *, smoke: Smoke | None = None, about: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function under a name; its keyword-only arguments, which must be typed, become the parameters.

    ``@plugin(MODELS, "mine") def mine(port, classes, *, width: int = 32) -> Chain`` can be written in a recipe as
    ``{name: mine, width: 48}``. Raises TypeError for an argument without a type.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        """Register one function; what takes its place can also be called with its typed parameters first."""
        params = _params_of(function, name)

        @wraps(function)
        def build(*args: Any, **kwargs: Any) -> Any:
            if not (args and isinstance(args[0], params)):
                return function(*args, **kwargs)
            values = {k: getattr(args[0], k) for k in params.model_fields if k != "name" or takes_name}
            return function(*args[1:], **values, **kwargs)

        takes_name = "name" in inspect.signature(function).parameters
        where = f"{function.__module__}:{function.__qualname__}"
        registry.register(name, params, where, smoke=smoke, about=about or first_sentence(function))
        return build

    return register


def _params_of(function: Callable[..., Any], name: str) -> type[Params]:
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {"name": (str, name)}
    for key, argument in inspect.signature(function).parameters.items():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if key not in hints:
            raise TypeError(f"plug-in {name!r}: argument {key!r} of {function.__name__} needs a type")
        default = ... if argument.default is inspect.Parameter.empty else argument.default
        fields[key] = (hints[key], default)
    return create_model(f"{function.__name__}_params", __base__=Params, **fields)
