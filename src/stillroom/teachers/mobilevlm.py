"""MobileVLM: a Llama, CLIP, and a projector that leaves 144 tokens of a picture.

After arXiv 2312.16886 (V1, ``ldpnet``) and 2402.03766 (V2, ``ldpnetv2``). transformers does not
know it; modules carry the names of the released checkpoints' keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from stillroom.records import BadInputError, Question
from stillroom.teachers.hub import commit_of, fetch
from stillroom.teachers.llava3d_config import KNOWN_TOWERS, ClipSize
from stillroom.teachers.llava3d_files import names_of_weights
from stillroom.teachers.mobilevlm_projector import light_projector
from stillroom.teachers.photos import with_instruction
from stillroom.teachers.preprocess import CLIP_MEAN, pixel_values
from stillroom.teachers.prompts import TEMPLATES, VISUAL_ID, HubTokenizer

#: The conversation that the release asks in.
TEMPLATE = TEMPLATES["v1"]

_CLIP = "model.vision_tower."


class MobileVLMConfig(LlamaConfig):
    """The released ``config.json``: a Llama's, with what the release adds to it."""

    model_type = "mobilevlm"
    # A transformers config takes more names than its fields: the shape checks of our tests, which
    # would bind the fields' own signature, leave it alone.
    __no_type_check__ = True

    # Hub page of the vision tower, and its sizes where that page's are not known here.
    mm_vision_tower: str = "openai/clip-vit-large-patch14-336"
    vision_config: dict[str, Any] | None = None
    # Which of the tower's hidden states is read; 0 is the embeddings.
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    # ldpnet or ldpnetv2.
    mm_projector_type: str = "ldpnet"
    # pad: photos are filled up to a square; else their middle is cut out.
    image_aspect_ratio: str | None = None
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = False

    @property
    def clip(self) -> ClipSize:
        """Sizes of the vision tower: written out, or those of a known hub page.

        Raises:
            BadInputError: neither.
        """
        if self.vision_config is not None:
            return ClipSize(**self.vision_config)
        if self.mm_vision_tower not in KNOWN_TOWERS:
            raise BadInputError(
                f"config.json names a vision tower {self.mm_vision_tower!r} without its sizes "
                f"(vision_config); known without: {', '.join(KNOWN_TOWERS)}"
            )
        return KNOWN_TOWERS[self.mm_vision_tower]

    @property
    def clip_layers_run(self) -> int:
        """CLIP layers before the selected hidden state.

        Raises:
            BadInputError: there is no such state.
        """
        layers, selected = self.clip.num_hidden_layers, self.mm_vision_select_layer
        run = selected if selected >= 0 else layers + 1 + selected
        if not 0 <= run <= layers:
            raise BadInputError(f"mm_vision_select_layer {selected} is none of {layers} layers")
        return run

    def refuse_what_differs(self) -> None:
        """Raises BadInputError for settings of the release's code that are not ported."""
        ported = {
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "mm_vision_select_feature": "patch",
        }
        for name, value in ported.items():
            if getattr(self, name) != value:
                raise BadInputError(
                    f"MobileVLM with {name} = {getattr(self, name)!r} is not known here, only "
                    f"with {value!r}"
                )


class MobileVLM(LlamaForCausalLM):
    """A Llama with CLIP and the projector hung into it under the release's names."""

    config_class = MobileVLMConfig

    def __init__(self, config: MobileVLMConfig) -> None:
        super().__init__(config)
        config.refuse_what_differs()
        self.model.vision_tower = _ClipTower(config)
        self.model.mm_projector = light_projector(
            config.mm_projector_type, config.clip.hidden_size, config.hidden_size
        )

    def visual_tokens(self, pixels: Float[Tensor, "v 3 h w"]) -> Float[Tensor, "v n d"]:
        """What the language model sees of each picture, row by row."""
        return self.model.mm_projector(self.model.vision_tower(pixels))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Float[Tensor, "v 3 h w"] | None = None,
        logits_to_keep: int = 0,
        **more: Any,
    ) -> Any:
        """As a Llama; ``pixel_values`` take the places of the ids -200, in reading order."""
        if pixel_values is None or input_ids is None:
            return super().forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **more)
        visual = self.visual_tokens(pixel_values).flatten(0, 1)
        places = input_ids == VISUAL_ID
        assert int(places.sum()) == len(visual), "a stand-in for every visual token"
        embeds = self.get_input_embeddings()(input_ids.clamp(min=0))
        embeds = embeds.masked_scatter(places[..., None], visual.to(embeds.dtype))
        return super().forward(inputs_embeds=embeds, logits_to_keep=logits_to_keep, **more)

    def fill_missing(self, missing: Iterable[str]) -> list[str]:
        """Take CLIP from its own page where a checkpoint has none of it; the keys still missing.

        Raises:
            BadInputError: the page cannot be had.
        """
        names = set(missing)
        tower = {name for name in self.state_dict() if name.startswith(_CLIP)}
        if not tower or not tower <= names:
            return sorted(names)
        page = self.config.mm_vision_tower
        try:
            clip = CLIPVisionModel.from_pretrained(page, dtype=self.dtype)
        except (OSError, ValueError):
            raise BadInputError(
                f"the checkpoint has no CLIP weights and they cannot be had from {page!r}; "
                "put them into the checkpoint or connect to the hub"
            ) from None
        self.model.vision_tower.vision_tower["vision_model"] = clip
        return sorted(names - tower)


def outside_tower(where: Path | str) -> Path | str | None:
    """Where ``fill_missing`` finds CLIP if it is not in a checkpoint: a folder, or a hub id at a
    commit.

    Raises:
        BadInputError: as ``fetch``, or the files cannot be read.
    """
    folder = fetch(where, weights=False)
    if not any(folder.glob("*.index.json")):
        folder = fetch(where)
    if any(name.startswith(_CLIP) for name in names_of_weights(folder)):
        return None
    page: str = MobileVLMConfig.from_pretrained(folder).mm_vision_tower
    return Path(page) if Path(page).is_dir() else f"{page}@{commit_of(page)}"


class _ClipTower(nn.Module):
    """CLIP vision up to the selected hidden state; what lies behind is carried but never run."""

    def __init__(self, config: MobileVLMConfig) -> None:
        super().__init__()
        self.layers_run = config.clip_layers_run
        clip = CLIPVisionModel(config.clip.transformers())
        self.vision_tower = nn.ModuleDict({"vision_model": clip})

    def forward(self, pixels: Float[Tensor, "v 3 h w"]) -> Float[Tensor, "v p c"]:
        clip: Any = self.vision_tower["vision_model"]
        states = clip.pre_layrnorm(clip.embeddings(pixels))
        for layer in clip.encoder.layers[: self.layers_run]:
            states = layer(states, None)
        return states[:, 1:]


# Prompts. ---------------------------------------------------------------------------------------


class MobileVLMPrompts:
    """``PromptMaker`` of MobileVLM: pieces of text around the pictures, each encoded by itself.

    The release asks about one picture; several stand one behind the other here.
    """

    image_token_id = VISUAL_ID

    def __init__(self, folder: Path, model: MobileVLM, *, instruction: str) -> None:
        config: Any = model.config
        self.eos_ids: tuple[int, ...] = (int(config.eos_token_id),)
        self.tokenizer = HubTokenizer(
            folder, bos_id=int(config.bos_token_id), eos_id=self.eos_ids[0]
        )
        self.instruction = instruction
        self.image_size = config.clip.image_size
        self.pads = config.image_aspect_ratio == "pad"
        self.tokens_per_picture = model.model.mm_projector.tokens(config.clip.grid)

    def open(self, images: Sequence[Image.Image]) -> MobileVLMScene:
        """Prompts about these photos."""
        return MobileVLMScene(self, images)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens and outer spaces."""
        return self.tokenizer.decode(ids)

    def pixels(self, image: Image.Image) -> Float32[np.ndarray, "3 s s"]:
        """A normalised square: filled up with CLIP's mean colour if the config says so, or cut."""
        if self.pads:
            image = _filled_up(image)
        return pixel_values(np.asarray(image.convert("RGB")), self.image_size)


class MobileVLMScene:
    """Photos of one scene for MobileVLM."""

    def __init__(self, maker: MobileVLMPrompts, images: Sequence[Image.Image]) -> None:
        self.maker = maker
        self.pixels = torch.from_numpy(np.stack([maker.pixels(image) for image in images]))
        visual = [VISUAL_ID] * (maker.tokens_per_picture * len(images))
        self.prefix = [*TEMPLATE.prefix_ids(maker.tokenizer), *visual]

    def whole(self, question: Question) -> dict[str, Tensor]:
        """Ids with -200 for every visual token, and the pictures."""
        ids = torch.tensor([[*self.prefix, *self.tail(question)]])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": self.pixels,
        }

    def tail(self, question: Question) -> list[int]:
        """Ids behind the last visual token."""
        return self.maker.tokenizer.encode(self._text(question))

    def reference(self, question: Question) -> list[int]:
        """Ids of the true answer as it would follow the prompt, with its end."""
        before = self.tail(question)
        both = self.maker.tokenizer.encode(f"{self._text(question)} {question.answer}")
        joined = both[: len(before)] == before
        ids = both[len(before) :] if joined else self.maker.tokenizer.encode(question.answer)
        return [*ids, self.maker.eos_ids[0]]

    def _text(self, question: Question) -> str:
        asked = with_instruction(question, self.maker.instruction)
        return f"{TEMPLATE.after_image}{asked}{TEMPLATE.assistant}"


def _filled_up(image: Image.Image) -> Image.Image:
    """The picture in the middle of a square of CLIP's mean colour."""
    width, height = image.size
    edge = max(width, height)
    colour = tuple(int(255 * float(mean)) for mean in CLIP_MEAN)
    square = Image.new("RGB", (edge, edge), colour)
    square.paste(image, ((edge - width) // 2, (edge - height) // 2))
    return square
