"""Questions about a room built by hand: right answers, clear margins, honest wording."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stillroom.records import FAMILIES, BadInputError, Question, Scene, Split, View
from stillroom.scenes import families, vsi
from stillroom.scenes.balance import Balance, Candidate, fit_balance, thin
from stillroom.scenes.estimate import estimate_balance
from stillroom.scenes.facts import RoomFacts, pixel_shares
from stillroom.scenes.questions import (
    _evenly,
    ask_facts,
    ask_room,
    question_id,
    sample_texts,
)
from stillroom.scenes.wording import (
    HELD_OUT,
    PHRASINGS,
    VSI_CHOICE_TASKS,
    VSI_NUMBER_TASKS,
    VSI_WORDING,
    named,
    named_in_vsi,
    phrase,
)

ANYTHING = Balance({})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ask(facts: RoomFacts, seed: int = 0, count: int = 24) -> list[Question]:
    asked = ask_facts(facts, count=count, balance=ANYTHING, rng=rng(seed))
    assert asked is not None
    return asked


@pytest.fixture(scope="module")
def asked_often(hand_made_facts: RoomFacts) -> list[Question]:
    return [question for seed in range(6) for question in ask(hand_made_facts, seed, count=40)]


def seen(scene: Scene, ids: np.ndarray) -> View:
    """The first view of the scene with other instances."""
    rgb = np.zeros((*ids.shape, 3), dtype=np.uint8)
    return View(name="drawn", rgb=rgb, c2w=scene.views[0].c2w, instances=ids.astype(np.uint16))


def index(facts: RoomFacts, name: str) -> int:
    return [thing.name for thing in facts.things].index(name)


def test_a_room_carries_three_of_each_family_one_description_and_the_count_asked_for(
    hand_made_facts: RoomFacts,
) -> None:
    for count in (13, 16, 24, 40):
        asked = ask(hand_made_facts, count=count)
        assert len(asked) == count
        of = [question.family for question in asked]
        assert all(of.count(family) >= 3 for family in FAMILIES)
        assert of.count("description") == 1


def test_the_same_stream_asks_the_same_questions(hand_made_facts: RoomFacts) -> None:
    assert ask(hand_made_facts, seed=3) == ask(hand_made_facts, seed=3)
    assert ask(hand_made_facts, seed=3) != ask(hand_made_facts, seed=4)


def test_too_small_a_count_is_refused_with_the_least_one(hand_made_room: Scene) -> None:
    with pytest.raises(BadInputError, match="at least 13 questions"):
        ask_room(hand_made_room, count=12, rng=rng())


def test_a_room_that_cannot_carry_three_of_each_family_is_turned_down(
    hand_made_facts: RoomFacts,
) -> None:
    scene = replace(hand_made_facts.scene, objects=hand_made_facts.things[:3])
    few = RoomFacts(scene=scene, distance=hand_made_facts.distance[:3, :3])
    assert ask_facts(few, count=13, balance=ANYTHING, rng=rng()) is None


def test_ids_are_unique_and_made_of_their_content(hand_made_facts: RoomFacts) -> None:
    asked = ask(hand_made_facts)
    assert len({question.question_id for question in asked}) == len(asked)
    for place, question in enumerate(asked):
        wanted = question_id("hand", question.family, question.question, place)
        assert question.question_id == wanted


def test_only_objects_that_two_views_show_well_are_named(hand_made_facts: RoomFacts) -> None:
    scene = hand_made_facts.scene
    ball = index(hand_made_facts, "orange ball")
    gone = scene.objects[ball].object_id
    # The ball is wiped from all views but the first.
    views = tuple(
        view
        if number == 0
        else replace(view, instances=np.where(view.instances == gone, 0, view.instances))
        for number, view in enumerate(scene.views)
    )
    facts = RoomFacts(scene=replace(scene, views=views), distance=hand_made_facts.distance)
    assert ball in hand_made_facts.shown
    assert ball not in facts.shown
    for seed in range(5):
        for question in ask(facts, seed):
            assert "orange ball" not in question.question
            assert "orange ball" not in question.answer


def test_proximity_worked_out_by_hand(hand_made_facts: RoomFacts) -> None:
    # Stool and table: faces at x = -0.65 and x = -0.6, level in y.
    table, stool = index(hand_made_facts, "red table"), index(hand_made_facts, "yellow stool")
    sofa = index(hand_made_facts, "black sofa")
    assert hand_made_facts.distance[table, stool] == pytest.approx(0.05, abs=1e-4)
    # Table and sofa: faces at y = 0.4 and y = 1.3.
    assert hand_made_facts.distance[table, sofa] == pytest.approx(0.9, abs=1e-4)
    found = {c.ids: c for c in families.proximity(hand_made_facts, rng=rng())}
    for c in found.values():
        a, b, other = c.ids
        near, far = sorted((hand_made_facts.distance[a, b], hand_made_facts.distance[a, other]))
        assert far / near >= 1.3
        assert c.answer == int(hand_made_facts.distance[a, b] > hand_made_facts.distance[a, other])


def test_contact_is_touching_or_a_clear_gap_that_a_view_shows(hand_made_facts: RoomFacts) -> None:
    found = {frozenset(c.ids): c for c in families.contact(hand_made_facts, rng=rng())}
    table, box = index(hand_made_facts, "red table"), index(hand_made_facts, "white box")
    stool, ball = index(hand_made_facts, "yellow stool"), index(hand_made_facts, "orange ball")
    assert found[frozenset((table, box))].answer == 0
    # A gap of 5 cm is neither.
    assert frozenset((table, stool)) not in found
    # Table and ball: edges at y = -0.4 and -1.1, x = -0.6 and -0.55.
    apart = found[frozenset((table, ball))]
    assert apart.answer == 2
    assert apart.value == pytest.approx(0.7, abs=1e-3)


def test_a_gap_counts_as_seen_only_if_three_pixels_lie_between(hand_made_facts: RoomFacts) -> None:
    scene = hand_made_facts.scene
    for gap, wanted in ((2, False), (3, True)):
        ids = np.zeros((20, 20), dtype=np.uint16)
        ids[5:12, 2:6] = 1
        ids[5:12, 6 + gap : 12 + gap] = 2
        view = seen(scene, ids)
        facts = RoomFacts(
            scene=replace(scene, views=(view,), objects=scene.objects[:2]),
            distance=np.array([[0.0, 0.5], [0.5, 0.0]]),
        )
        assert bool(facts.gap_seen[0, 1]) is wanted


def test_size_compares_box_volumes_and_leaves_out_flat_things(hand_made_facts: RoomFacts) -> None:
    for c in families.size(hand_made_facts, rng=rng()):
        volumes = [np.prod(hand_made_facts.things[i].box.size) for i in c.ids]
        assert max(volumes) / min(volumes) >= 1.25 - 1e-9
        assert c.answer == int(np.argmax(volumes))
    flat = hand_made_facts.things[0]
    rug = replace(flat, box=replace(flat.box, size=np.array([1.2, 0.8, 0.01])))
    scene = replace(hand_made_facts.scene, objects=(rug, *hand_made_facts.things[1:]))
    with_rug = RoomFacts(scene=scene, distance=hand_made_facts.distance)
    assert 0 in with_rug.shown
    assert 0 not in with_rug.bulky
    assert all(0 not in c.ids for c in families.size(with_rug, rng=rng()))


def test_orientation_agrees_with_where_things_stand_before_the_first_camera(
    hand_made_facts: RoomFacts,
) -> None:
    found = families.orientation(hand_made_facts, rng=rng())
    assert {c.task for c in found} == {"left_right", "front_behind"}
    for c in found:
        one, other = (hand_made_facts.center[i] for i in c.ids)
        said = c.said[c.answer]
        if c.task == "left_right":
            bearings = np.degrees([np.arctan2(p[0], p[1]) for p in (one, other)])
            assert abs(bearings[0] - bearings[1]) >= 10
            assert said == ("left" if bearings[0] < bearings[1] else "right")
        else:
            assert abs(one[1] - other[1]) >= 0.3
            assert said == ("in front" if one[1] < other[1] else "behind")


def test_what_is_left_in_the_first_photo_is_left_in_the_answer(hand_made_facts: RoomFacts) -> None:
    first = hand_made_facts.scene.views[0].instances
    assert first is not None
    columns = {
        i: np.nonzero(first == thing.object_id)[1].mean()
        for i, thing in enumerate(hand_made_facts.things)
        if (first == thing.object_id).sum() > 100
    }
    checked = 0
    for c in families.orientation(hand_made_facts, rng=rng()):
        a, b = c.ids
        if c.task == "left_right" and a in columns and b in columns:
            checked += 1
            assert c.said[c.answer] == ("left" if columns[a] < columns[b] else "right")
    assert checked >= 3


def test_options_are_both_answers_in_the_order_named(asked_often: list[Question]) -> None:
    for question in asked_often:
        if question.family not in FAMILIES:
            continue
        assert len(question.options) == 2
        assert question.answer in question.options
        if question.family != "contact":
            places = [question.question.index(option) for option in question.options]
            assert places == sorted(places)


@pytest.mark.parametrize("family", ["proximity", "size", "orientation"])
def test_the_first_named_is_right_half_of_the_time(hand_made_facts: RoomFacts, family: str) -> None:
    draw = rng(1)
    hits = [
        c.answer == 0 for _ in range(25) for c in families.MAKERS[family](hand_made_facts, rng=draw)
    ]
    # Four standard deviations of a fair coin.
    assert abs(np.mean(hits) - 0.5) < 2.0 / np.sqrt(len(hits))


@pytest.mark.parametrize(
    ("touching", "apart", "asked"), [(3, 9, 6), (9, 2, 4), (1, 9, 3), (0, 5, 3), (2, 2, 4)]
)
def test_contact_asks_as_many_pairs_that_touch_as_others(
    hand_made_facts: RoomFacts, touching: int, apart: int, asked: int
) -> None:
    pairs = families.contact(hand_made_facts, rng=rng())
    yes, no = (next(c for c in pairs if (c.answer == 0) is wanted) for wanted in (True, False))
    begun = []
    for seed in range(40):
        turns = _evenly([no] * apart + [yes] * touching, rng(seed))
        assert len(turns) == asked
        found = sum(c is yes for c in turns)
        assert found == min(touching, asked - min(apart, asked // 2))
        begun.append(turns[0] is yes)
    if touching and touching != apart:
        # Whichever is cut off when a room is asked less, a coin decides what comes first.
        assert 8 <= sum(begun) <= 32


def test_every_question_has_a_rationale_that_ends_in_its_answer(
    hand_made_facts: RoomFacts,
) -> None:
    for question in ask(hand_made_facts):
        if question.family == "description":
            continue
        assert question.rationale.endswith(f"So the answer is {question.answer}.")
        assert len([s for s in question.rationale.split(". ") if s]) <= 3


def test_held_out_phrasings_are_spoken_by_split_shifted_alone(hand_made_facts: RoomFacts) -> None:
    shifted = RoomFacts(
        scene=replace(hand_made_facts.scene, split="shifted"), distance=hand_made_facts.distance
    )
    for facts, templates in ((hand_made_facts, PHRASINGS), (shifted, HELD_OUT)):
        split = facts.scene.split
        other: Split = "train" if split == "shifted" else "shifted"
        for question in ask(facts):
            kinds = ("left_right", "front_behind")
            for kind in kinds if question.family == "orientation" else (question.family,):
                if kind in templates and named(kind, question.question, split=split) is not None:
                    assert named(kind, question.question, split=other) is None
                    break
            else:
                assert question.family in VSI_WORDING
    assert not {t for kind in PHRASINGS for t in PHRASINGS[kind]} & {
        t for kind in HELD_OUT for t in HELD_OUT[kind]
    }


@pytest.mark.parametrize("kind", sorted(PHRASINGS))
@pytest.mark.parametrize("split", ["train", "shifted"])
def test_names_are_read_back_out_of_every_phrasing(kind: str, split: str) -> None:
    names = {"a": "striped red arm chair", "b": "white box", "c": "blue lamp"}
    sides = {"left_right": ("right", "left"), "front_behind": ("behind", "in front")}
    if kind in sides:
        names |= dict(zip("pq", sides[kind]))
    for seed in range(8):
        said = phrase(kind, names, split=split, rng=rng(seed))  # type: ignore[arg-type]
        read = named(kind, said)
        assert read is not None
        assert read == {key: names[key] for key in read}


def test_names_are_read_back_out_of_vsi_sentences() -> None:
    names = {"a": "red chair", "b": "white box", "c": "blue lamp"}
    for task, template in VSI_WORDING.items():
        read = named_in_vsi(task, template.format(**names, choices="x, y, z"))
        assert read is not None
        assert all(value == (names | {"choices": "x, y, z"})[key] for key, value in read.items())


def test_a_quarter_turn_to_the_left_is_plus_ninety_degrees() -> None:
    at, facing, to = np.array([1.0, 1.0]), np.array([1.0, 3.0]), np.array([-1.0, 1.0])
    assert vsi.turn_deg(at, facing, to) == pytest.approx(90.0)
    assert vsi.direction_said(90.0, ("left", "right")) == "left"
    assert vsi.direction_said(-170.0, ("left", "right", "back")) == "back"
    assert vsi.direction_said(-170.0, ("front-left", "front-right", "back-left", "back-right")) == (
        "back-right"
    )


def test_lettered_answers_point_at_the_right_option(
    hand_made_facts: RoomFacts, asked_often: list[Question]
) -> None:
    families_met = set()
    for question in asked_often:
        families_met.add(question.family)
        if question.family in VSI_CHOICE_TASKS:
            assert [option[:3] for option in question.options] == [
                f"{letter}. " for letter in "ABCD"[: len(question.options)]
            ]
            assert question.answer in "ABCD"[: len(question.options)]
            assert question.prompt.endswith("\n".join(question.options))
        if question.family == "object_rel_distance":
            right = question.options["ABCD".index(question.answer)][3:]
            target = question.object_ids[0] - 1
            away = {
                hand_made_facts.things[i - 1].name: hand_made_facts.distance[target, i - 1]
                for i in question.object_ids[1:]
            }
            assert right == min(away, key=lambda name: float(away[name]))
    assert {"object_rel_direction_easy", "object_rel_direction_hard"} <= families_met


def test_number_answers_are_bare_numbers_equal_to_their_value(asked_often: list[Question]) -> None:
    families_met = set()
    for question in asked_often:
        if question.family in VSI_NUMBER_TASKS:
            families_met.add(question.family)
            assert question.options == ()
            assert question.value is not None
            assert float(question.answer) == question.value
            assert question.unit in ("m", "m2", "cm", "count")
    assert families_met == set(VSI_NUMBER_TASKS)


def test_appearance_order_follows_the_views(hand_made_facts: RoomFacts) -> None:
    scene = hand_made_facts.scene
    views = []
    for number in range(6):
        ids = np.zeros((30, 30), dtype=np.uint16)
        for thing in range(min(number + 1, 4)):
            ids[:, 5 * thing : 5 * thing + 4] = thing + 1
        views.append(seen(scene, ids))
    facts = RoomFacts(scene=replace(scene, views=tuple(views)), distance=hand_made_facts.distance)
    names = ", ".join(thing.name for thing in scene.objects[:4])
    for c in vsi.appearance_order(facts, rng=rng()):
        assert c.said[c.answer] == names
        assert len(set(c.said)) == 4


def test_pixel_shares_count_pixels_by_id(hand_made_facts: RoomFacts) -> None:
    ids = np.zeros((10, 10), dtype=np.uint16)
    ids[:2, :5] = 3
    view = seen(hand_made_facts.scene, ids)
    shares = pixel_shares((view,), hand_made_facts.things)
    assert shares[0].tolist() == [0, 0, 0.1, 0, 0, 0, 0]


def coins(biased: float, count: int, draw: np.random.Generator) -> list[Candidate]:
    """Pairs (bed, desk) in random order, of which the bed is bigger with that probability."""
    found = []
    for _ in range(count):
        bed_first, bed_wins = draw.random() < 0.5, draw.random() < biased
        keys = (("bed|desk",), ("desk|bed",)) if bed_first else (("desk|bed",), ("bed|desk",))
        answer = 0 if bed_first == bed_wins else 1
        found.append(
            Candidate(task="size", ids=(0, 1), answer=answer, keys=keys, value=2.0, margin=2.0)
        )
    return found


def bed_share(candidates: list[Candidate]) -> float:
    return float(np.mean([c.keys[c.answer] == ("bed|desk",) for c in candidates]))


def test_balance_makes_a_biased_pair_even() -> None:
    draw = rng(5)
    balance = Balance(
        {"plain/size": fit_balance([[c] for c in coins(0.8, 1500, draw)], shrink=1.0)}
    )
    fresh = coins(0.8, 3000, draw)
    kept = thin(fresh, balance, "plain", rng=draw)
    assert bed_share(fresh) > 0.77
    assert abs(bed_share(kept) - 0.5) < 0.06
    # The rarer answer is always kept, the other as often as it must.
    assert len(kept) == pytest.approx(2 * 0.2 * len(fresh), rel=0.15)


def test_an_estimate_learns_what_is_usually_bigger(hand_made_room: Scene) -> None:
    tables = estimate_balance([hand_made_room] * 3, rng=rng(0))
    # In this room the sofa is bigger than either chair, whichever is asked for.
    weights = tables["plain/size"]
    assert weights["sofa"] > weights["chair"]
    balance = Balance(tables)
    facts = RoomFacts(scene=hand_made_room, distance=np.zeros((7, 7)))
    for c in families.size(facts, rng=rng(1)):
        assert balance.likely(c, "plain")[c.answer] > 0.5


def test_every_room_counts_alike_in_the_estimate() -> None:
    draw = rng(8)
    # One crowded room where beds are small against a hundred rooms where they are not.
    rooms = [coins(0.0, 500, draw), *([coin] for coin in coins(1.0, 100, draw))]
    weights = fit_balance(rooms, shrink=1.0)
    assert weights["bed|desk"] > weights["desk|bed"]


def test_balance_never_asks_what_has_nearly_one_answer() -> None:
    draw = rng(6)
    balance = Balance({"plain/size": fit_balance([coins(0.99, 1500, draw)], shrink=1.0)})
    assert thin(coins(0.99, 500, draw), balance, "plain", rng=draw) == []


def test_an_unknown_density_keeps_everything() -> None:
    candidates = coins(0.8, 50, rng(7))
    assert len(thin(candidates, ANYTHING, "elsewhere", rng=rng())) == 50


def test_sample_texts_give_all_that_a_model_reads_or_writes(hand_made_facts: RoomFacts) -> None:
    asked = ask(hand_made_facts)
    texts = set(sample_texts(asked))
    for question in asked:
        assert question.prompt in texts
        assert question.answer in texts
        assert set(question.renderings) <= texts
        assert not question.rationale or question.rationale in texts
