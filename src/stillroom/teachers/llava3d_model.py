"""LLaVA-3D: posed RGB-D views and a question in, words out (specs: arXiv 2409.18125, the release).

Views go through CLIP; every patch gets the embedding of the 3D point that it shows; patches that
share a voxel are averaged; each voxel is a token of a plain Llama. Module names repeat the
released checkpoint's keys, so that a state dict is the release's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaForCausalLM

from stillroom.records import BadInputError
from stillroom.teachers.llava3d_config import LLaVA3DConfig
from stillroom.teachers.llava3d_voxels import Voxels, draw_kept, patch_points, pool, voxelise
from stillroom.teachers.prompts import COORDINATE_ID, VISUAL_ID


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """Sequences ready for the language model; padding is zero vectors, False in ``mask``."""

    embeds: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]


@dataclass(frozen=True, kw_only=True)
class SceneTokens:
    """The visual tokens of one scene, and where they come from."""

    tokens: Float[Tensor, "k d"]
    voxels: Voxels
    # Means of the patches in every voxel, before the projector and the cap.
    pooled: Float[Tensor, "m c"]
    # Voxels that stayed, in the order of the tokens; None if all did.
    kept: Int[Tensor, "k"] | None

    @property
    def features(self) -> Float[Tensor, "k c"]:
        """``pooled`` of the voxels that stayed, in the order of the tokens."""
        return self.pooled if self.kept is None else self.pooled[self.kept]

    @property
    def of_patch(self) -> Int[Tensor, "n"]:
        """The token of every patch, views and patches flattened; -1 where the cap left it out."""
        if self.kept is None:
            return self.voxels.of_patch
        token = torch.full_like(self.voxels.counts, -1)
        token[self.kept] = torch.arange(len(self.kept), device=token.device)
        return token[self.voxels.of_patch]

    def centres(self, size: float) -> Float[Tensor, "k 3"]:
        """Centres of the tokens' voxels of edge ``size`` [m], in the frame that the model reads."""
        indices = self.voxels.indices if self.kept is None else self.voxels.indices[self.kept]
        return indices.float() * size


class LLaVA3D(LlamaForCausalLM):
    """A Llama with CLIP and the two point encoders hung into it under the release's names."""

    def __init__(self, config: LLaVA3DConfig) -> None:
        super().__init__(config.llama())
        self.settings = config
        #: Where it computes while its weights wait elsewhere; None: where they are.
        self.computes_on: torch.device | None = None
        wide, inner = config.clip.hidden_size, config.hidden_size
        self.model.vision_tower = _ClipTower(config)
        self.model.mm_projector = nn.Sequential(
            nn.Linear(wide, inner), nn.GELU(), nn.Linear(inner, inner)
        )
        self.model.video_tower = nn.ModuleDict(
            {
                "video_tower": nn.ModuleDict({"positional_embedding": _PointEncoder(wide)}),
                "prompt_encoder": nn.ModuleDict({"pos_emb3d": _PointEncoder(inner)}),
            }
        )

    # Stages, in the order of the forward pass. --------------------------------------------------

    def clip_features(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p c"]:
        """Patch features of normalised images, row by row over the grid, without class token."""
        return self.model.vision_tower(images)

    def patch_points(
        self,
        depths: Float[Tensor, "*s h w"],
        poses: Float[Tensor, "*s 4 4"],
        intrinsics: Float[Tensor, "*s 4 4"],
    ) -> Float[Tensor, "*s p 3"]:
        """World metres of every patch, in the configured geometry precision."""
        dtype = self.geometry_dtype
        return patch_points(
            depths.to(dtype), poses.to(dtype), intrinsics.to(dtype), grid=self.settings.clip.grid
        )

    def embed_points(self, points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n c"]:
        """Embeddings of raw metres, to be added to patch features."""
        return self.model.video_tower["video_tower"]["positional_embedding"](points)

    def coordinate_tokens(self, clicks: Float[Tensor, "k 3"]) -> Float[Tensor, "k d"]:
        """One language-model token for every point [m] that a question names."""
        encoder = self.model.video_tower["prompt_encoder"]["pos_emb3d"]
        return encoder(clicks.to(self.geometry_dtype))

    def scene_tokens(
        self,
        images: Float[Tensor, "s v 3 h w"],
        depths: Float[Tensor, "s v h w"],
        poses: Float[Tensor, "s v 4 4"],
        intrinsics: Float[Tensor, "s v 4 4"],
        *,
        cap_seeds: Sequence[int] | None = None,
    ) -> list[SceneTokens]:
        """The visual tokens of every scene with all that led to them; ``visual_tokens`` has less.

        A scene with more occupied voxels than the cap keeps a random subset in random order, drawn
        from its entry of ``cap_seeds`` (0 if there are none).
        """
        features = self.clip_features(images.flatten(0, 1))  # [s*v p c]
        points = self.patch_points(depths, poses, intrinsics).flatten(1, 2)  # [s v*p 3]
        features = features.unflatten(0, images.shape[:2]).flatten(1, 2)  # [s v*p c]
        features = features + self.embed_points(points)
        seeds = [0] * len(images) if cap_seeds is None else cap_seeds
        scenes = []
        for scene, seed in zip(range(len(images)), seeds, strict=True):
            voxels = voxelise(points[scene], size=self.settings.voxel_size)
            pooled = pool(features[scene], voxels, dtype=self.geometry_dtype)
            kept = draw_kept(len(pooled), self.settings.max_visual_tokens, seed)
            scenes.append((voxels, pooled, None if kept is None else kept.to(pooled.device)))
        chosen = [pooled if kept is None else pooled[kept] for _, pooled, kept in scenes]
        tokens = self.model.mm_projector(torch.cat(chosen)).split([len(part) for part in chosen])
        return [
            SceneTokens(tokens=part, voxels=voxels, pooled=pooled, kept=kept)
            for part, (voxels, pooled, kept) in zip(tokens, scenes, strict=True)
        ]

    def visual_tokens(
        self,
        images: Float[Tensor, "s v 3 h w"],
        depths: Float[Tensor, "s v h w"],
        poses: Float[Tensor, "s v 4 4"],
        intrinsics: Float[Tensor, "s v 4 4"],
        *,
        cap_seeds: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """What the language model sees of every scene, ``[n d]`` each; n differs by scene.

        ``images`` are normalised for CLIP, ``depths`` metres along z (0 = none), ``poses`` camera
        to world, ``intrinsics`` for the crop with pixel centres on whole numbers
        (``preprocess.scene_inputs`` makes all four). Differentiable in the weights.
        """
        scenes = self.scene_tokens(images, depths, poses, intrinsics, cap_seeds=cap_seeds)
        return [scene.tokens for scene in scenes]

    def image_tokens(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p d"]:
        """The 2D path: every patch of a single image is a token, without any position."""
        return self.model.mm_projector(self.clip_features(images))

    def assemble(
        self,
        input_ids: Int[Tensor, "b t"],
        visual: Sequence[Tensor],
        *,
        clicks: Float[Tensor, "k 3"] | None = None,
        attention_mask: Int[Tensor, "b t"] | None = None,
        padding_side: str | None = None,
    ) -> Assembled:
        """Token ids with stand-ins to one padded batch of embeddings.

        Visual blocks and clicks are consumed in reading order over the whole batch. Scenes and
        single images may be mixed. To ``generate`` from a batch, pad on the left.

        Raises:
            BadInputError: the stand-ins do not match the blocks or the clicks in number.
        """
        blocks = self._blocks(input_ids, visual, clicks)
        rows = []
        for index, ids in enumerate(input_ids):
            if attention_mask is not None:
                ids = ids[attention_mask[index].bool()]
            rows.append(self._row(ids, blocks)[: self.settings.tokenizer_model_max_length])
        return _pad(rows, padding_side or self.settings.tokenizer_padding_side)

    def embed_prompt(
        self, ids: Sequence[int], clicks: Sequence[tuple[float, float, float]] = ()
    ) -> Float[Tensor, "t d"]:
        """Embeddings of words with a click [m] for every coordinate's stand-in, in order.

        Raises:
            BadInputError: more or fewer clicks than stand-ins.
        """
        row = torch.tensor([list(ids)], dtype=torch.long, device=self.device)
        points = torch.tensor(list(clicks), dtype=torch.float32, device=self.device)
        blocks = self._blocks(row, [], points.view(-1, 3))
        return self._row(row[0], blocks)

    def _blocks(
        self, input_ids: Tensor, visual: Sequence[Tensor], clicks: Tensor | None
    ) -> dict[int, list[Tensor]]:
        """What stands for each stand-in, in reading order."""
        blocks = {
            VISUAL_ID: list(visual),
            COORDINATE_ID: [] if clicks is None else list(self.coordinate_tokens(clicks)[:, None]),
        }
        for stand_in, parts in blocks.items():
            found = int((input_ids == stand_in).sum())
            if found != len(parts):
                raise BadInputError(
                    f"the prompts hold {found} stand-ins {stand_in}, but {len(parts)} were given"
                )
        return blocks

    def _row(self, ids: Tensor, blocks: dict[int, list[Tensor]]) -> Tensor:
        embed = self.get_input_embeddings()
        parts, start = [], 0
        for place in (ids < 0).nonzero()[:, 0].tolist():
            parts += [embed(ids[start:place]), blocks[int(ids[place])].pop(0)]
            start = place + 1
        return torch.cat([*parts, embed(ids[start:])])

    def prefix_embeds(
        self, before: Sequence[int], visual: Float[Tensor, "n d"]
    ) -> Float[Tensor, "1 m d"]:
        """What all questions of a scene share: the words before the scene, then its tokens."""
        words = torch.tensor(before, dtype=torch.long, device=visual.device)
        return torch.cat([self.get_input_embeddings()(words), visual])[None]

    @property
    def device(self) -> torch.device:
        """Where inputs go, also when the weights are offloaded."""
        return self.computes_on or super().device

    @property
    def geometry_dtype(self) -> torch.dtype:
        """Precision of depths, poses, points and of the means in voxels."""
        return getattr(torch, self.settings.geometry_dtype)


class _ClipLevel(nn.Module):
    """The level ``vision_model`` of the release's keys, which transformers 5 has not."""

    def __init__(self, config: LLaVA3DConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel(config.clip.transformers())


class _ClipTower(nn.Module):
    """CLIP vision up to the selected layer; what lies behind it is carried but never run."""

    def __init__(self, config: LLaVA3DConfig) -> None:
        super().__init__()
        self.layers_run = config.clip_layers_run
        self.vision_tower = _ClipLevel(config)

    def forward(self, images: Tensor) -> Tensor:
        clip = self.vision_tower.vision_model
        states = clip.pre_layrnorm(clip.embeddings(images))
        for layer in clip.encoder.layers[: self.layers_run]:
            states = layer(states, None)
        return states[:, 1:]


class _PointEncoder(nn.Module):
    """3D points [m] to vectors; no frequencies, no range, no centring."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Linear(3, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, points: Tensor) -> Tensor:
        weight = next(self.position_embedding_head.parameters())
        return self.position_embedding_head(points.to(weight.dtype))


def _pad(rows: Sequence[Tensor], side: str) -> Assembled:
    longest = max(len(row) for row in rows)
    embeds = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=embeds.device)
    for index, row in enumerate(rows):
        span = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        embeds[index, span] = row
        mask[index, span] = True
    return Assembled(embeds=embeds, mask=mask)
