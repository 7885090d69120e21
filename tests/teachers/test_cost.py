"""The cost arithmetic against the published table of the 7B (specs/llava3d.md, sections 7 to 9)."""

import pytest

from stillroom import registry
from stillroom.records import SIGNALS, BadInputError
from stillroom.teachers import cost as costs
from stillroom.teachers.cost import Load, cost
from stillroom.teachers.llava3d_config import LLaVA3DConfig

SEVEN = LLaVA3DConfig()
TERA = 1e12


def of_7b(load: Load | None = None, **more: object) -> costs.Cost:
    given = {"signals": ("answers",), "scenes": 562, "questions": 25_563, "topk": 64, **more}
    return cost(SEVEN, load or Load(), **given)


def test_parameters_of_the_7b_are_the_published_count() -> None:
    assert costs.parameters(SEVEN) == 7_080_764_416


def test_parameters_of_the_shipped_teacher_are_what_its_file_holds() -> None:
    folder = registry.MODELS / "teacher_mini"
    assert costs.parameters(LLaVA3DConfig.read(folder)) == registry.count_parameters(folder)


@pytest.mark.parametrize(
    ("flop", "published"),
    [
        (costs.tower_flops(SEVEN, 20), 7.3),
        (costs.tower_flops(SEVEN, 32) - costs.tower_flops(SEVEN, 20), 4.4),
        (costs.points_flops(SEVEN, 20), 0.024),
        (costs.projector_flops(SEVEN, 1300), 0.05),
        (costs.read_flops(SEVEN, 1375), 18.3),
        (costs.say_flops(SEVEN, 6, cached=1375), 6 * 0.0138),
        (of_7b().unshared_flop, 26.0),
        (of_7b(Load(visual=1000)).unshared_flop, 22.0),
        (of_7b(Load(visual=2560)).unshared_flop, 44.0),
        (of_7b(Load(question=40)).question_flop, 0.65),
        (of_7b(Load(question=60)).question_flop, 0.9),
        (25_563 * of_7b().unshared_flop, 660_000),
        (of_7b(Load(question=50)).flop, 34_000),
    ],
)
def test_flop_of_the_7b_agrees_with_the_table(flop: float, published: float) -> None:
    assert flop / TERA == pytest.approx(published, rel=0.1 if published < 0.1 else 0.04)


def test_a_scene_beyond_the_cap_costs_no_more() -> None:
    assert of_7b(Load(visual=4000)) == of_7b(Load(visual=2560))


def test_bytes_of_the_7b_agree_with_the_table() -> None:
    found = of_7b(signals=SIGNALS)
    question, scene = found.question_bytes, found.scene_bytes
    assert question["topk_logits"] == pytest.approx(1.6e3, rel=0.04)
    assert question["last_hidden"] == pytest.approx(49e3, rel=0.04)
    assert question["attention"] == pytest.approx(16e3, rel=0.04)
    assert scene["scene_features"] == pytest.approx(2.7e6, rel=0.04)
    assert found.weights_bytes == pytest.approx(14.2e9, rel=0.01)
    assert found.cache_bytes == pytest.approx(0.7e9, rel=0.04)
    wanted = of_7b(signals=("answers", "topk_logits", "last_hidden", "attention"))
    assert sum(wanted.question_bytes.values()) == pytest.approx(67e3, rel=0.04)
    assert wanted.bytes == pytest.approx(1.7e9, rel=0.04)


def test_signals_that_need_another_pass_cost_one() -> None:
    plain = of_7b().question_flop
    more = of_7b(signals=("answers", "reference_logits", "attention")).question_flop
    assert 1.15 < more / plain < 1.4


def test_files_are_counted_by_shards() -> None:
    assert of_7b(scenes=10**6, questions=10**6, signals=SIGNALS).files == 2 + 4 * 5_000
    assert of_7b(scenes=20, questions=20).files == 2 + 2 * 4


def test_nothing_to_label_is_refused() -> None:
    with pytest.raises(BadInputError, match="nothing to label"):
        of_7b(scenes=0)
