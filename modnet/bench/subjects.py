"""What is measured, by name: each subject gives findings; baselines are written plainly and fairly."""

from __future__ import annotations

from collections.abc import Callable

from modnet.bench.arithmetic import bf16, efficiency
from modnet.bench.loading import loader
from modnet.bench.modules import modules
from modnet.bench.moe import moe
from modnet.bench.pairs import Finding
from modnet.bench.scaling import scaling
from modnet.bench.script import timm_script
from modnet.bench.startup import memory, startup
from modnet.bench.steps import checkpoint, step
from modnet.bench.sweeps import sweep
from modnet.bench.teachers import teacher_cache

SUBJECTS: dict[str, Callable[[int], list[Finding]]] = {
    "startup": startup,
    "loader": loader,
    "step": step,
    "checkpoint": checkpoint,
    "modules": modules,
    "teacher-cache": teacher_cache,
    "sweep": sweep,
    "moe": moe,
    "bf16": bf16,
    "efficiency": efficiency,
    "scaling": scaling,
    "timm-script": timm_script,
    "memory": memory,
}
