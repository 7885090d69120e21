"""A recipe for every row of the paper's tables II and III and of the slots' controls.

Table II takes something away from the run without slots, as the paper does; its first two rows are
``BASE_no_slots`` (all losses) and ``BASE_k8`` (+ Hidden CoT). Table III changes K
(specs/hidden_cot.md, section 6). Every row sets kind, number, place and mask of its slots itself,
so that its title is true of whatever base it is made from; which terms teach them stays the base's,
except where a row is about that. All rows of a base have equal data, steps and seeds.
``SUITES`` says which rows ``stillroom ablate`` trains and compares; docs/ablations.md reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from stillroom.distill.config import DistillConfig, SlotConfig
from stillroom.recipes.mini import mini_cpu
from stillroom.recipes.paper import paper_h100, tiny_10gb

Recipe = Callable[[], DistillConfig]
Change = Callable[[DistillConfig], DistillConfig]


def mini_cpu_paper() -> DistillConfig:
    """mini_cpu with all eight terms of the paper beside its own four: the base of its tables.

    Its slots learn from the answer alone, as the paper's do.
    """
    base = mini_cpu()
    every = replace(base.losses, detection=True, spatial=True, multi_view=True, feature=True)
    return replace(base, losses=every, slots=replace(base.slots, supervision="answer"))


#: Slots of a row that does not say how many (the paper's K).
SLOTS = 8


def _hidden_cot(config: DistillConfig, count: int = SLOTS) -> DistillConfig:
    """Learned slots before the question, prefix mask."""
    slots = replace(config.slots, kind="learned", count=count, position="before")
    return replace(config, slots=slots, mask="prefix")


def _no_slots(config: DistillConfig) -> DistillConfig:
    return replace(config, slots=SlotConfig(kind="none", count=0), mask="prefix")


def _without(term: str) -> Change:
    off: dict[str, Any] = {term: False}

    def change(config: DistillConfig) -> DistillConfig:
        return _no_slots(replace(config, losses=replace(config.losses, **off)))

    return change


def _static_weights(config: DistillConfig) -> DistillConfig:
    return _no_slots(replace(config, losses=replace(config.losses, weighting="static")))


def _slots(count: int) -> Change:
    return lambda config: _hidden_cot(config, count)


def _slots_are(**settings: Any) -> Change:
    def change(config: DistillConfig) -> DistillConfig:
        learned = _hidden_cot(config)
        return replace(learned, slots=replace(learned.slots, **settings))

    return change


def _masked(visibility: Literal["full_prefix", "causal"], change: Change = _hidden_cot) -> Change:
    return lambda config: replace(change(config), mask=visibility)


#: What follows the base's name, what the row is, and what it changes.
ROWS: Mapping[str, tuple[str, Change]] = {
    "no_slots": ("Table II, all losses: no slots", _no_slots),
    "no_detection": ("Table II, no detection: neither its term nor slots", _without("detection")),
    "no_depth": ("Table II, no depth: none of its three terms, no slots", _without("depth")),
    "no_spatial": ("Table II, no spatial: neither its term nor slots", _without("spatial")),
    "no_multi_view": (
        "Table II, no multi-view: neither its term nor slots",
        _without("multi_view"),
    ),
    "no_feature": ("Table II, no feature: neither its term nor slots", _without("feature")),
    "static_weights": ("Table II, static weights: all terms weigh 1, no slots", _static_weights),
    "k2": ("Table III: K = 2", _slots(2)),
    "k4": ("Table III: K = 4", _slots(4)),
    "k8": ("Table III, K = 8; table II, + Hidden CoT", _hidden_cot),
    "k16": ("Table III: K = 16", _slots(16)),
    "frozen_random": (
        "Slots: drawn at random and never trained",
        _slots_are(kind="frozen_random"),
    ),
    "filler": ("Slots: one trained embedding at all of them", _slots_are(kind="filler")),
    "every_term": (
        "Slots: every term that reaches them teaches them, not the answer alone",
        _slots_are(supervision="extra"),
    ),
    "after": ("Slots: behind the question", _slots_are(position="after")),
    "full_prefix": ("Slots: pictures, slots and question see each other", _masked("full_prefix")),
    "full_prefix_no_slots": (
        "Slots: none, pictures and question see each other",
        _masked("full_prefix", _no_slots),
    ),
    "causal": ("Slots: causal mask, in which they cannot see the question", _masked("causal")),
    "causal_after": (
        "Slots: causal mask, behind the question",
        _masked("causal", _slots_are(position="after")),
    ),
    "causal_no_slots": ("Slots: none, causal mask", _masked("causal", _no_slots)),
}
BASES: Mapping[str, Recipe] = {
    "mini_cpu_paper": mini_cpu_paper,
    "tiny_10gb": tiny_10gb,
    "paper_h100": paper_h100,
}


def _recipe(base: str, title: str, change: Change) -> Recipe:
    def make() -> DistillConfig:
        return change(BASES[base]())

    make.__doc__ = f"{title}, else {base}."
    return make


DISTILL: Mapping[str, Recipe] = {
    "mini_cpu_paper": mini_cpu_paper,
    **{
        f"{base}_{row}": _recipe(base, title, change)
        for base in BASES
        for row, (title, change) in ROWS.items()
    },
}


# What ``stillroom ablate`` compares. ------------------------------------------------------------

SuiteName = Literal["table2", "table3", "slots"]
#: What may stand at the slots of a trained student instead of its own, when it is asked.
Intervention = Literal["zeroed", "emptied", "swapped", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of an ablation's table: a recipe, and what it is trained on."""

    # What the table says of it.
    title: str
    # Of ``ROWS``.
    row: str
    # Whose words it learns.
    labels: Literal["teacher", "truth"] = "teacher"
    # Of the label store, the signal without which its row would be the base's.
    needs: str = ""
    # On the encoder that was pretrained without object targets, which the command is given.
    no_objects: bool = False
    # Asked again with these in place of what its slots hold.
    interventions: tuple[Intervention, ...] = ()

    def config(self, base: DistillConfig) -> DistillConfig:
        """The arm's recipe, made from the base's."""
        return ROWS[self.row][1](base)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Arms that are compared. Every arm is set against ``base``; ``pairs`` are further ones,
    of arms or of their interventions ("ARM/KIND").

    ``primary`` are the comparisons with the base that the suite was made for: they are corrected
    together (Holm) and carry its claims. All others are secondary and uncorrected.
    """

    title: str
    arms: Mapping[str, Arm]
    base: str
    # Arms, and interventions as "ARM/KIND".
    primary: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()


SUITES: Mapping[SuiteName, Suite] = {
    "slots": Suite(
        title="Thinking slots",
        base="learned",
        primary=("none", "filler", "frozen_random", "learned/emptied", "learned/swapped"),
        arms={
            "learned": Arm(
                title="8 learned slots, before the question, mask prefix",
                row="k8",
                interventions=("zeroed", "emptied", "swapped", "shuffled"),
            ),
            "none": Arm(title="no slots, mask prefix", row="no_slots"),
            "filler": Arm(title="one embedding at all slots: the same compute", row="filler"),
            "frozen_random": Arm(title="random slots, never trained", row="frozen_random"),
            "every_term": Arm(
                title="learned, taught by every term",
                row="every_term",
                interventions=("zeroed", "emptied", "swapped", "shuffled"),
            ),
            "after": Arm(title="learned, behind the question", row="after"),
            "causal": Arm(title="learned, causal mask", row="causal"),
            "causal_after": Arm(
                title="learned, causal mask, behind the question", row="causal_after"
            ),
            "causal_none": Arm(title="no slots, causal mask", row="causal_no_slots"),
            "full_prefix": Arm(title="learned, mask full_prefix", row="full_prefix"),
            "full_prefix_none": Arm(title="no slots, mask full_prefix", row="full_prefix_no_slots"),
        },
        pairs=(
            ("every_term", "none"),
            ("every_term/emptied", "every_term"),
            ("every_term/swapped", "every_term"),
            ("after", "none"),
            ("causal", "causal_none"),
            ("causal_after", "causal_none"),
            ("full_prefix", "full_prefix_none"),
        ),
    ),
    "table3": Suite(
        title="Table III: number of slots",
        base="k8",
        primary=("k0",),
        arms={
            "k0": Arm(title="K = 0", row="no_slots"),
            "k2": Arm(title="K = 2", row="k2"),
            "k4": Arm(title="K = 4", row="k4"),
            "k8": Arm(title="K = 8", row="k8"),
            "k16": Arm(title="K = 16", row="k16"),
        },
    ),
    "table2": Suite(
        title="Table II: what each term is worth",
        base="all",
        primary=("hidden_cot", "truth", "no_objects"),
        arms={
            "all": Arm(title="all losses, no slots", row="no_slots"),
            "hidden_cot": Arm(title="+ Hidden CoT (K = 8)", row="k8"),
            "no_detection": Arm(title="no detection", row="no_detection"),
            "no_depth": Arm(title="no depth", row="no_depth"),
            "no_spatial": Arm(title="no spatial", row="no_spatial"),
            "no_multi_view": Arm(title="no multi-view", row="no_multi_view"),
            "no_feature": Arm(title="no feature", row="no_feature", needs="scene_features"),
            "static_weights": Arm(title="static weights", row="static_weights"),
            "truth": Arm(
                title="trained on truth, without a teacher", row="no_slots", labels="truth"
            ),
            "no_objects": Arm(
                title="encoder pretrained without object targets",
                row="no_slots",
                no_objects=True,
            ),
        },
    ),
}
