"""Typed parameters of ModuleFormer, a family of causal language models over bytes."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

from pydantic import Field, PositiveInt, model_validator

from modnet.recipe.models import Depths
from modnet.recipe.routers import ExpertChoice, PerceptronTopK, Router, RouterParams
from modnet.registry import MODELS, Params


class ModuleFormer(Params):
    """ModuleFormer (Shen et al. 2023): a byte-level language model with experts of attention and of perceptrons.

    With one expert of each it is the dense model of the same family.
    """

    name: str = "moduleformer"
    width: PositiveInt = 64
    depths: Depths = (1, 1)
    attention_hidden: PositiveInt = 32  # of each attention expert, divided into its heads
    heads: PositiveInt = 2
    attention_experts: PositiveInt = 8
    attention_top_k: PositiveInt = 2
    hidden: PositiveInt = 64  # units of each perceptron expert
    experts: PositiveInt = 8
    top_k: PositiveInt = 2
    router: Router = Field(default_factory=lambda: PerceptronTopK(mutual_information=1e-2))

    @model_validator(mode="after")
    def _routes(self) -> "ModuleFormer":
        if self.attention_hidden % self.heads:
            raise ValueError(f"attention_hidden {self.attention_hidden} is not a multiple of heads {self.heads}")
        for chosen, there in (("attention_top_k", "attention_experts"), ("top_k", "experts")):
            if getattr(self, chosen) > getattr(self, there):
                held = getattr(self, there)
                raise ValueError(f"{chosen} {getattr(self, chosen)} asks for more experts than there are ({held})")
        router = self.router
        if isinstance(router, ExpertChoice) or (isinstance(router, RouterParams) and router.limited):
            raise ValueError(
                f"router {router.name} lets later bytes decide on earlier ones' experts; take one without capacity"
            )
        if isinstance(router, RouterParams) and not router.learns(min(self.top_k, self.attention_top_k)):
            raise ValueError(f"with top_k 1 router {router.name} gives the weight 1 always, and learns nothing")
        return self


def _small(params: ModuleFormer, factor: int) -> ModuleFormer:
    """One block a module, few small experts."""
    width = max(8, params.width // factor)
    experts = {name: min(4, getattr(params, name)) for name in ("experts", "attention_experts")}
    chosen = {name: min(2, getattr(params, name)) for name in ("top_k", "attention_top_k")}
    return params.changed(
        width=width, depths=(1,) * len(params.depths), heads=1, attention_hidden=8, hidden=16, **experts, **chosen
    )


MODELS.register(
    "moduleformer",
    ModuleFormer,
    "modnet.models.moduleformer:moduleformer",
    smoke=_small,
    about="byte-level language model with experts of attention and of perceptrons",
)
