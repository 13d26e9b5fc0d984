"""Networks in the store: a chain's tensors and its description, hashed."""

from __future__ import annotations

from pathlib import Path

from modnet.chain import Chain, describe, rebuild
from modnet.errors import RunFailed
from modnet.store import load_network, save_network


def save_chain(folder: Path, name: str, chain: Chain) -> None:
    """Write a chain as ``name.safetensors`` and ``name.json``, dtypes as they are; raises TypeError on a Plain leaf."""
    save_network(folder, name, chain.state_dict(), describe(chain))


def load_chain(folder: Path, name: str) -> Chain:
    """The chain that was saved; raises RunFailed naming a file that is damaged or is of another network."""
    state, description = load_network(folder, name)
    try:
        chain = rebuild(description)
        chain.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise RunFailed(
            f"{folder / name}.safetensors does not fit the network that {name}.json describes "
            f"({str(error).splitlines()[0]}); delete {folder} and run the same command again"
        ) from error
    return chain
