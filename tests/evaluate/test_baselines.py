from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny_worlds import Seer, no_scene, write_tiny_store

from stillroom.evaluate.baselines import (
    CrossFitted,
    NoDepth,
    RecordedAnswers,
    Shuffled,
    baseline,
    fit_blind,
    fit_majority,
)
from stillroom.evaluate.tasks import score
from stillroom.records import Answer, Answerer, BadInputError, Question
from stillroom.scenes.store import write_manifest, write_shard


def choice(number, text, answer, options, scene="s", family="size"):
    return Question(
        scene_id=f"{scene}{number}",
        question_id=f"{number:016x}",
        split="train",
        family=family,
        question=text,
        answer=answer,
        options=options,
    )


def accuracy(answerer, questions):
    answers = answerer.open(no_scene()).answer(questions)
    return np.mean([score(q, a.text).score for q, a in zip(questions, answers, strict=True)])


def test_truth_scores_one_on_every_question(store):
    questions = store.questions()
    answers = baseline("truth", store, split="test").open(store.scene("scene000")).answer(questions)
    assert [a.question_id for a in answers] == [q.question_id for q in questions]
    assert {score(q, a.text).score for q, a in zip(questions, answers, strict=True)} == {1.0}


def test_majority_says_the_commonest_place_of_the_family_and_number():
    train = [
        choice(0, "?", "mug", ("chair", "mug")),
        choice(1, "?", "lamp", ("sofa", "lamp")),
        choice(2, "?", "sofa", ("sofa", "mug")),
        choice(3, "how many?", "2", (), family="object_counting"),
        choice(4, "how many?", "2", (), family="object_counting"),
        choice(5, "how many?", "7", (), family="object_counting"),
    ]
    asked = [choice(9, "?", "", ("bed", "box")), train[5], choice(8, "?", "", (), family="new")]
    assert [a.text for a in fit_majority(train).open(no_scene()).answer(asked)] == ["box", "2", ""]


def test_majority_answers_lettered_options_by_letter():
    train = [choice(0, "?", "B", ("A. left", "B. right"), family="object_rel_direction_easy")]
    assert fit_majority(train).open(no_scene()).answer(train)[0].text == "B"


def room_of_shortcuts(count, rng):
    """Beds are always bigger than mugs; contact is a coin."""
    made = []
    for i in range(count):
        a, b = rng.permutation(["bed", "mug", "chair"])[:2].tolist()
        rank = ["mug", "chair", "bed"]
        made.append(
            choice(i, f"Which is bigger, the {a} or the {b}?", max(a, b, key=rank.index), (a, b))
        )
        made.append(
            choice(
                count + i,
                f"Are the {a} and the {b} touching?",
                ["yes", "no"][int(rng.integers(2))],
                ("yes", "no"),
                family="contact",
            )
        )
    return made


def test_blind_finds_a_shortcut_and_finds_none_in_coins():
    rng = np.random.default_rng(0)
    model = fit_blind(room_of_shortcuts(300, rng), rng=rng)
    asked = room_of_shortcuts(300, rng)
    assert accuracy(model, [q for q in asked if q.family == "size"]) == 1.0
    assert 0.4 < accuracy(model, [q for q in asked if q.family == "contact"]) < 0.6


def test_blind_answers_four_options_and_lettered_ones():
    rng = np.random.default_rng(0)
    things = ["bed", "mug", "chair", "lamp"]
    train = []
    for i in range(120):
        order = rng.permutation(things).tolist()
        options = tuple(f"{letter}. {thing}" for letter, thing in zip("ABCD", order, strict=True))
        train.append(choice(i, "Which is closest?", "ABCD"[order.index("lamp")], options))
    assert accuracy(fit_blind(train[:100], rng=rng), train[100:]) == 1.0


def test_blind_guesses_numbers_from_the_words():
    rng = np.random.default_rng(0)
    sizes = {"bed": 200, "mug": 10}
    train = [
        choice(i, f"How long is the {thing} in cm?", str(sizes[thing] + int(rng.integers(5))), ())
        for i, thing in enumerate(["bed", "mug"] * 40)
    ]
    for question in fit_blind(train, rng=rng).open(no_scene()).answer(train[:2]):
        assert question.text.isdigit()
    assert accuracy(fit_blind(train, rng=rng), train) > 0.7


def test_blind_is_repeatable_and_reads_neither_answer_nor_truth(store):
    test = store.questions(split="test")
    hidden = [replace(q, answer="", renderings=(), facts=(), value=None) for q in test]
    scene = store.scene(store.scene_ids("test")[0])
    first = baseline("blind", store, split="test", seed=1).open(scene).answer(test)
    second = baseline("blind", store, split="test", seed=1).open(scene).answer(hidden)
    assert first == second


def test_every_fifth_is_answered_from_the_other_four(store):
    learnt: list[set[str]] = []

    def fit(questions):
        learnt.append({q.scene_id for q in questions})
        return RecordedAnswers({"fold": str(len(learnt) - 1)})

    ids = store.scene_ids()
    model = CrossFitted(fit, store, ids, rng=np.random.default_rng(0))
    left_out = Counter(scene_id for fold in learnt for scene_id in set(ids) - fold)
    assert left_out == Counter(ids)
    for scene_id in ids:
        chosen = model.open(store.scene(scene_id))
        fold = next(i for i in range(5) if scene_id not in learnt[i])
        assert chosen.answer([replace(store.questions()[0], question_id="fold")])[0].text == str(
            fold
        )


def test_split_all_and_train_are_cross_fitted_and_others_are_not(store):
    for split in (None, "all", "train"):
        assert isinstance(baseline("majority", store, split=split), CrossFitted)
    assert not isinstance(baseline("majority", store, split="test"), CrossFitted)


def test_nothing_to_learn_from_is_refused_with_a_way_out(tmp_path, store):
    scene = store.scene(store.scene_ids("test")[0])
    write_manifest(tmp_path, {})
    write_shard(tmp_path, 0, [scene], store.questions(scene.scene_id))
    from stillroom.scenes.store import open_store

    lone = open_store(tmp_path)
    with pytest.raises(BadInputError, match="--split all"):
        baseline("blind", lone, split="test")
    with pytest.raises(BadInputError, match="at least 5"):
        baseline("blind", lone, split="all")
    with pytest.raises(BadInputError, match="one scene only"):
        Shuffled(RecordedAnswers({}), lone, split="test")
    with pytest.raises(BadInputError, match="'blnd'"):
        baseline("blnd", lone, split="test")
    # Questions of another store's train split serve as well.
    other = baseline("blind", lone, split="test", train=store.questions(split="train"))
    assert other.open(scene).answer(lone.questions())[0].text


def test_recorded_answers_name_what_is_missing(store):
    questions = store.questions("scene000")
    labels = {q.question_id: "yes" for q in questions[1:]}
    with pytest.raises(BadInputError, match="no answer to 1 of"):
        RecordedAnswers(labels).open(store.scene("scene000")).answer(questions)


def test_shuffled_shows_another_scene_of_the_same_split(store):
    seer = Seer(store, errs=0.0)
    shuffled = Shuffled(seer, store, split=None, seed=4)
    split_of = {
        s: name for name in ("train", "val", "test", "shifted") for s in store.scene_ids(name)
    }
    for scene_id, other in shuffled.other.items():
        assert scene_id != other
        assert split_of[scene_id] == split_of[other]
    assert set(shuffled.other) == set(shuffled.other.values()) == set(store.scene_ids())
    assert shuffled.other == Shuffled(seer, store, split=None, seed=4).other
    session = shuffled.open(store.scene("scene003"))
    assert seer.opened == [shuffled.other["scene003"]]
    assert not hasattr(session, "geometry")
    assert isinstance(shuffled, Answerer)


class DepthReader:
    """Says how many metres away the nearest thing in each question's scene is."""

    def open(self, scene):
        self.nearest = max(float(view.depth.max()) for view in scene.views)
        self.colours = [view.rgb for view in scene.views]
        return self

    def answer(self, questions):
        return [Answer(question_id=q.question_id, text=f"{self.nearest:.1f}") for q in questions]


def test_no_depth_takes_the_depth_and_nothing_else(store):
    scene, questions = store.scene("scene000"), store.questions("scene000")
    reader = DepthReader()
    with_depth = reader.open(scene).answer(questions)[0].text
    without = NoDepth(reader).open(scene).answer(questions)
    assert float(with_depth) > 0
    assert {answer.text for answer in without} == {"0.0"}
    assert all((a == view.rgb).all() for a, view in zip(reader.colours, scene.views))
    assert all(view.depth.max() > 0 for view in scene.views)


def test_a_seeing_model_falls_to_chance_when_shuffled(tmp_path):
    store = write_tiny_store(tmp_path / "scenes", scenes=70)
    questions = [q for q in store.questions(split="test") if len(q.options) == 2]
    hits = []
    shuffled = Shuffled(Seer(store, errs=0.0), store, split="test")
    for question in questions:
        session = shuffled.open(store.scene(question.scene_id))
        hits.append(score(question, session.answer([question])[0].text).score)
    assert 0.38 < np.mean(hits) < 0.62
