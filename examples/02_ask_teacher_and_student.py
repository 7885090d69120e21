"""Ask the shipped teacher and the shipped student about the same made room.

python examples/02_ask_teacher_and_student.py --rooms runs/rooms
"""

import argparse
from pathlib import Path

import stillroom
from stillroom import registry
from stillroom.scenes.store import open_store


def main(rooms: Path) -> None:
    """Eight questions: what is true, what the teacher says, what the student says."""
    stillroom.make_scenes(rooms, count=5, seed=7)
    store = open_store(rooms)
    scene = store.scene(store.scene_ids()[0])
    questions = store.questions(scene.scene_id)[:8]
    sessions = {
        name: registry.answerer(name, store, split="test").open(scene)
        for name in ("teacher_mini", "student_mini")
    }
    answers = {name: session.answer(questions) for name, session in sessions.items()}
    for row, question in enumerate(questions):
        said = "   ".join(f"{name}: {given[row].text}" for name, given in answers.items())
        print(f"{question.question}\n    truth: {question.answer}   {said}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rooms", type=Path, default=Path("runs/rooms"))
    main(parser.parse_args().rooms)
