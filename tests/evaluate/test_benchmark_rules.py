import pytest

from stillroom.evaluate.exact_match import exact_match, sqa3d_type
from stillroom.evaluate.flip_groups import grouped_accuracy, threedsr_table
from stillroom.evaluate.spatialbench import (
    Row,
    clean_answer,
    corrected_score,
    released_score,
    summary,
)
from stillroom.evaluate.vsi_bench import answer_score, table


def test_an_empty_answer_is_right_by_refined_em_and_wrong_in_the_corrected_column():
    for text in ("", " ", "🪑", "...", ","):
        one = exact_match(text, ["yes", "a, b"])
        assert not one.em_refined_corrected
    assert exact_match("", ["yes"]).em_refined
    for text, reference in (("yes, it is", "yes"), ("window", "windows"), ("2", "two")):
        one = exact_match(text, [reference])
        assert one.em_refined
        assert one.em_refined_corrected


def test_a_reference_without_a_word_makes_nothing_right():
    assert exact_match("chair", ["?"]).em_refined
    assert not exact_match("chair", ["?"]).em_refined_corrected


def test_types_of_sqa3d_go_by_how_a_question_begins():
    asked = ["What is it?", "is it on?", "How many?", "Can I?", "Which one?", "Am I near?"]
    assert [sqa3d_type(question) for question in asked] == [0, 1, 2, 3, 4, 5]


def test_a_group_counts_only_whole():
    assert grouped_accuracy(["a", "a", "b"], [True, False, True]) == 0.5
    with pytest.raises(ValueError, match="0 rows"):
        grouped_accuracy([], [])


def test_flips_and_rotations_are_grouped_by_hand():
    qids = ["AAAAAAAA", "AAAAAAAA-1", "AAAAAAAA-flip", "AAAAAAAA-flip-1"]
    found = threedsr_table(qids, ["height_higher"] * 4, [True, True, True, False])
    assert found == {
        "vanilla": 0.75,
        "flip": 0.5,  # the base with its mirror, the rotation with its mirror
        "circular": 0.5,  # both unmirrored, both mirrored
        "flip_circular": 0.0,
        "height": 0.75,
    }


def test_spatialbench_reads_the_last_letter_even_inside_a_word():
    options = ["A. A Citroen.", "B. A Geely."]
    assert clean_answer("Because it is red", "multiple_choice", options) == "D"
    assert corrected_score("Because it is red", "D", "multiple_choice", ["a", "b"]) == 0.0
    assert corrected_score("B", "B", "multiple_choice", ["a Citroen", "a Geely"]) == 1.0
    assert corrected_score("five", "5", "regression", []) == 1.0
    assert released_score("five", "5", "regression") == 0.0


def test_spatialbench_counts_strictly_and_zero_asks_for_zero():
    # An error of exactly 0.5 is within no threshold; with <= it would be within one.
    assert released_score("1.5", "1", "regression") == 0.0
    assert released_score("4", "0", "regression") == 0.0
    assert released_score("0", "0", "regression") == 1.0


def test_spatialbench_weighs_all_five_groups():
    row = Row(problem_type="regression", question_type="route_plan", scene_type="indoor", score=1.0)
    assert summary([row])["weighted_overall_score"] == pytest.approx(31.41, abs=0.01)


def test_a_vsi_answer_is_scored_by_the_rule_named():
    asked = ("object_counting", "There are 4", "4", [])
    assert answer_score(*asked, "official-2024") == 0.0
    assert answer_score(*asked, "lmms-eval-0.7.3") == 1.0
    choice = ("route_planning", "(B)", "B", ["left", "right"])
    assert answer_score(*choice, "official-2024") == 0.0
    assert answer_score(*choice, "stillroom-1") == 1.0
    assert answer_score(*choice, "vlmevalkit-2026-08") == 1.0


def test_overall_is_the_mean_of_tasks_with_directions_as_one():
    types = ["object_rel_direction_easy", "object_rel_direction_hard", "object_counting"]
    found = table(types, [1.0, 0.0, 0.2])
    assert found["object_rel_direction_accuracy"] == 0.5
    assert found["overall"] == pytest.approx(0.35)
