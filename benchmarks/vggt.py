"""How fast and how large VGGT's features are, beside a straightforward VGGT.

    python benchmarks/vggt.py             # real widths, a third of the depth, 8 views of 280 px
    python benchmarks/vggt.py --blocks 24 --rounds 24 --pixels 518      # VGGT-1B's own size: 4 GB
    python benchmarks/vggt.py --blocks 24 --rounds 24 --pixels 518 --device cuda

Both run the same random weights on the same photos, for the patch tokens of one round and no head.
The straightforward one is in this file, written as the paper describes it: attention as its formula
stands, every block makes the table of its angles, every round's tokens are put together and kept,
and all rounds run. Three things are compared, each in one precision:

- ``ratio`` and ``memory_ratio``: with the straightforward one, in float32.
- ``ratio_fused`` and ``memory_ratio_fused``: with the straightforward one that has torch's fused
  attention, as the release has it, in float32: both do the same arithmetic then, and only tables
  and traffic of memory can be saved. ``..._bf16`` is the same under autocast, as the recipes with
  VGGT-1B ask for features.
- ``ratio_early_stop``: as ``ratio_fused_bf16``, where ours is asked for the tokens of
  ``--early-round``.

A ratio is the median of ``--repeats`` turns, in each of which every way has one pass, after a
warm-up. Memory is what a pass takes beyond weights and photos at its peak: on a GPU by its
allocator, on a CPU by the largest resident size of a process of its own, which only Linux tells.
Prints a table for people, then one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from record import circumstances, write
from torch import Tensor

from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_config import VGGTConfig
from stillroom.students.encoders.vggt_layers import Block, pixel_statistics

Pass = Callable[[], Tensor]
MIB = 2**20
#: How far from the straightforward float32 tokens, over the largest of them.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.02}


# The straightforward way. --------------------------------------------------------------------


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, as it is written."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def plain_tokens(model: VGGT, images: Tensor, attend: Attend) -> list[Tensor]:
    """Tokens of every round, [b v t c] each, special ones first."""
    config, aggregator = model.config, model.aggregator
    scenes, views = images.shape[:2]
    rows, columns = (side // config.patch_size for side in images.shape[-2:])
    mean, std = pixel_statistics(images.device)
    x = aggregator.patch_embed.patch_embed((images.flatten(0, 1) - mean) / std)
    encoder = aggregator.patch_embed
    table = encoder.position_table(rows, columns)
    first = (encoder.cls_token + table[:, :1]).expand(len(x), -1, -1)
    registers = encoder.register_tokens.expand(len(x), -1, -1)
    x = torch.cat([first, registers, x + table[:, 1:]], dim=1)
    for block in encoder.blocks:
        x = plain_block(block, x, None, config.rope_base, attend)
    x = encoder.norm(x)[:, 1 + config.registers :]
    x = aggregator.with_special(x, views)
    places = plain_positions(rows, columns, config.special_tokens, images.device)
    kept = []
    for frame_block, global_block in zip(
        aggregator.frame_blocks, aggregator.global_blocks, strict=True
    ):
        x = plain_block(frame_block, x, places, config.rope_base, attend)
        within = x
        x = x.reshape(scenes, -1, x.shape[-1])
        everywhere = places.repeat(views, 1)
        x = plain_block(global_block, x, everywhere, config.rope_base, attend)
        x = x.reshape(within.shape)
        kept.append(torch.cat([within, x], dim=-1).unflatten(0, (scenes, views)))
    return kept


def plain_positions(rows: int, columns: int, special: int, device: torch.device) -> Tensor:
    """(row, column) of every token of a view, patches counted from 1."""
    grid = torch.cartesian_prod(
        torch.arange(1, rows + 1, device=device), torch.arange(1, columns + 1, device=device)
    )
    return torch.cat([grid.new_zeros(special, 2), grid])


def plain_block(
    block: Block, x: Tensor, places: Tensor | None, base: float, attend: Attend
) -> Tensor:
    """One transformer block, operation by operation."""
    n, t, width = x.shape
    heads = block.attn.heads
    qkv = block.attn.qkv(block.norm1(x)).reshape(n, t, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if block.attn.q_norm is not None and block.attn.k_norm is not None:
        q, k = block.attn.q_norm(q), block.attn.k_norm(k)
    if places is not None:
        q, k = plain_rotation(q, places, base).to(v.dtype), plain_rotation(k, places, base).to(v)
    mixed = attend(q, k, v)
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


@dataclass(frozen=True)
class Way:
    """One way to the tokens: whose code, in which precision, up to which round."""

    code: Literal["straightforward", "straightforward, fused", "features"]
    precision: Literal["fp32", "bf16"]
    early: bool = False

    def __str__(self) -> str:
        return f"{self.code}, {self.precision}" + (", early stop" if self.early else "")


PLAIN = Way("straightforward", "fp32")
FUSED, FUSED_BF16 = Way("straightforward, fused", "fp32"), Way("straightforward, fused", "bf16")
OURS, OURS_BF16 = Way("features", "fp32"), Way("features", "bf16")
EARLY = Way("features", "bf16", early=True)
WAYS = (PLAIN, FUSED, OURS, FUSED_BF16, OURS_BF16, EARLY)


def make_pass(options: argparse.Namespace, model: VGGT, images: Tensor, way: Way) -> Pass:
    """What one way computes: patch tokens of one round."""
    first, last = model.config.special_tokens, model.config.rounds - 1
    early = options.early_round if options.early_round >= 0 else max(last - 1, 0)
    index = early if way.early else last

    def run() -> Tensor:
        device = options.device.split(":")[0]
        with torch.autocast(device, torch.bfloat16, enabled=way.precision == "bf16"):
            if way.code == "features":
                return model.encode(images, (index,)).tokens[index]
            fused = way.code == "straightforward, fused"
            attend = F.scaled_dot_product_attention if fused else plain_attention
            return plain_tokens(model, images, attend)[index][:, :, first:]

    return run


def synchronise(device: str) -> None:
    """Wait for what has been started on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@torch.inference_mode()
def seconds_of(options: argparse.Namespace) -> tuple[dict[Way, list[float]], dict[Way, float]]:
    """Seconds of every way, taking turns, and how far each is from the straightforward fp32.

    That is the largest difference over the largest value; early tokens are compared with theirs.
    """
    model, images = build(options)
    every = {way: make_pass(options, model, images, way) for way in WAYS}
    differences = {}
    want = every[PLAIN]()  # also the warm-up
    for way in (FUSED, OURS, FUSED_BF16, OURS_BF16):
        differences[way] = difference(every[way](), want)
    want = make_pass(options, model, images, Way("straightforward, fused", "fp32", early=True))()
    differences[EARLY] = difference(every[EARLY](), want)
    del want
    taken: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way, run in every.items():
            synchronise(options.device)
            began = time.perf_counter()
            run()
            synchronise(options.device)
            taken[way].append(time.perf_counter() - began)
    return taken, differences


def difference(got: Tensor, want: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((got.float() - want).abs().max() / want.abs().max())


def status_kib(field: str) -> int:
    """A figure of this process's memory, as Linux tells it [KiB]."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


@torch.inference_mode()
def peak_bytes(options: argparse.Namespace, way: Way) -> int:
    """What one pass takes beyond weights and photos, at its peak."""
    model, images = build(options)
    run = make_pass(options, model, images, way)
    gc.collect()
    if options.device.startswith("cuda"):
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


def peaks(options: argparse.Namespace) -> dict[Way, int]:
    """Peak of every way, each in a process of its own."""
    found = {}
    for number, way in enumerate(WAYS):
        words = [sys.executable, __file__, *sys.argv[1:], "--peak-of", str(number)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        found[way] = int(done.stdout.strip().splitlines()[-1])
    return found


# What is shown. ------------------------------------------------------------------------------


def show(options: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, and return the figures."""
    memory = peaks(options)
    taken, differences = seconds_of(options)
    median = {way: statistics.median(values) for way, values in taken.items()}
    print(
        f"VGGT, width {options.width}, {options.blocks} + 2 x {options.rounds} blocks, "
        f"{options.views} views of {options.pixels} px"
    )
    print(f"{'':34}{'median [s]':>12}{'slowest [s]':>13}{'peak [MiB]':>12}{'difference':>12}")
    for way, values in taken.items():
        off = f"{differences[way]:12.1e}" if way in differences else ""
        peak = f"{memory[way] / MIB:12.0f}"
        print(f"{way!s:34}{median[way]:12.3f}{max(values):13.3f}{peak}{off}")

    def ratio(plain: Way, ours: Way) -> float:
        turns = zip(taken[plain], taken[ours], strict=True)
        return round(statistics.median(one / other for one, other in turns), 3)

    def memory_ratio(plain: Way, ours: Way) -> float:
        return round(memory[ours] / memory[plain], 3)

    return {
        "benchmark": "vggt",
        "ratio": ratio(PLAIN, OURS),
        "memory_ratio": memory_ratio(PLAIN, OURS),
        "ratio_fused": ratio(FUSED, OURS),
        "memory_ratio_fused": memory_ratio(FUSED, OURS),
        "ratio_fused_bf16": ratio(FUSED_BF16, OURS_BF16),
        "memory_ratio_fused_bf16": memory_ratio(FUSED_BF16, OURS_BF16),
        "ratio_early_stop": ratio(FUSED_BF16, EARLY),
        "difference_fp32": differences[OURS],
        "difference_bf16": max(differences[OURS_BF16], differences[EARLY]),
        "seconds": {str(way): round(value, 4) for way, value in median.items()},
        "peak_mib": {str(way): round(value / MIB, 1) for way, value in memory.items()},
        **{
            name: getattr(options, name)
            for name in ("width", "blocks", "rounds", "views", "pixels", "repeats")
        },
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024, help="a multiple of 64")
    parser.add_argument("--blocks", type=int, default=4, help="of the image encoder")
    parser.add_argument("--rounds", type=int, default=8, help="of the aggregator")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=280, help="a multiple of 14")
    parser.add_argument("--early-round", type=int, default=-1, help="-1: the last but one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of is not None:
        print(peak_bytes(options, WAYS[options.peak_of]))
        return
    figures = show(options)
    chip = torch.cuda.get_device_name() if options.device.startswith("cuda") else None
    write(figures | circumstances(device=chip), options.out)
    for precision, allowed in TOLERANCE.items():
        off = figures[f"difference_{precision}"]
        if not off <= allowed:  # type: ignore[operator]
            sys.exit(f"in {precision} the two differ by {off} of the largest value, not {allowed}")


if __name__ == "__main__":
    main()
