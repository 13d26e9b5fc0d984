"""Vision Transformers by name and by size."""

from __future__ import annotations

import pytest
import torch

import modnet.recipe.models  # noqa: F401 - registers the names
from modnet.chain import Chain, Port, describe, parameter_count, rebuild
from modnet.errors import RequestError
from modnet.layers.block import Block
from modnet.models.vit import default_heads, module_bounds, vit
from modnet.recipe.models import ViT
from modnet.registry import MODELS

COUNTS = {"vit-ti": 5_717_416, "vit-s": 22_050_664, "vit-b": 86_567_656, "vit-l": 304_326_632, "vit-h": 631_922_920}


def named(name: str, size: int = 224, classes: int = 1000) -> Chain:
    entry = MODELS.get(name)
    params = entry.params.model_validate({"name": name, **entry.preset})
    with torch.device("meta"):
        return entry.resolve()(params, Port.of("image", channels=3, size=size), classes)


@pytest.mark.parametrize("name", COUNTS)
def test_names_have_the_published_number_of_parameters(name: str) -> None:
    chain = named(name)
    assert parameter_count(chain) == COUNTS[name]
    assert len(chain) == 4
    assert len(set(chain.depths)) == 1


def test_the_huge_model_is_the_papers_not_timms() -> None:
    block = next(leaf for leaf in named("vit-h").leaves if isinstance(leaf, Block))
    assert "attn.qkv.bias" not in dict(block.named_parameters())
    assert (block.norm1.eps, block.attn.heads) == (1e-5, 16)
    other = next(leaf for leaf in named("vit-l").leaves if isinstance(leaf, Block))
    assert "attn.qkv.bias" in dict(other.named_parameters())
    assert (other.norm1.eps, other.attn.heads) == (1e-6, 16)


def test_modules_hold_their_blocks_and_the_ends_their_stem_and_head() -> None:
    chain = vit(ViT(depths=(2, 1, 3), width=16), Port.of("image", channels=1, size=8), 3)
    roles = [[leaf.role for leaf in module.leaves] for module in chain]
    assert roles == [["stem", "block", "block"], ["block"], ["block", "block", "block", "head"]]
    assert module_bounds((5,)) == (0, 7)
    assert str(chain.takes) == "image(channels=1, size=8)"
    assert str(chain.gives) == "logits(classes=3, per=image)"


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("pool", ["token", "mean"])
def test_every_kind_runs_learns_and_is_rebuilt(stem: str, pool: str) -> None:
    params = ViT.model_validate({"width": 16, "stem": stem, "pool": pool, "drop_path": 0.1})
    chain = vit(params, Port.of("image", channels=3, size=16), 5)
    x = torch.linspace(-1, 1, 2 * 3 * 256).view(2, 3, 16, 16)
    logits = chain(x)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in chain.parameters())
    again = rebuild(describe(chain))
    again.load_state_dict(chain.state_dict())
    assert torch.equal(again(x), logits)


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (16, 1), (48, 3), (64, 4), (128, 8), (192, 3), (768, 12)])
def test_default_heads(width: int, heads: int) -> None:
    assert default_heads(width) == heads


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RequestError, match="width 200 .* 192 or 256"):
        default_heads(200)
    with pytest.raises(RequestError, match="patches of 16"):
        named("vit-b", size=28)
    with pytest.raises(RequestError, match="takes images"):
        vit(ViT(), Port.of("ids", vocab=10), 3)
