"""What a step frees is there for the next one, and goes back to the system at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from modnet.engine import memory
from modnet.engine.memory import kept_memory

pytestmark = pytest.mark.skipif(memory._glibc() is None, reason="memory is kept by glibc's means")

# In a process of its own, whose heap is fresh.
MEASURING = """
import json, resource, torch
from modnet.engine.memory import kept_memory

def made(megabytes=48, rounds=1):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(megabytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * resource.getpagesize() >> 20

made()
found = {"ordinary": made(rounds=4)}
with kept_memory():
    made(192)
    made(rounds=16)  # until pieces of the heap have found their places
    found |= {"kept": made(rounds=4), "held": resident()}
print(json.dumps(found | {"after": resident()}))
"""


def test_large_tensors_are_made_of_memory_that_is_there_and_that_goes_back_at_the_end() -> None:
    ours = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    words = [sys.executable, "-c", MEASURING]
    found = json.loads(subprocess.run(words, env=ours, check=True, capture_output=True, text=True).stdout)
    assert found["kept"] < found["ordinary"] / 10  # page faults
    assert found["after"] < found["held"] - 150  # MiB


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=10")]
)
def test_what_the_user_has_set_is_left_alone(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_set", lambda *_: pytest.fail("memory was set"))
    monkeypatch.setenv(name, value)
    with kept_memory():
        pass
