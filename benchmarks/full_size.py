"""One training step, or one forward pass, of the paper's students at full size: seconds and memory.

    python benchmarks/full_size.py --what tiny_10gb                 # a step of 12 x 1024, fp32, CPU
    python benchmarks/full_size.py --what paper_h100 --mode forward # 24 x 2048, fp32, CPU
    python benchmarks/full_size.py --what paper_h100 --device cuda --precision bf16 --encoder

Weights are random, photos, questions and labels too: only sizes matter here. A step is forward
(all terms of the recipe under its weighting, a label wherever there can be one), backward and AdamW
with fp32 weights; ``bf16`` is autocast. Without ``--encoder`` the language model, connector, slots
and heads read cached features, as training does, and VGGT-1B is not in memory. With it, VGGT-1B's
shapes see the photos first (frozen, depth head on), once. Memory is the peak of the whole process
on a CPU (Linux), of the allocator on a GPU. Prints a table for people, then one JSON line.
``--tiny`` shrinks everything, to see that it runs.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from record import circumstances, write

from stillroom import recipes
from stillroom.distill.batches import Batch
from stillroom.distill.build import language_config, student_config
from stillroom.distill.config import DistillConfig
from stillroom.distill.scene_labels import Pairs, Related, SceneLabels, TeacherMaps, Things
from stillroom.distill.step import count_labelled, distill_step
from stillroom.distill.weighting import make_weighting
from stillroom.engine.naming import Words
from stillroom.engine.packing import Packed, pack_questions, stack_rows
from stillroom.scenes.rooms import CATEGORIES
from stillroom.students.connector import VisionFeatures
from stillroom.students.encoders.vggt_config import VGGTConfig, mini_config
from stillroom.students.model import StillroomStudent
from stillroom.students.parameters import count_parameters
from stillroom.training.precision import moved

GIB = 2**30


def recipe(options: argparse.Namespace) -> DistillConfig:
    """The recipe, shrunk if asked for."""
    config: DistillConfig = recipes.table("distill")[options.what]()
    if options.tiny:
        sizes = replace(config.student, hidden_size=64, layers=2, heads=4, intermediate_size=128)
        config = replace(config, student=sizes)
    return config


def encoder_config(options: argparse.Namespace) -> VGGTConfig:
    """VGGT-1B's sizes, or the least that has tokens of the same width."""
    if options.tiny:
        return mini_config(camera_head=False, point_head=False)
    if options.encoder:
        return VGGTConfig(camera_head=False, point_head=False)
    return VGGTConfig(
        encoder_depth=1, rounds=1, camera_head=False, depth_head=False, point_head=False
    )


def build(options: argparse.Namespace, config: DistillConfig) -> StillroomStudent:
    """A student of the recipe with random weights; only with ``--encoder`` it can see."""
    with torch.device(options.device):
        torch.manual_seed(0)
        built = student_config(
            config,
            encoder_config(options),
            language_config(config.student),
            feature_width=config.student.feature_width,
        )
        student = StillroomStudent(built)
    if not options.encoder:
        student.encoder.to("meta")  # takes no memory any more, and nobody asks it
    return student.train()


def rows(options: argparse.Namespace, student: StillroomStudent) -> Packed:
    """One scene's row of questions of random ids."""
    draws = torch.Generator().manual_seed(1)
    words = student.config.language_model.vocab_size

    def ids(count: int) -> list[int]:
        return torch.randint(3, words, (count,), generator=draws).tolist()

    pairs = [(ids(options.question_tokens), ids(options.answer_tokens))] * options.questions
    row = pack_questions(
        pairs,
        prefix_length=student.vision_length(options.views),
        slots=student.config.slot_count,
        slot_position=student.config.slot_position,
        start_id=1,
    )
    return stack_rows([row]).to(options.device)


def labelled(options: argparse.Namespace, student: StillroomStudent) -> SceneLabels:
    """Labels of one scene for all terms of the paper: things, relations, pairs, features."""
    config, draws = student.config, torch.Generator().manual_seed(2)
    cells, things = config.vision_grid**2, config.detection_queries
    every = options.views * cells
    kinds = torch.randint(1, len(CATEGORIES) + 1, (1, things), generator=draws)
    first = torch.arange(every)
    known = torch.ones(1, options.views, cells, dtype=torch.bool)
    related = torch.combinations(torch.arange(min(things, 16)))
    return SceneLabels(
        things=Things(kind=kinds, box=torch.randn(1, things, 8, generator=draws)),
        related=Related(
            regions=torch.full((1, min(things, 16), every), 1 / every),
            pair=torch.cat([torch.zeros(len(related), 1, dtype=torch.long), related], dim=1),
            probs=torch.full((len(related), 3), 0.7),
            known=torch.ones(len(related), 3, dtype=torch.bool),
        ),
        pairs=Pairs(
            cells=torch.stack([0 * first, first, (first + cells) % every], dim=1),
            carry=torch.tensor([1.0, 0.0]).expand(every, 2),
        ),
        teacher=TeacherMaps(
            features=torch.randn(*known.shape, config.feature_width, generator=draws),
            known=known,
            shared=known,
        ),
    )


def batch_of(
    options: argparse.Namespace, student: StillroomStudent, features: VisionFeatures, packed: Packed
) -> Batch:
    """A micro-batch of one scene, as training has it."""
    nothing = Words.of([[1]])
    cells = features.tokens.shape[:3]
    batch = Batch(
        tokens=features.tokens,
        own_depth=features.depth,
        true_depth=torch.full(features.depth.shape, 2.0),
        packed=packed,
        cell_names=torch.zeros(*cells, 2, dtype=torch.long),
        name_words=(nothing, nothing),
        mention_at=torch.zeros(0, 2, dtype=torch.long),
        mention_box=torch.zeros(0, 6),
        mention_apart=torch.zeros(0, 2),
        measure_at=torch.zeros(0, 2, dtype=torch.long),
        measure_kind=torch.zeros(0, dtype=torch.long),
        measure=torch.zeros(0, 2),
        topk_ids=None,
        topk_logits=None,
        logsumexp=None,
        scene=labelled(options, student),
    )
    return moved(batch, torch.device(options.device))


def see(options: argparse.Namespace, student: StillroomStudent) -> tuple[VisionFeatures, float]:
    """Features of one scene and the seconds they took; random ones without the encoder."""
    config = student.config
    if not options.encoder:
        shape = (1, options.views, config.vision_grid**2, config.encoder_sizes.token_width)
        grid = (1, options.views, config.vision_grid, config.vision_grid)
        tokens = torch.randn(shape, device=options.device)
        return VisionFeatures(tokens=tokens, depth=torch.ones(grid, device=options.device)), 0.0
    side = config.image_size
    photos = torch.rand(1, options.views, 3, side, side, device=options.device)
    for _ in range(2 if options.device.startswith("cuda") else 1):  # the first is the warm-up
        synchronise(options.device)
        began = time.perf_counter()
        features = student.features(photos)
        synchronise(options.device)
    return features, time.perf_counter() - began


def synchronise(device: str) -> None:
    """Wait for what has been started on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_gib(device: str) -> float:
    """Peak memory so far."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Everything the table shows."""
    config = recipe(options)
    student = build(options, config)
    packed = rows(options, student)
    device = options.device.split(":")[0]
    weighting = make_weighting(config.losses).to(options.device)
    trained = [*student.parameters(), *weighting.parameters()]
    trained = [p for p in trained if p.requires_grad and p.device.type != "meta"]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    stepping = options.mode == "step"
    taken, loss, terms = [], torch.zeros(()), dict[str, torch.Tensor]()
    with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
        features, encoding = see(options, student)
        batch = batch_of(options, student, features, packed)
        counts = count_labelled(batch)
        for _ in range(options.repeats):
            synchronise(options.device)
            began = time.perf_counter()
            with torch.set_grad_enabled(stepping):
                terms = distill_step(student, batch, config.losses).terms
                loss = weighting({name: terms[name] / counts[name] for name in terms})
            if stepping:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            synchronise(options.device)
            taken.append(time.perf_counter() - began)
    return {
        "benchmark": "full_size",
        "what": options.what,
        "mode": options.mode,
        "encoder": options.encoder,
        "precision": options.precision,
        "language_model": count_parameters(student.language_model),
        "trained": sum(p.numel() for p in trained),
        "tokens": packed.kind.shape[1],
        "terms": len(terms),
        "encoder_s": round(encoding, 3),
        "first_s": round(taken[0], 3),
        # The first step also allocates the optimizer's state.
        "seconds": round(statistics.median(taken[1:] or taken), 3),
        "peak_gib": round(peak_gib(options.device), 2),
        "loss": round(float(loss.detach()), 3),
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("tiny_10gb", "paper_h100"), default="tiny_10gb")
    parser.add_argument("--mode", choices=("forward", "step"), default="step")
    parser.add_argument("--encoder", action="store_true", help="VGGT-1B's shapes see the photos")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--question-tokens", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a miniature of everything")
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    options = parser.parse_args()
    figures = measure(options)
    for name, value in figures.items():
        print(f"{name:16}{value:>16,}" if type(value) is int else f"{name:16}{value!s:>16}")
    chip = torch.cuda.get_device_name() if options.device.startswith("cuda") else None
    more = {name: getattr(options, name) for name in ("tiny", "views", "questions")}
    write(figures | more | circumstances(["torch", "transformers"], device=chip), options.out)


if __name__ == "__main__":
    main()
