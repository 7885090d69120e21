"""Make five rooms, ask geometry about one of them, and draw it.

python examples/01_make_a_scene.py --out runs/rooms
"""

import argparse
from pathlib import Path

import stillroom
from stillroom.scenes.show import contact_sheet
from stillroom.scenes.store import open_store


def main(out: Path) -> None:
    """Rooms, three questions with their answers, and a contact sheet."""
    stillroom.make_scenes(out, count=5, seed=7)
    store = open_store(out)
    scene = store.scene(store.scene_ids()[0])
    print(f"{len(scene.objects)} things: {', '.join(thing.name for thing in scene.objects)}")
    questions = store.questions(scene.scene_id)
    for question in questions[:3]:
        print(f"{question.question}  {question.answer}   ({question.rationale})")
    contact_sheet(scene, questions).save(out / "contact_sheet.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/rooms"))
    main(parser.parse_args().out)
