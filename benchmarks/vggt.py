"""How fast and how large VGGT's features are, beside a straightforward VGGT.

    python benchmarks/vggt.py                               # real widths, 6 + 6 blocks, 8 views
    python benchmarks/vggt.py --blocks 24 --rounds 24       # VGGT-1B's own size: 4 GB of weights
    python benchmarks/vggt.py --device cuda --precision bf16 --blocks 24 --rounds 24

Both run the same random weights on the same photos, for the patch tokens of one round and no head.
The straightforward one is in this file, written as the paper describes it: every block makes the
table of its angles, every round's tokens are put together and kept, and all rounds run. Both use
the same fused attention. ``features`` asks for the last round, so that what it saves is memory and
its traffic alone; ``features, early stop`` asks for ``--early-round``.

Seconds are the median of ``--repeats`` passes after a warm-up, the two taking turns. Memory is what
a pass takes beyond weights and photos at its peak: on a GPU by its allocator, on a CPU by the
largest resident size of a process of its own, which only Linux tells. Prints a table for people,
then one JSON line.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_config import VGGTConfig
from stillroom.students.encoders.vggt_layers import Block

Pass = Callable[[], Tensor]
MIB = 2**20


# The straightforward way. --------------------------------------------------------------------


def plain_tokens(model: VGGT, images: Tensor) -> list[Tensor]:
    """Tokens of every round, [b v t c] each, special ones first."""
    config, aggregator = model.config, model.aggregator
    scenes, views = images.shape[:2]
    rows, columns = (side // config.patch_size for side in images.shape[-2:])
    mean, std = aggregator.pixel_statistics(images.device)
    x = aggregator.patch_embed.patch_embed((images.flatten(0, 1) - mean) / std)
    encoder = aggregator.patch_embed
    table = encoder.position_table(rows, columns)
    first = (encoder.cls_token + table[:, :1]).expand(len(x), -1, -1)
    registers = encoder.register_tokens.expand(len(x), -1, -1)
    x = torch.cat([first, registers, x + table[:, 1:]], dim=1)
    for block in encoder.blocks:
        x = plain_block(block, x, None, config.rope_base)
    x = encoder.norm(x)[:, 1 + config.registers :]
    x = aggregator.with_special(x, views)
    places = plain_positions(rows, columns, config.special_tokens, images.device)
    kept = []
    for frame_block, global_block in zip(
        aggregator.frame_blocks, aggregator.global_blocks, strict=True
    ):
        x = plain_block(frame_block, x, places, config.rope_base)
        within = x
        x = x.reshape(scenes, -1, x.shape[-1])
        x = plain_block(global_block, x, places.repeat(views, 1), config.rope_base)
        x = x.reshape(within.shape)
        kept.append(torch.cat([within, x], dim=-1).unflatten(0, (scenes, views)))
    return kept


def plain_positions(rows: int, columns: int, special: int, device: torch.device) -> Tensor:
    """(row, column) of every token of a view, patches counted from 1."""
    grid = torch.cartesian_prod(
        torch.arange(1, rows + 1, device=device), torch.arange(1, columns + 1, device=device)
    )
    return torch.cat([grid.new_zeros(special, 2), grid])


def plain_block(block: Block, x: Tensor, places: Tensor | None, base: float) -> Tensor:
    """One transformer block, operation by operation."""
    n, t, width = x.shape
    heads = block.attn.heads
    qkv = block.attn.qkv(block.norm1(x)).reshape(n, t, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if block.attn.q_norm is not None and block.attn.k_norm is not None:
        q, k = block.attn.q_norm(q), block.attn.k_norm(k)
    if places is not None:
        q, k = plain_rotation(q, places, base).to(v.dtype), plain_rotation(k, places, base).to(v)
    mixed = F.scaled_dot_product_attention(q, k, v)
    x = x + block.attn.proj(mixed.transpose(1, 2).reshape(n, t, width)) * block.ls1.gamma
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x)))) * block.ls2.gamma


def plain_rotation(x: Tensor, places: Tensor, base: float) -> Tensor:
    """Rows turn the first half of the channels, columns the second; angles made here and now."""
    halves = []
    for axis, part in enumerate(x.chunk(2, dim=-1)):
        width = part.shape[-1]
        steps = torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width
        angles = places[:, axis, None].float() * base**-steps
        angles = torch.cat([angles, angles], dim=-1)
        a, b = part.chunk(2, dim=-1)
        halves.append(part * angles.cos() + torch.cat([-b, a], dim=-1) * angles.sin())
    return torch.cat(halves, dim=-1)


# Measuring. ----------------------------------------------------------------------------------


def build(options: argparse.Namespace) -> tuple[VGGT, Tensor]:
    """Random weights of the asked size, and photos."""
    config = VGGTConfig(
        width=options.width,
        heads=options.width // 64,
        encoder_heads=options.width // 64,
        encoder_depth=options.blocks,
        rounds=options.rounds,
        image_size=options.pixels,
        camera_head=False,
        depth_head=False,
        point_head=False,
    )
    model = VGGT(config, seed=0).eval().requires_grad_(False).to(options.device)
    draws = torch.Generator().manual_seed(1)
    images = torch.rand(1, options.views, 3, options.pixels, options.pixels, generator=draws)
    return model, images.to(options.device)


def passes(options: argparse.Namespace, model: VGGT, images: Tensor) -> dict[str, Pass]:
    """What is measured, by its name."""
    first, last = model.config.special_tokens, model.config.rounds - 1
    early = options.early_round if options.early_round >= 0 else max(last - 1, 0)

    def plain(index: int) -> Tensor:
        return plain_tokens(model, images)[index][:, :, first:]

    def ours(index: int) -> Tensor:
        return model.encode(images, (index,)).tokens[index]

    return {
        "straightforward": lambda: plain(last),
        "features": lambda: ours(last),
        "straightforward, earlier round": lambda: plain(early),
        "features, early stop": lambda: ours(early),
    }


def synchronise(device: str) -> None:
    """Wait for what has been started on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@torch.inference_mode()
def seconds_of(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every pass, taking turns, and the largest difference of each pair."""
    model, images = build(options)
    every = passes(options, model, images)
    autocast = torch.autocast(
        options.device.split(":")[0], torch.bfloat16, enabled=options.precision == "bf16"
    )
    taken: dict[str, list[float]] = {name: [] for name in every}
    with autocast:
        differences = {}
        for plain, ours in (list(every)[:2], list(every)[2:]):  # also the warm-up
            want, got = every[plain]().float(), every[ours]().float()
            differences[ours] = float((got - want).abs().max() / want.abs().max())
            del want, got
        for _ in range(options.repeats):
            for name, run in every.items():
                synchronise(options.device)
                began = time.perf_counter()
                run()
                synchronise(options.device)
                taken[name].append(time.perf_counter() - began)
    return taken, differences


def status_kib(field: str) -> int:
    """A figure of this process's memory, as Linux tells it [KiB]."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


@torch.inference_mode()
def peak_bytes(options: argparse.Namespace, name: str) -> int:
    """What one pass takes beyond weights and photos, at its peak."""
    model, images = build(options)
    run = passes(options, model, images)[name]
    gc.collect()
    device = options.device.split(":")[0]
    with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
        if device == "cuda":
            run()  # the tables and the workspace of the libraries are there from now on
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = status_kib("VmRSS")
        run()
        return 1024 * (status_kib("VmHWM") - before)


def peaks(options: argparse.Namespace) -> dict[str, int]:
    """Peak of every pass, each in a process of its own."""
    found = {}
    for name in ("straightforward", "features", "features, early stop"):
        words = [sys.executable, __file__, *sys.argv[1:], "--peak-of", name]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[name] = int(done.stdout.strip().splitlines()[-1])
    return found


# What is shown. ------------------------------------------------------------------------------


def machine(device: str) -> str:
    """What it ran on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def show(options: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, and return the figures."""
    memory = peaks(options)
    taken, differences = seconds_of(options)
    median = {name: statistics.median(values) for name, values in taken.items()}
    print(
        f"VGGT, width {options.width}, {options.blocks} + 2 x {options.rounds} blocks, "
        f"{options.views} views of {options.pixels} px, {options.precision}, "
        f"{machine(options.device)}, torch {torch.__version__}"
    )
    print(f"{'':32}{'median [s]':>12}{'slowest [s]':>13}{'peak [MiB]':>12}{'difference':>12}")
    for name, values in taken.items():
        peak = f"{memory[name] / MIB:12.0f}" if name in memory else 12 * " "
        off = f"{differences[name]:12.1e}" if name in differences else ""
        print(f"{name:32}{median[name]:12.3f}{max(values):13.3f}{peak}{off}")
    plain = memory["straightforward"]
    return {
        "benchmark": "vggt",
        "ratio": round(median["straightforward"] / median["features"], 3),
        "memory_ratio": round(memory["features"] / plain, 3),
        "ratio_early_stop": round(
            median["straightforward, earlier round"] / median["features, early stop"], 3
        ),
        "memory_ratio_early_stop": round(memory["features, early stop"] / plain, 3),
        "difference": max(differences.values()),
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "peak_mib": {name: round(value / MIB, 1) for name, value in memory.items()},
        **{
            name: getattr(options, name)
            for name in ("width", "blocks", "rounds", "views", "pixels", "precision", "repeats")
        },
        "machine": machine(options.device),
        "date": datetime.date.today().isoformat(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024, help="a multiple of 64")
    parser.add_argument("--blocks", type=int, default=6, help="of the image encoder")
    parser.add_argument("--rounds", type=int, default=6, help="of the aggregator")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=518, help="a multiple of 14")
    parser.add_argument("--early-round", type=int, default=-1, help="-1: the last but one")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative difference")
    parser.add_argument("--out", type=Path, help="a file to write the JSON line to")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(peak_bytes(options, options.peak_of))
        return
    figures = show(options)
    line = json.dumps(figures)
    print(line)
    if options.out:
        options.out.write_text(line + "\n")
    allowed = options.tolerance if options.precision == "fp32" else 100 * options.tolerance
    if not figures["difference"] <= allowed:  # type: ignore[operator]
        sys.exit(f"the two differ by {figures['difference']}, more than {allowed}")


if __name__ == "__main__":
    main()
