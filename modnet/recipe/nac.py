"""Typed parameters of Neural Attentive Circuits (Weiss et al. 2022), and the published sizes."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from modnet.recipe.fields import KeyedIfSet
from modnet.recipe.models import Weighted
from modnet.recipe.training import BelowOne, Fraction
from modnet.registry import MODELS, Params

Prior = Literal["none", "complete", "scale-free", "erdos-renyi", "ring-of-cliques", "planted-partition"]
Distance = Annotated[float, Field(gt=0, le=2)]


class Graph(Params):
    """The graph that mediators' first signatures draw: a fit of ``steps`` steps, nearer for linked pairs."""

    name: Prior = "scale-free"
    links: PositiveInt = 2  # scale-free: of every new node
    p: Fraction = 0.1  # erdos-renyi: of a link
    groups: PositiveInt = 8  # ring-of-cliques, planted-partition
    p_in: Fraction = 0.9  # planted-partition: of a link inside a group, and between two
    p_out: Fraction = 0.2
    steps: PositiveInt = 1000
    lr: PositiveFloat = 1e-3
    threshold: Distance = 0.8


class NAC(Weighted):
    """Neural Attentive Circuit (Weiss et al. 2022): read-in, ``iterations`` propagators and read-out, a module each."""

    name: str = "nac"
    width: PositiveInt = 64  # of states
    codes: PositiveInt | None = None  # width of codes; None: that of states
    signatures: PositiveInt = 16  # width of signatures
    inputs: PositiveInt = 16  # modules that read tokens,
    mediators: PositiveInt = 32  # that exchange messages,
    outputs: PositiveInt = 16  # and that are read
    iterations: PositiveInt = 2
    share_weights: bool = False  # one propagator for all iterations: then one module
    share_codes: bool = True  # mediators keep their code through all iterations
    heads: PositiveInt = 4
    head_width: PositiveInt = 16
    capacity: PositiveFloat = 2.0  # hidden width of a feed-forward network over the width
    geglu: bool = True
    qkv_bias: bool = False
    layer_scale: NonNegativeFloat = 0.1
    gain: float = 0.1  # of a code's influence at first
    drop_path: BelowOne = 0.0  # the same in every propagator
    code_noise: NonNegativeFloat = 0.05
    seeds: Literal["noisy", "mean", "learned"] = "noisy"  # where first states come from: codes, or learned
    truncation: Distance | None = 0.9  # mediators farther apart exchange nothing
    stochastic: bool = True  # links are drawn while training
    temperature: PositiveFloat = 0.5
    hears_inputs: Literal["always", "first", "never"] = "always"  # the propagators that do
    read_out_hears_inputs: bool = True
    read_in_residual: bool = True
    read_out_residual: bool = False
    pooling: Literal["gumbel", "gumbel-hard", "vanilla", "slot"] = "gumbel"  # slot: the first output module decides
    pooling_temperature: PositiveFloat = 1.0
    stem_depths: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, max_length=3)] = (3, 3)
    stem_patch: PositiveInt = 4  # what the first stage reduces the image by; each other stage halves it
    positions: NonNegativeInt = 16  # channels of the positional grid
    graph: Graph = Field(default_factory=Graph)
    repulsion: NonNegativeFloat | tuple[NonNegativeFloat, NonNegativeFloat] = 0.1  # weight, or from first to last epoch
    hinge: Distance = 0.4  # signatures nearer than this repel each other
    # Weight of a term that pulls the propagators' links towards the graph's groups, p_in and p_out
    blocks: Annotated[NonNegativeFloat, KeyedIfSet()] = 0.0
    # The reference's read-in student, whose setting of `layer_scale` is lost: its perceptron starts at 1e-6
    quirk_student_scale: Annotated[bool, KeyedIfSet()] = False
    quirk_eval_noise: bool = False  # the reference draws first states and pooling noise in evaluation too

    @property
    def modules(self) -> int:
        """How many modules the network is cut into."""
        return 2 + (1 if self.share_weights else self.iterations)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "NAC":
        if self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4, as the tokenizer's first stage has a quarter")
        groups = self.graph.groups
        if self.blocks and self.graph.name not in ("ring-of-cliques", "planted-partition"):
            raise ValueError(f"blocks pulls links towards the groups of a graph, and graph {self.graph.name} has none")
        if self.graph.name in ("ring-of-cliques", "planted-partition") and self.mediators % groups:
            raise ValueError(f"mediators {self.mediators} do not divide into groups {groups}")
        if self.graph.name == "scale-free" and self.graph.links >= self.mediators:
            raise ValueError(f"mediators {self.mediators} must be more than graph.links {self.graph.links}")
        return self


def _small_nac(params: NAC, factor: int) -> NAC:
    """The same modules, each small: few latents, one tokenizer block a stage, a short fit of the graph."""
    width, mediators = max(4, params.width // factor // 4 * 4), min(8, params.mediators)
    groups = 2 if mediators == 8 else params.graph.groups
    return params.changed(
        width=width,
        codes=None if params.codes is None else max(4, params.codes // factor),
        signatures=min(8, params.signatures),
        inputs=min(4, params.inputs),
        mediators=mediators,
        outputs=min(4, params.outputs),
        heads=min(2, params.heads),
        head_width=min(8, params.head_width),
        weights=None,
        stem_depths=tuple(min(1, depth) for depth in params.stem_depths),
        positions=min(4, params.positions),
        graph=params.graph.changed(links=1, groups=groups, steps=min(10, params.graph.steps)),
    )


_ABOUT = "Neural Attentive Circuit of any size"
MODELS.register("nac", NAC, "modnet.models.nac:nac", smoke=_small_nac, about=_ABOUT, facts={"takes_other_images": True})
MODELS.preset(
    "nac-tiny-imagenet",
    "nac",
    about="NAC of the published size for 64 pixels: width 384, 8 propagators, 256 mediators",
    width=384,
    signatures=64,
    inputs=64,
    mediators=256,
    outputs=64,
    iterations=8,
    heads=6,
    head_width=64,
    drop_path=0.1,
    positions=64,
)
MODELS.preset(
    "nac-imagenet",
    "nac",
    about="NAC of the published size for 224 pixels: width 512, 8 propagators, 768 mediators",
    width=512,
    signatures=64,
    inputs=192,
    mediators=768,
    outputs=64,
    iterations=8,
    heads=8,
    head_width=64,
    capacity=1.0,
    drop_path=0.1,
    positions=64,
    graph={"name": "scale-free", "links": 6},
)
