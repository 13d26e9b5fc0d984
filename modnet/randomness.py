"""Keyed random numbers: every draw is a pure function of a key, never of a generator's state.

A :class:`Key` is a 64-bit number; folding in names and counters (seed, purpose, epoch, sample …) gives new keys.
Runs therefore resume exactly, and any layout of the same work over processes draws the same numbers.
The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)


def _signed(value: int) -> int:
    """The same 64 bits read as a signed number, which is what torch's int64 holds."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> _SHIFTS[0])) * _MULTIPLIERS[0]) & _MASK
    value = ((value ^ (value >> _SHIFTS[1])) * _MULTIPLIERS[1]) & _MASK
    return value ^ (value >> _SHIFTS[2])


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(value: Tensor) -> Tensor:
    """:func:`_mix` on every element of an int64 tensor; products wrap modulo 2^64."""
    value = value + _signed(_GOLDEN)
    value = (value ^ _shift(value, _SHIFTS[0])) * _signed(_MULTIPLIERS[0])
    value = (value ^ _shift(value, _SHIFTS[1])) * _signed(_MULTIPLIERS[1])
    return value ^ _shift(value, _SHIFTS[2])


@dataclass(frozen=True)
class Key:
    """A 64-bit key from which random numbers follow."""

    value: int

    @classmethod
    def of(cls, seed: int, *parts: int | str) -> Key:
        """The key of a seed, with parts folded in."""
        # Mixed twice: mixed once, folding in a part equal to the seed would cancel it out.
        return cls(_mix(_mix(seed & _MASK))).fold(*parts)

    def fold(self, *parts: int | str) -> Key:
        """A new key that depends on this one and on every part, in order."""
        value = self.value
        for part in parts:
            if isinstance(part, str):
                part = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "big")
            value = _mix(value ^ _mix(part & _MASK))
        return Key(value)

    def bits(self, ids: Tensor, draws: int) -> Tensor:
        """Random int64, shape (len(ids), draws): row r depends on the key and ``ids[r]`` alone."""
        rows = _mix_tensor(ids.to(torch.int64) ^ _signed(self.value))
        columns = torch.arange(draws, device=ids.device, dtype=torch.int64)
        return _mix_tensor(rows[:, None] + _mix_tensor(columns)[None, :])

    def uniform(self, ids: Tensor, draws: int = 1) -> Tensor:
        """Uniform float32 in [0, 1), shape (len(ids), draws), one row a sample."""
        return _shift(self.bits(ids, draws), 40).to(torch.float32) / (1 << 24)

    def normal(self, ids: Tensor, draws: int = 1) -> Tensor:
        """Standard normal float32, shape (len(ids), draws), one row a sample (Box–Muller)."""
        radius = torch.sqrt(-2 * torch.log1p(-self.fold("radius").uniform(ids, draws)))
        return radius * torch.cos(2 * math.pi * self.fold("angle").uniform(ids, draws))

    def permutation(self, count: int) -> Tensor:
        """A permutation of ``range(count)``, int64."""
        return self.bits(torch.arange(count), 1)[:, 0].argsort(stable=True)

    def number(self) -> float:
        """One uniform number in [0, 1)."""
        return (_mix(self.value) >> 11) / (1 << 53)

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh torch generator seeded by this key, for code that wants one."""
        return torch.Generator(device).manual_seed(self.value >> 1)

    @contextmanager
    def forked(self) -> Iterator[None]:
        """Seed torch's global generator by this key for the body, and restore it afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.value >> 1)  # the CPU's alone: only that is restored
            yield
