"""The student: geometry encoder, connector, thinking slots, language model, heads.

``[V] [T_1..T_K] [Q] <bos> [A] <eos>``: vision tokens, slots, the question, and the answer, whose
first token is predicted from ``<bos>``. The same row is trained (``forward_packed``), decoded in a
session (``session.py``) and by ``generate``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from stillroom.engine.generate import Choices, greedy
from stillroom.engine.mask import Kind
from stillroom.engine.packing import (
    IGNORE_INDEX,
    Packed,
    pack_questions,
    prompt_layout,
    stack_rows,
)
from stillroom.engine.prefix import PackedStates, ScenePrefix, prefill, read_packed
from stillroom.records import BadInputError
from stillroom.students.config import StillroomConfig
from stillroom.students.connector import Connector, VisionFeatures, pool_features
from stillroom.students.detector import Detector
from stillroom.students.encoders.load import make_encoder, trunk_of
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_config import Head
from stillroom.students.heads import (
    DepthBins,
    FeatureProjector,
    Measures,
    MentionBoxes,
    Relations,
)
from stillroom.students.processor import StillroomProcessor
from stillroom.students.quantised import quantise_structure
from stillroom.students.slots import Slots

#: Modules that draw their own start values.
_OUR_PARTS = (
    Connector,
    Slots,
    DepthBins,
    MentionBoxes,
    Measures,
    Detector,
    Relations,
    FeatureProjector,
)

#: Options of ``generate`` under which greedy decoding gives what was asked for.
_GREEDY: Mapping[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0.0,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "bad_words_ids": (),
    "return_dict_in_generate": (False,),
}
#: Options that change no answer.
_HARMLESS = {"use_cache", "pad_token_id", "generation_config", "synced_gpus"}


class StillroomStudent(PreTrainedModel, GenerationMixin):
    """Answers questions about a scene from photos, and says where it believes things to be."""

    config: StillroomConfig
    config_class = StillroomConfig
    base_model_prefix = "student"
    main_input_name = "input_ids"
    # transformers' own would drop the keys and values through which questions read V; training has
    # its own (training/precision.py).
    supports_gradient_checkpointing = False
    _supports_sdpa = True

    def __init__(self, config: StillroomConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        sizes = config.encoder_sizes
        #: What the names of the encoder's trunk begin with.
        self.encoder_trunk = trunk_of(sizes)
        # Every part draws from a seed of its own: others or none beside it change nothing of it.
        self._seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        with self._draws("encoder"):
            self.encoder = make_encoder(sizes)
        with self._draws("Connector"):
            self.connector = Connector(sizes.token_width, width)
        self.slots = Slots(config.slot_kind, config.slot_count, width)
        with self._draws("DepthBins"):
            self.depth_bins = DepthBins(
                width, bins=config.depth_bins, near=config.depth_near, far=config.depth_far
            )
        with self._draws("MentionBoxes"):
            self.mention_boxes = MentionBoxes(width)
        with self._draws("language_model"):
            self.language_model = AutoModelForCausalLM.from_config(
                config.language_model, attn_implementation=config._attn_implementation
            )
        self._add_heads(config, width)
        self.post_init()
        if config.weights != "full":
            quantise_structure(self, config.weights)
        self.freeze()

    def _add_heads(self, config: StillroomConfig, width: int) -> None:
        """The heads that a config asks for; the others are None."""
        self.measures: Measures | None = None
        self.detector: Detector | None = None
        self.relations: Relations | None = None
        self.feature_projector: FeatureProjector | None = None
        if config.measures:
            with self._draws("Measures"):
                self.measures = Measures(width, config.measures)
        if config.detection_queries:
            with self._draws("Detector"):
                self.detector = Detector(
                    width,
                    queries=config.detection_queries,
                    width=config.detection_width,
                    layers=config.detection_layers,
                    kinds=len(config.detection_kinds or ()),
                )
        if config.relation_width:
            with self._draws("Relations"):
                self.relations = Relations(width, width=config.relation_width)
        if config.feature_width:
            with self._draws("FeatureProjector"):
                self.feature_projector = FeatureProjector(width, config.feature_width)

    def _init_weights(self, module: nn.Module) -> None:
        """Start values of our own parts; encoder and language model have drawn theirs."""
        if isinstance(module, _OUR_PARTS):
            # Each kind of part is there once.
            with self._draws(f"{type(module).__name__}, start values"):
                module.reset_parameters()

    @contextmanager
    def _draws(self, part: str) -> Iterator[None]:
        """Random numbers that depend on the student's seed and on the part alone."""
        with torch.random.fork_rng(devices=[]):
            name = hashlib.sha256(f"{self._seed} {part}".encode()).digest()
            torch.default_generator.manual_seed(int.from_bytes(name[:7], "big"))
            yield

    def freeze(self) -> None:
        """Take the gradient from what the config says is not trained."""
        if self.config.freeze_encoder:
            self.encoder.requires_grad_(False)
        if self.config.train_depth_head and isinstance(self.encoder, VGGT):
            self.encoder.depth_head.requires_grad_(True)
        if self.config.slot_kind == "frozen_random":
            self.slots.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another token embedding into the language model."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's output matrix."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another output matrix into the language model."""
        self.language_model.set_output_embeddings(new_embeddings)

    # Seeing. ------------------------------------------------------------------------------------

    def features(self, images: Float[Tensor, "b v 3 h w"]) -> VisionFeatures:
        """What the encoder says of photos in 0..1; the same every time if it is frozen."""
        config = self.config
        learns = config.train_depth_head or not config.freeze_encoder
        keep_gradient = torch.is_grad_enabled() and learns
        heads: tuple[Head, ...] = ("depth",) if config.encoder_sizes.depth_head else ()
        with torch.set_grad_enabled(keep_gradient):
            seen = self.encoder.encode(images, [config.round_read], heads=heads)
            return pool_features(
                seen.tokens[config.round_read],
                seen.depth,
                rows=images.shape[-2] // config.encoder_sizes.patch_size,
                grid=config.vision_grid,
            )

    def cells(self, features: VisionFeatures) -> Float[Tensor, "b v c d"]:
        """The connector's tokens, cell by cell: what the heads read."""
        if self.config.blind:
            features = VisionFeatures(
                tokens=torch.zeros_like(features.tokens), depth=torch.zeros_like(features.depth)
            )
        return self.connector(features)

    def pool_cells(self, cells: Float[Tensor, "b v c d"]) -> Float[Tensor, "b n d"]:
        """The connector's tokens as the language model reads them."""
        tokens = cells.flatten(1, 2)
        return tokens.mean(dim=1, keepdim=True) if self.config.vision_pool == "mean" else tokens

    def vision_tokens(self, features: VisionFeatures) -> Float[Tensor, "b n d"]:
        """The prefix V of each scene."""
        return self.pool_cells(self.cells(features))

    def vision_length(self, views: int) -> int:
        """Number of vision tokens of a scene with so many views."""
        return 1 if self.config.vision_pool == "mean" else views * self.config.vision_grid**2

    # Training. ----------------------------------------------------------------------------------

    def embed(self, kind: Int[Tensor, "b t"], ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Embeddings of all that stands behind V: tokens by id, slots in their order."""
        embeds = self.get_input_embeddings()(ids)
        if not self.slots.count:
            return embeds
        is_slot = kind == Kind.T
        # Slots come in whole runs, so that counting them along the row numbers them.
        index = (is_slot.cumsum(dim=1) - 1).remainder(self.slots.count)
        return torch.where(is_slot[..., None], self.slots()[index].to(embeds.dtype), embeds)

    def packed_states(
        self, vision_tokens: Float[Tensor, "b n d"], packed: Packed, levels: Sequence[int] = ()
    ) -> PackedStates:
        """Hidden states of packed rows; ``levels`` asks for those after so many layers too."""
        n = packed.prefix_length
        if vision_tokens.shape[1] != n:
            raise ValueError(f"the rows expect {n} vision tokens, got {vision_tokens.shape[1]}")
        text = self.embed(packed.kind[:, n:], packed.ids[:, n:])
        return read_packed(
            self.language_model,
            vision_tokens.to(text.dtype),
            text,
            packed,
            visibility=self.config.visibility,
            levels=levels,
        )

    def forward_packed(
        self, vision_tokens: Float[Tensor, "b n d"], packed: Packed
    ) -> Float[Tensor, "a vocabulary"]:
        """Logits where ``packed.labels`` has a label, row by row, and nowhere else."""
        return self.labelled_logits(self.packed_states(vision_tokens, packed), packed)

    def labelled_logits(
        self, states: PackedStates, packed: Packed
    ) -> Float[Tensor, "a vocabulary"]:
        """The same from hidden states."""
        labelled = packed.labels[:, packed.prefix_length :] != IGNORE_INDEX
        return self.get_output_embeddings()(states.text[labelled])

    def forward(
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b t"] | None = None,
        pixel_values: Float[Tensor, "b v 3 h w"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        features: VisionFeatures | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """One question per row, as transformers hands it: loss and logits ``[b t v]``.

        ``input_ids`` is the question and ``<bos>`` (the processor's output), then the answer where
        ``labels`` are not -100; padding is at the end. V and slots are put before them here.

        Raises:
            BadInputError: neither photos nor features are given.
        """
        vision = self.vision_tokens(self._seen(pixel_values, features))
        n = vision.shape[1]
        packed = self._rows(input_ids, attention_mask, labels, n).to(vision.device)
        states = self.packed_states(vision, packed).text
        kind = packed.kind[:, n:]
        spoken = (kind == Kind.Q) | (kind == Kind.A)
        here = _valid(input_ids, attention_mask)
        aligned = states.new_zeros(*input_ids.shape, states.shape[-1])
        aligned[here] = states[spoken]
        logits = self.get_output_embeddings()(aligned)
        loss = None
        if labels is not None:
            targets = torch.full_like(input_ids, IGNORE_INDEX)
            targets[here] = packed.labels[:, n:][spoken]
            loss = F.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def _seen(self, pixel_values: Tensor | None, features: VisionFeatures | None) -> VisionFeatures:
        if features is not None:
            return features
        if pixel_values is None:
            raise BadInputError("a student answers about photos; give pixel_values or features")
        return self.features(pixel_values)

    def _rows(
        self, input_ids: Tensor, mask: Tensor | None, labels: Tensor | None, prefix: int
    ) -> Packed:
        """Rows of one question each; an answer is what carries labels."""
        valid = _valid(input_ids, mask)
        answer = torch.zeros_like(valid) if labels is None else labels != IGNORE_INDEX
        rows = []
        for ids, keep, said in zip(input_ids, valid, answer, strict=True):
            prompt = ids[keep & ~said].tolist()
            pair = (prompt[:-1], ids[keep & said].tolist())
            rows.append(
                pack_questions([pair], prefix_length=prefix, start_id=prompt[-1], **self._slots)
            )
        return stack_rows(rows)

    @property
    def _slots(self) -> dict[str, Any]:
        return {"slots": self.config.slot_count, "slot_position": self.config.slot_position}

    # Answering. ---------------------------------------------------------------------------------

    @torch.no_grad()
    def open_prefix(self, features: VisionFeatures, *, plain: bool = False) -> ScenePrefix:
        """One scene read by the language model; its questions share this.

        ``plain`` reads with the language model's own ``forward`` (``engine/decoder.py``).
        """
        return prefill(
            self.language_model,
            self.vision_tokens(features),
            visibility=self.config.visibility,
            plain=plain,
        )

    @torch.no_grad()
    def prompt(self, question_ids: Sequence[int]) -> Float[Tensor, "t d"]:
        """Embeddings of slots, question and ``<bos>``: what ``greedy`` goes on from."""
        start = self.config.bos_token_id
        assert start is not None
        kind, ids = prompt_layout(question_ids, start_id=start, **self._slots)
        embeds = self.get_input_embeddings()(torch.tensor(ids, device=self.device))
        if self.slots.count:
            first = kind.index(int(Kind.T))
            embeds[first : first + self.slots.count] = self.slots()
        return embeds

    @torch.no_grad()
    def answer_ids(
        self,
        prefix: ScenePrefix,
        questions: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | None = None,
        choices: Sequence[Choices] = (),
        plain: bool = False,
    ) -> list[list[int]]:
        """Greedy answers to tokenised questions, ``<eos>`` included where it came in time.

        ``choices`` holds the answers each question allows, none for any text; ``plain`` as in
        ``open_prefix``.
        """
        said = greedy(
            self.language_model,
            prefix,
            [self.prompt(ids) for ids in questions],
            visibility=self.config.visibility,
            max_new_tokens=max_new_tokens or self.config.max_answer_tokens,
            eos_id=self.eos_id,
            scored=False,
            choices=choices,
            plain=plain,
        )
        return [decoded.ids for decoded in said]

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        eos = self.config.eos_token_id
        return int(eos[0] if isinstance(eos, list) else eos or 0)

    @torch.no_grad()
    def generate(  # type: ignore[override]  # greedy only, so most of the mixin's options are gone
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b t"] | None = None,
        pixel_values: Float[Tensor, "b v 3 h w"] | None = None,
        features: VisionFeatures | None = None,
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> Int[Tensor, "b u"]:
        """The prompts followed by their greedy answers, padded at the end.

        Each is read anew by the language model's own ``forward``: what a session, which is several
        times as fast, has to agree with token by token.

        Raises:
            BadInputError: no photos, a prompt that does not end with ``<bos>``, or an option that
                asks for another way of decoding or is not known.
        """
        _require_greedy(options, self.generation_config)
        if max_new_tokens is None:
            max_new_tokens = getattr(options.get("generation_config"), "max_new_tokens", None)
        seen = self._seen(pixel_values, features)
        rows = []
        for index, (ids, keep) in enumerate(
            zip(input_ids, _valid(input_ids, attention_mask), strict=True)
        ):
            prompt = ids[keep].tolist()
            if not prompt or prompt[-1] != self.config.bos_token_id:
                raise BadInputError(
                    f"prompt {index} must end with <bos> (id {self.config.bos_token_id}); make it "
                    "with the student's processor"
                )
            prefix = self.open_prefix(_scene(seen, index), plain=True)
            (answer,) = self.answer_ids(
                prefix, [prompt[:-1]], max_new_tokens=max_new_tokens, plain=True
            )
            rows.append(torch.cat([ids, torch.tensor(answer, device=ids.device)]))
        return nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=self.config.pad_token_id or 0
        )

    # Keeping. -----------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what it passes on, it takes by name
        cls, where: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
        """A student from a folder or the hub, safetensors only.

        Raises:
            BadInputError: nothing there, another model's checkpoint, or a file cut short.
        """
        _check_kind(Path(where))
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"output_loading_info": True, "use_safetensors": True}
        try:
            loaded: Any = super().from_pretrained(where, *args, **kwargs)
        except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
            raise BadInputError(
                f"{where} holds no student that can be read ({_first_line(error)}); "
                "name a folder that 'stillroom distill' wrote"
            ) from error
        student, info = loaded
        wrong = [*info["missing_keys"], *info["unexpected_keys"]]
        if wrong:
            raise BadInputError(
                f"{where} is no checkpoint of this student: {len(wrong)} weights do not fit, "
                f"first {sorted(wrong)[0]}"
            )
        student.freeze()
        return (student, info) if wants_info else student


def _require_greedy(options: Mapping[str, Any], standing: Any) -> None:
    """Refuse options of ``generate``, of its ``generation_config`` or of the ``standing`` one, that
    greedy decoding has not: an answer that is not what was asked for is worse than none."""
    unknown = sorted(options.keys() - _GREEDY.keys() - _HARMLESS)
    if unknown:
        raise BadInputError(
            f"a student's generate knows no {unknown[0]}; leave {unknown[0]} out (max_new_tokens "
            "says how long an answer may be)"
        )
    config = options.get("generation_config") or standing
    for name, neutral in _GREEDY.items():
        asked = options.get(name, getattr(config, name, None))
        if asked not in (None, *neutral):
            raise BadInputError(
                f"a student answers greedily and has no {name}={asked!r}; leave {name} out"
            )


def _valid(input_ids: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()


def _scene(features: VisionFeatures, index: int) -> VisionFeatures:
    return VisionFeatures(
        tokens=features.tokens[index : index + 1], depth=features.depth[index : index + 1]
    )


def _check_kind(where: Path) -> None:
    """Refuse another model's folder: transformers would read its config as if it were ours."""
    try:
        kind = json.loads((where / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return  # not a folder of ours to read: transformers says what is wrong with it
    if kind != StillroomConfig.model_type:
        raise BadInputError(f"{where} holds a {kind} model, not a student; name a student's folder")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _register() -> None:
    """Make the Auto classes of transformers know a student's folder by its ``config.json``."""
    AutoConfig.register("stillroom", StillroomConfig, exist_ok=True)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
        auto.register(StillroomConfig, StillroomStudent, exist_ok=True)
    AutoProcessor.register(StillroomConfig, StillroomProcessor, exist_ok=True)


# The one thing done on import: the Auto classes can only find what has been registered.
_register()
