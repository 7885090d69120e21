"""Teacher and student as a latency bench sees them: the same stages, the same engine.

Each is asked by the engine that its sessions use (``engine/``), stage by stage: photos to tensors,
tensors to visual tokens, these through the language model once, then questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from stillroom.engine.cache import head_width
from stillroom.engine.generate import greedy
from stillroom.engine.mask import Visibility
from stillroom.engine.packed import pack
from stillroom.engine.prefix import ScenePrefix, prefill
from stillroom.geometry.cameras import pinhole_from_fov, pixel_centers, rays
from stillroom.geometry.poses import look_at
from stillroom.records import Scene, View, content_hash
from stillroom.students.config import StillroomConfig
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.students.quantised import weights_of
from stillroom.teachers import cost
from stillroom.teachers.llava3d_config import LLaVA3DConfig
from stillroom.teachers.llava3d_load import fill
from stillroom.teachers.llava3d_model import LLaVA3D
from stillroom.teachers.llava3d_voxels import patch_points, voxelise
from stillroom.teachers.preprocess import scene_inputs

#: Words before the scene in a teacher's prompt, and around its question (teachers/cost.py).
WORDS_BEFORE = 35


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating point operations of each stage (a multiply-add counts as 2), and the bytes that a
    token of an answer has to read: weights of the language model, keys and values."""

    see: float
    read: float
    ask: float
    token: float
    token_bytes: int


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One model in a latency bench. ``views`` photos of a scene are looked at."""

    name: str
    model: nn.Module
    lm: PreTrainedModel
    visibility: Visibility
    views: int
    #: Photos to tensors on the device; tensors to what stands before every question.
    prepare: Callable[[Scene], Any]
    see: Callable[[Any], Float[Tensor, "1 n d"]]
    #: One question of random words, embedded.
    prompt: Callable[[], Float[Tensor, "q d"]]
    #: Operations of ``see`` for so many views that give so many visual tokens.
    see_flops: Callable[[int, int], float]
    #: Visual and other tokens of a scene of so many views, where it can be told without looking.
    tokens_of: Callable[[Scene, int], int]

    def read(self, embeds: Float[Tensor, "1 n d"]) -> ScenePrefix:
        """The scene through the language model, once for all its questions."""
        return prefill(self.lm, embeds, visibility=self.visibility)

    def say(
        self, prefix: ScenePrefix, prompts: Sequence[Tensor], tokens: int, *, plain: bool = False
    ) -> list[list[int]]:
        """Exactly so many tokens of an answer to each question."""
        said = greedy(
            self.lm,
            prefix,
            prompts,
            visibility=self.visibility,
            max_new_tokens=tokens,
            eos_id=-1,
            scored=False,
            plain=plain,
        )
        return [answer.ids for answer in said]

    @property
    def parameters(self) -> int:
        """All numbers it holds; tied ones count once."""
        return sum(count for _, count in weights_of(self.model))

    @property
    def weight_bytes(self) -> int:
        """Memory of its weights, each counted once; copies in a kernel's order are in the peak."""
        return sum(tensor.nbytes for tensor, _ in weights_of(self.model))

    def work(self, tokens: int, question: int, *, views: int | None = None) -> Work:
        """What each stage has to do for a scene of so many tokens and a question of so many."""
        base: Any = self.lm.base_model
        config, layers = self.lm.config, len(base.layers)
        weights = sum(count for tensor, count in weights_of(base.layers) if tensor.ndim == 2)
        head: Any = self.lm.get_output_embeddings()
        said = 2.0 * config.hidden_size * head.out_features
        looking = 4.0 * layers * config.num_attention_heads * head_width(config)
        known = tokens + question
        half = 0.5 if self.visibility == "causal" else 1.0
        return Work(
            see=self.see_flops(self.views if views is None else views, tokens),
            read=2.0 * weights * tokens + half * looking * tokens**2,
            ask=2.0 * weights * question + looking * question * known + said,
            token=2.0 * weights + looking * (known + 1) + said,
            token_bytes=_read_bytes(self.lm) + _cache_bytes(self.lm, known),
        )


def student(model: StillroomStudent, *, views: int, question_tokens: int, name: str) -> Contestant:
    """A student as its sessions use it."""
    config, device = model.config, model.device
    processor = StillroomProcessor(image_size=config.image_size, max_views=views)
    ids = _random_ids(question_tokens, config.language_model.vocab_size)

    def prepare(scene: Scene) -> Tensor:
        photos = processor.images([view.rgb for view in scene.views])
        return torch.from_numpy(photos).to(device)[None]

    @torch.no_grad()
    def see(photos: Tensor) -> Tensor:
        return model.vision_tokens(model.features(photos))

    return Contestant(
        name=name,
        model=model,
        lm=model.language_model,
        visibility=config.visibility,
        views=views,
        prepare=prepare,
        see=see,
        prompt=lambda: model.prompt(ids),
        see_flops=lambda count, _: _seen_flops(model, count),
        tokens_of=lambda scene, count: model.vision_length(min(count, len(scene.views))),
    )


def teacher(model: LLaVA3D, *, views: int, question_tokens: int, name: str) -> Contestant:
    """A LLaVA-3D as its sessions use it."""
    settings = replace(model.settings, num_frames=views)
    mini = settings.prompt == "mini"
    before = [] if mini else _random_ids(WORDS_BEFORE, settings.vocab_size)
    ids = _random_ids(question_tokens, settings.vocab_size)

    def prepare(scene: Scene) -> tuple[Tensor, ...]:
        inputs = scene_inputs(scene, settings)
        arrays = (inputs.images, inputs.depths, inputs.poses, inputs.intrinsics)
        return tuple(torch.from_numpy(array)[None].to(model.device) for array in arrays)

    @torch.no_grad()
    def see(inputs: tuple[Tensor, ...]) -> Tensor:
        images, *geometry = inputs
        images = images.to(model.dtype)
        return model.prefix_embeds(before, model.scene_tokens(images, *geometry)[0].tokens)

    def tokens_of(scene: Scene, count: int) -> int:
        inputs = scene_inputs(scene, replace(settings, num_frames=count))
        places = (torch.from_numpy(a) for a in (inputs.depths, inputs.poses, inputs.intrinsics))
        points = patch_points(*places, grid=settings.clip.grid).flatten(0, 1)
        voxels = len(voxelise(points, size=settings.voxel_size).counts)
        return len(before) + min(voxels, settings.max_visual_tokens)

    def see_flops(count: int, tokens: int) -> float:
        visual = tokens - len(before)
        return (
            cost.tower_flops(settings, count)
            + cost.points_flops(settings, count)
            + cost.projector_flops(settings, visual)
        )

    return Contestant(
        name=name,
        model=model,
        lm=model,
        visibility=settings.visibility,
        views=views,
        prepare=prepare,
        see=see,
        prompt=lambda: model.embed_prompt(ids),
        see_flops=see_flops,
        tokens_of=tokens_of,
    )


# Models of random weights. ------------------------------------------------------------------------


def random_student(
    config: StillroomConfig, *, dtype: torch.dtype, device: torch.device
) -> StillroomStudent:
    """A student of these sizes whose weights are noise: time does not depend on them."""
    with torch.device("meta"):
        model = StillroomStudent(config)
    state = {name: _noise(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    del state  # or every weight would lie in memory twice while it is packed
    model.language_model.tie_weights()
    base: Any = model.language_model.base_model
    base.rotary_emb = type(base.rotary_emb)(config.language_model)
    nn.Module.to(model, device)
    pack(model, decoder=model.language_model)
    return model.eval()


def random_teacher(config: LLaVA3DConfig, *, dtype: torch.dtype, device: torch.device) -> LLaVA3D:
    """A LLaVA-3D of these sizes whose weights are noise."""
    with torch.device("meta"):
        model = LLaVA3D(config)
    named = model.named_parameters()
    fill(model, ((name, _noise(name, one, dtype)) for name, one in named), dtype=dtype)
    nn.Module.to(model, device)
    pack(model, decoder=model.model.layers)
    return model.eval()


def empty_room(views: int, *, hw: tuple[int, int] = (480, 640)) -> Scene:
    """A bare room of 4.5 x 3.5 x 2.6 m, photographed all around: noise for pixels, exact depth."""
    rng = np.random.default_rng(0)
    room = np.array([4.5, 3.5, 2.6])
    intrinsics = pinhole_from_fov(0.85, *hw)
    ways = rays(pixel_centers(*hw), intrinsics)
    made = []
    for number in range(views):
        angle = 2 * np.pi * number / max(views, 1)
        turn = np.array([np.cos(angle), np.sin(angle), 0.0])
        eye = np.array([2.25, 1.75, 1.4]) - 0.8 * turn
        c2w = look_at(eye, eye + turn + [0.0, 0.0, -0.35])
        way = ways @ c2w[:3, :3].T
        with np.errstate(divide="ignore"):
            walls = np.where(way > 0, (room - eye) / way, -eye / way)
        made.append(
            View(
                name=str(number),
                rgb=rng.integers(0, 256, (*hw, 3), dtype=np.uint8),
                intrinsics=intrinsics,
                c2w=c2w,
                depth=walls.min(axis=-1).astype(np.float32),
            )
        )
    name = content_hash(["empty room", str(views), str(hw)])
    return Scene(scene_id=name, source="made:empty", views=tuple(made), room_size=room)


def _noise(name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of the size that weights have: a short draw, again and again."""
    if like.ndim < 2 or name.endswith("gamma"):
        return torch.full(like.shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
    draws = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    values = torch.empty(like.shape, dtype=dtype)
    for part in values.view(-1).split(len(draws)):
        part.copy_(draws[: len(part)])
    return values


def _random_ids(count: int, vocabulary: int) -> list[int]:
    draws = np.random.default_rng(0).integers(3, vocabulary, count)
    return [int(one) for one in draws]


# Counting. ----------------------------------------------------------------------------------------


def _seen_flops(model: StillroomStudent, views: int) -> float:
    """Operations from photos to visual tokens, counted on a model without weights."""
    with torch.device("meta"):
        bare = StillroomStudent(model.config).eval()
        size = model.config.image_size
        photos = torch.empty(1, views, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bare.vision_tokens(bare.features(photos))
    return float(counter.get_total_flops())


def _read_bytes(lm: PreTrainedModel) -> int:
    """Weights that a token passes: all layers and the head, but not the table of embeddings."""
    base: Any = lm.base_model
    parts = (base.layers, lm.get_output_embeddings())
    return sum(tensor.nbytes for part in parts for tensor, _ in weights_of(part))


def _cache_bytes(lm: PreTrainedModel, length: int) -> int:
    config = lm.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * head_width(config)
    item = torch.empty(0, dtype=lm.dtype).element_size()
    return 2 * config.num_hidden_layers * width * length * item
