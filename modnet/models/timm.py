"""The timm adapter: a model that is a stem, blocks and a head becomes a chain, weights included."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modnet.chain import Chain, Port
from modnet.errors import RequestError
from modnet.layers.drop_path import set_drop_path
from modnet.models.timm_leaves import TimmBlock, TimmHead, TimmStem, create, skeleton
from modnet.models.vit import image_size, module_bounds
from modnet.recipe.models import Timm


def timm_chain(params: Timm, port: Port, classes: int) -> Chain:
    """The timm model of ``params.name`` (``timm:NAME`` or ``timm:NAME.TAG``) as a chain.

    Image size, channels and classes follow the data: with weights, timm resizes the position table and the patch
    embedding, and a classifier for other classes starts afresh. Raises RequestError for a model that is no plain
    chain, for weights out of reach, and for depths that do not add up.
    """
    name = params.name.removeprefix("timm:")
    size, channels = image_size(port)
    model = skeleton(name, channels, size, classes)
    depths = params.depths or near_equal(len(model.blocks), 4)
    if sum(depths) != len(model.blocks):
        raise RequestError(
            f"depths {list(depths)} add up to {sum(depths)} blocks, but timm:{name} has "
            f"{len(model.blocks)}; for example {list(near_equal(len(model.blocks), len(depths)))}"
        )
    blocks = [TimmBlock(name, channels, size, i) for i in range(len(model.blocks))]
    stem, head = TimmStem(name, channels, size), TimmHead(name, channels, size, classes)
    chain = Chain([stem, *blocks, head], module_bounds(depths))
    load_timm(chain, _state(params, name, channels, size, classes))
    set_drop_path(chain, params.drop_path)
    return chain


def near_equal(blocks: int, modules: int) -> tuple[int, ...]:
    """``blocks`` divided over at most ``modules`` modules whose depths differ by at most one."""
    modules = max(1, min(modules, blocks))
    each, more = divmod(blocks, modules)
    return tuple(each + (i < more) for i in range(modules))


def load_timm(chain: Chain, state: dict[str, Tensor]) -> None:
    """Copy a timm state dict in; raises RuntimeError naming every missing or unexpected key."""
    last = len(chain.leaves) - 1
    heads = {name.split(".")[0] for name, _ in chain.leaves[-1].named_parameters()}
    renamed = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            index, _, inner = rest.partition(".")
            renamed[f"{1 + int(index)}.{inner}"] = tensor
        else:
            renamed[f"{last if first in heads else 0}.{name}"] = tensor
    chain.load_state_dict(renamed)


def _state(params: Timm, name: str, channels: int, size: int, classes: int) -> dict[str, Tensor]:
    """Tensors of a model that timm built: drawn afresh, or read from a safetensors file."""
    overlay: dict[str, Any] | None = None
    if params.weights is not None:
        overlay = _local(Path(params.weights), name)
    elif params.pretrained:
        overlay = _local(_download(name), name)
    try:
        options = {"pretrained": overlay is not None, "pretrained_cfg_overlay": overlay}
        model = create(name, channels, size, classes, **options)
    except RuntimeError as error:
        source = overlay["file"] if overlay else "timm"
        raise RequestError(f"weights of {source} do not fit timm:{name}: {error}") from error
    return dict(model.state_dict())


def _local(path: Path, name: str) -> dict[str, Any]:
    """What tells timm to read this file, and how many classes its head has."""
    if path.suffix != ".safetensors" or not path.is_file():
        raise RequestError(
            f"weights of timm:{name}: {path} is no .safetensors file that exists; pickled formats "
            "are not read (convert them with `modnet import`)"
        )
    overlay: dict[str, Any] = {"file": str(path)}
    try:
        with safe_open(path, "pt") as stored:
            if "head.weight" in stored.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                overlay["num_classes"] = stored.get_slice("head.weight").get_shape()[0]
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
