"""``run: assemble``: modules become one network, which is then fine-tuned end to end."""

from __future__ import annotations

from collections.abc import Mapping

from modnet.chain import Chain
from modnet.engine.job import Metrics
from modnet.errors import RequestError
from modnet.layers.drop_path import set_drop_path
from modnet.methods.base import BEFORE, NETWORK, Inputs, Kept
from modnet.methods.supervised import WholeMethod
from modnet.recipe.stages import Assemble, Distill, Incubate
from modnet.surgery.cutting import assemble
from modnet.surgery.stitching import fold_stitches, foldable


class Assembly(WholeMethod):
    """Join the modules, stitches dropped, kept or folded; fine-tune with labels, or with a teacher's logits as well."""

    def __init__(self, stage: Assemble, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.modules = inputs.modules(stage.from_)
        self.chain, self.how = self.join(stage)
        set_drop_path(self.chain, inputs.drop_path(stage, self.model_name(stage)))  # modules had rates of their own
        self.before = self.chain.cloned()
        self.kd = stage.kd
        if stage.kd is not None:
            self.teacher = inputs.network(stage.kd.teacher, self.dataset, self.key)
        self.before_top1 = inputs.val_top1(self.before, self.dataset)
        inputs.say(f"assembled: {self.how}; before fine-tuning {self.before_top1:.2f} % on val")

    def join(self, stage: Assemble) -> tuple[Chain, str]:
        """The network of the modules, and what happened to their tensors, in words."""
        way, family = stage.stitches, self.inputs.family(self.model_name(stage))
        if stage.model is not None and way not in ("auto", "drop"):
            raise RequestError(f"stitches: {way} joins the modules themselves; with `model:` only drop is possible")
        if stage.model is not None:
            way = "drop"
        elif way == "auto":
            way = "fold" if family.whole and foldable(self.modules) else "drop"
        if way == "drop":
            network = self.inputs.fresh(self.model_name(stage), self.dataset, self.key)
            report = family.transplant(self.modules, network)
            return network, f"stitches dropped, {report}" if report.dropped else f"modules joined, {report}"
        if not family.whole:
            raise RequestError(
                f"stitches: {way} joins what was distilled, but the students of {self.model_name(stage)!r} are only "
                "parts of its modules; assemble with stitches: drop"
            )
        network = assemble(self.modules)
        if way == "keep":
            return network, "stitches kept"
        if not foldable(self.modules):
            raise RequestError(
                f"stitches: fold needs linear stitches at every joint of {stage.from_!r}; distil with stitch: linear, "
                "or assemble with stitches: drop or keep"
            )
        return fold_stitches(network), f"{len(self.modules) - 1} pairs of stitches folded into one matrix each"

    def model_name(self, stage: Assemble) -> str:
        """The name of the model that comes out: the one asked for, else the one whose modules were trained."""
        if stage.model is not None:
            return stage.model
        source = self.inputs.recipe.stages[stage.from_]
        if isinstance(source, Incubate):
            return source.model
        assert isinstance(source, Distill)
        return source.student

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """The network, as assembled and as fine-tuned."""
        facts = {"before_val_top1": self.before_top1, "assembly": self.how}
        return Kept({NETWORK: self.chain, BEFORE: self.before}, facts)
