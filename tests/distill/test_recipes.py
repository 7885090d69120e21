"""Every recipe: its numbers at full size, and two steps of it scaled down through the same code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import write_depth_anything, write_llama_tokenizer, write_qwen, write_world

from stillroom import api, recipes
from stillroom.distill.config import DistillConfig
from stillroom.distill.run import distill
from stillroom.recipes.ablations import BASES, ROWS
from stillroom.records import FAMILIES
from stillroom.scenes.store import open_store
from stillroom.students.session import StudentAnswerer
from stillroom.teachers.sampling import choose_questions
from stillroom.testing import tiny_questions, tiny_scene
from stillroom.training.runlog import read_log

TABLE = recipes.table("distill")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = write_world(tmp_path_factory.mktemp("world"), signals=("answers",))
    write_llama_tokenizer(home / "llama")
    write_qwen(home / "qwen")
    write_depth_anything(home / "da3")
    return home


def scaled(config: DistillConfig, world: Path) -> DistillConfig:
    """The recipe with two layers of 16 channels, two steps, and everything from ``world``."""
    return replace(
        config,
        train=replace(
            config.train,
            steps=2,
            scenes_per_step=2,
            micro_batches=1,
            workers=1,
            evaluate_every=0,
            save_every=2,
        ),
        student=replace(
            config.student,
            hidden_size=16,
            layers=2,
            heads=2,
            intermediate_size=32,
            vision_grid=2,
            vocab_size=min(config.student.vocab_size, 300),
            detection_queries=4,
            detection_width=32,
            detection_layers=1,
            relation_width=8,
            image_size=0,
            mention_level=None,
            measure_level=None,
        ),
        encoder=str(world / ("da3" if "DA3" in config.encoder else "encoder")),
        tokenizer=str(world / "llama") if config.tokenizer else "",
        language_model=str(world / "qwen") if config.language_model else "",
        features=str(world / "features"),
    )


def run(world: Path, out: Path, config: DistillConfig, name: str) -> None:
    distill(
        config,
        scenes=world / "scenes",
        labels=world / "labels",
        out=out,
        encoder=config.encoder,
        language_model=config.language_model,
        tokenizer=config.tokenizer,
        recipe=name,
    )


#: Ablations of one base go through the same code as those of another.
TRAINED = [
    name
    for name in TABLE
    if not any(name.startswith(f"{base}_") for base in BASES if base != "paper_h100")
    or name in BASES
]


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_scaled_down_is_trained_and_answers(
    name: str, world: Path, tmp_path: Path
) -> None:
    config = scaled(TABLE[name](), world)
    if config.lora.rank:
        pytest.importorskip("peft")
    run(world, tmp_path / "run", config, name)
    rows = read_log(tmp_path / "run" / "log.jsonl", kind="step")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss"] is not None for row in rows)
    store = open_store(world / "scenes")
    scene = next(store.iter_scenes("val"))
    asked = store.questions(scene.scene_id)
    answerer = StudentAnswerer.from_folder(tmp_path / "run" / "student")
    said = answerer.open(scene).answer(asked)
    # Bound to the options, so that the tokenizer's way there and back is in it too.
    assert all(a.text in q.options for a, q in zip(said, asked, strict=True))
    settings = answerer.student.config
    assert settings.visibility == config.mask
    assert settings.vision_pool == config.student.vision_pool
    assert settings.slot_count == config.slots.used
    assert f"Recipe `{name}`" in (tmp_path / "run" / "student" / "README.md").read_text()


def test_the_papers_student_counts_what_the_paper_counts() -> None:
    table = api.params("paper_h100")
    assert table["language_model"] == 1_339_674_624
    assert table["aggregator"] == 909_112_320
    assert table["depth_head"] == 32_654_562
    assert table["projector"] == 4_196_352
    assert table["slots"] == 16_384
    assert 2_285_000_000 < table["total"] < 2_300_000_000
    # A head for each term that asks for one, W of Eq. 1 for the teacher's voxels among them.
    assert table["feature_projector"] == 2048 * 1024 + 1024
    assert {"detector", "relations", "depth_bins"} <= set(table)
    assert not {"camera_head", "point_head", "track_head"} & set(table)
    assert api.params("paper_h100_k16")["slots"] == 32_768
    parts = ("language_model", "aggregator", "depth_head", "projector")
    tiny = api.params("tiny_10gb")
    assert sum(tiny[part] for part in parts) == 1_160_557_794
    assert tiny["total"] - 1_160_557_794 < 10_000_000


def test_the_edge_student_has_qwens_half_billion() -> None:
    table = api.params("edge")
    assert table["language_model"] == 494_032_768
    # Depth Anything 3 Small's trunk: DINOv2 ViT-S without its mask, with two camera tokens and
    # norms of q and k in eight blocks.
    assert table["encoder"] == 22_056_576 - 384 + 2 * 384 + 8 * 4 * 64
    assert table["total"] < 525_000_000


def test_every_row_of_the_papers_tables_and_of_the_slots_controls_is_a_recipe() -> None:
    assert set(ROWS) == {
        *("no_slots", "no_detection", "no_depth", "no_spatial", "no_multi_view", "no_feature"),
        *("static_weights", "k2", "k4", "k8", "k16"),
        *("frozen_random", "filler", "every_term", "after", "full_prefix", "full_prefix_no_slots"),
        *("causal", "causal_after", "causal_no_slots"),
    }
    for base in BASES:
        assert {base, *(f"{base}_{row}" for row in ROWS)} <= set(TABLE)


def differing(one: DistillConfig, other: DistillConfig) -> set[str]:
    """Names of the settings, in their groups, in which two recipes differ."""
    names = set()
    for group in ("train", "student", "slots", "losses"):
        mine, theirs = vars(getattr(one, group)), vars(getattr(other, group))
        names |= {f"{group}.{name}" for name in mine if mine[name] != theirs[name]}
    groups = ("train", "student", "slots", "losses")
    rest = {k: v for k, v in vars(one).items() if k not in groups}
    return names | {name for name, value in rest.items() if vars(other)[name] != value}


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("no_slots", {"slots.kind", "slots.count"}),
        ("no_depth", {"slots.kind", "slots.count", "losses.depth"}),
        ("no_detection", {"slots.kind", "slots.count", "losses.detection"}),
        ("no_spatial", {"slots.kind", "slots.count", "losses.spatial"}),
        ("no_multi_view", {"slots.kind", "slots.count", "losses.multi_view"}),
        ("no_feature", {"slots.kind", "slots.count", "losses.feature"}),
        ("static_weights", {"slots.kind", "slots.count", "losses.weighting"}),
        ("k2", {"slots.count"}),
        ("k4", {"slots.count"}),
        ("k8", set()),
        ("k16", {"slots.count"}),
        ("frozen_random", {"slots.kind"}),
        ("filler", {"slots.kind"}),
        ("every_term", {"slots.supervision"}),
        ("after", {"slots.position"}),
        ("full_prefix", {"mask"}),
        ("full_prefix_no_slots", {"mask", "slots.kind", "slots.count"}),
        ("causal", {"mask"}),
        ("causal_after", {"mask", "slots.position"}),
        ("causal_no_slots", {"mask", "slots.kind", "slots.count"}),
    ],
)
@pytest.mark.parametrize("base", list(BASES))
def test_a_row_changes_what_it_says_and_nothing_else(
    base: str, row: str, changes: set[str]
) -> None:
    assert differing(TABLE[f"{base}_{row}"](), TABLE[base]()) == changes


def test_the_literal_reading_is_the_printed_one() -> None:
    literal, ours = TABLE["paper_literal"](), TABLE["paper_h100"]()
    assert differing(literal, ours) == {
        *("student.vision_pool", "student.mimetic_start", "mask", "questions_per_scene"),
        *("losses.sign", "other_share"),
    }
    # specs/hidden_cot.md, sections 1 to 3 and 5, line by line.
    size, slots, losses, train = literal.student, literal.slots, literal.losses, literal.train
    assert (size.layers, size.hidden_size, size.heads, size.intermediate_size) == (
        *(24, 2048, 16),
        8192,
    )
    assert (size.vision_pool, literal.mask, literal.language_model) == ("mean", "causal", "")
    assert (slots.kind, slots.count, slots.position) == ("learned", 8, "before")
    assert slots.supervision == "answer"
    assert set(losses.terms) == {
        *("text", "depth_ce", "depth_reg", "depth_kl", "detection", "spatial"),
        *("multi_view", "feature"),
    }
    assert (losses.sign, losses.weighting, losses.kl_alpha > 0) == ("paper", "uncertainty", True)
    assert (train.learning_rate, train.schedule, train.warmup_fraction > 0) == (
        1e-4,
        "cosine",
        True,
    )
    assert (train.scenes_per_step, train.micro_batches, literal.questions_per_scene) == (1, 1, 1)
    assert train.early_stop_patience > 0


def test_a_literal_row_asks_one_question_of_the_papers() -> None:
    families = (*FAMILIES, "description", "object_counting", "room_size_estimation")
    asked = [
        replace(question, family=family)
        for question, family in zip(
            tiny_questions(tiny_scene(0), count=len(families)), families, strict=True
        )
    ]
    literal = TABLE["paper_literal"]()
    rng = np.random.default_rng(0)
    picked = [
        choose_questions(
            asked,
            count=literal.questions_per_scene,
            description_share=literal.description_share,
            other_share=literal.other_share,
            rng=rng,
        )
        for _ in range(200)
    ]
    assert all(len(row) == 1 for row in picked)
    assert {asked[row[0]].family for row in picked} == {*FAMILIES, "description"}


#: Short words for terms in the table of docs/losses.md.
DEPTH = {"depth_ce": "CE", "depth_reg": "regression", "depth_kl": "KL", "depth_map": "own"}
OURS = ("naming", "grounding", "apart", "measure")
OTHERS = {"detection": "detection", "spatial": "spatial", "multi_view": "multi-view"} | {
    "feature": "feature"
}


def losses_row(name: str) -> str:
    """A recipe's line in the table at the end of docs/losses.md."""
    config = TABLE[name]()
    losses, slots = config.losses, config.slots

    def on(words: Mapping[str, str]) -> str:
        return ", ".join(word for term, word in words.items() if term in losses.terms) or "off"

    others = on(OTHERS)
    if losses.spatial and losses.sign == "paper":
        others = others.replace("spatial", "spatial (printed sign)")
    learns = "the answer" if slots.supervision == "answer" else "every term"
    if slots.kind == "frozen_random":
        learns = "nothing"
    word = "fillers, " if slots.kind == "filler" else ""
    cells = (
        f"`{name}`",
        f"cross-entropy + {losses.kl_alpha:g} x KL, $\\tau = {losses.temperature:g}$",
        on(DEPTH),
        on({term: term for term in OURS}),
        others,
        f"{slots.used}, {word}{learns}" if slots.used else "none",
        losses.weighting,
    )
    return f"| {' | '.join(cells)} |"


def test_the_page_of_losses_lists_every_recipe_as_it_is() -> None:
    page = Path(__file__).parents[2] / "docs" / "losses.md"
    section = page.read_text().partition("## Recipes\n")[2]
    ours = [line for line in section.splitlines() if line.startswith("| `")]
    expected = [losses_row(name) for name in TABLE]
    assert ours == expected, "the table should read:\n" + "\n".join(expected)


@pytest.mark.parametrize("name", list(TABLE))
def test_a_recipe_says_in_one_line_what_it_is(name: str) -> None:
    make: Callable[[], DistillConfig] = TABLE[name]
    assert (make.__doc__ or "").splitlines()[0].endswith(".")
    assert make() == make()
