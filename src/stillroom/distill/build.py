"""A student put together from a recipe: the frozen encoder from its checkpoint, the rest fresh."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig

from stillroom.distill.config import DistillConfig, StudentSizes
from stillroom.distill.lora import add_lora
from stillroom.engine.initial import begin_copying, match_queries
from stillroom.records import BadInputError, DepthUnit
from stillroom.scenes.rooms import CATEGORIES
from stillroom.students.config import StillroomConfig, neox_config
from stillroom.students.encoders.load import EncoderConfig, encoder_config, load_encoder
from stillroom.students.encoders.vggt_load import made_by_us
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.teachers.measures import MEASURES
from stillroom.text.tokenizer import Tokenizer, load_tokenizer, open_tokenizer

#: All a student keeps of an encoder's heads: it reads patch tokens and its own depth.
KEPT_HEADS = ("depth_head",)

#: Published language models by hub id: counted before anything is fetched.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
    },
}
#: Settings of a checkpoint that the recipe's ``student`` has to agree with.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def student_config(
    config: DistillConfig,
    encoder: EncoderConfig,
    text: PretrainedConfig,
    tokenizer: Tokenizer | None = None,
    *,
    feature_width: int = 0,
    kinds: Sequence[str] = CATEGORIES,
    depth_unit: DepthUnit | None = None,
) -> StillroomConfig:
    """The transformers config of the student that a recipe describes.

    ``text`` is its language model's; ``tokenizer`` gives the ids that begin and end an answer, by
    default the made worlds'. ``feature_width`` is that of the teacher's features, 0 where there are
    none; ``depth_unit`` what the encoder's depth is told in, None for what its sizes suggest.
    """
    size, words = config.student, load_tokenizer() if tokenizer is None else tokenizer
    return StillroomConfig(
        encoder=encoder.to_dict(),
        text_config=text,
        vision_grid=size.vision_grid,
        vision_pool=size.vision_pool,
        slot_kind=config.slots.kind,
        slot_count=config.slots.used,
        slot_position=config.slots.position,
        visibility=config.mask,
        image_size=size.image_size or encoder.image_size,
        max_views=size.max_views,
        blind=not config.vision,
        train_depth_head=config.losses.depth_head,
        depth_unit=depth_unit,
        pad_token_id=words.pad_id,
        bos_token_id=words.bos_id,
        eos_token_id=words.eos_id,
        mention_level=size.mention_level,
        measure_level=size.measure_level,
        **_heads(config, feature_width, kinds),
    )


def _heads(config: DistillConfig, feature_width: int, kinds: Sequence[str]) -> dict[str, Any]:
    """Settings of the heads that the losses ask for; one that nothing trains is not made."""
    size, losses, found = config.student, config.losses, dict[str, Any]()
    if losses.measures:
        found["measures"] = len(MEASURES)
    if losses.detection:
        found |= {
            "detection_queries": size.detection_queries,
            "detection_width": size.detection_width,
            "detection_layers": size.detection_layers,
            "detection_kinds": list(kinds),
        }
    if losses.spatial:
        found["relation_width"] = size.relation_width
    if losses.spatial or losses.feature:
        found["feature_width"] = feature_width
    return found


def language_config(sizes: StudentSizes, tokenizer: Tokenizer | None = None) -> PretrainedConfig:
    """The language model of a student from scratch.

    Raises:
        BadInputError: the tokenizer has more entries than ``sizes`` gives the vocabulary.
    """
    words = load_tokenizer().vocab_size if tokenizer is None else tokenizer.vocab_size
    if tokenizer is not None and 0 < sizes.vocab_size < words:
        raise BadInputError(
            f"the tokenizer has {words} entries, the recipe's vocabulary {sizes.vocab_size}; "
            "change --student.vocab-size or --tokenizer"
        )
    return neox_config(
        hidden_size=sizes.hidden_size,
        layers=sizes.layers,
        heads=sizes.heads,
        intermediate_size=sizes.intermediate_size,
        vocab_size=sizes.vocab_size or words,
        tie_embeddings=sizes.tie_embeddings,
        rotary_share=sizes.rotary_share,
        rope_theta=sizes.rope_theta,
    )


def pretrained_config(
    where: Path | str, sizes: StudentSizes, tokenizer: Tokenizer | None = None
) -> PretrainedConfig:
    """The config of a published language model, in single precision.

    Without a tokenizer, to be counted and not built, a hub id of ``PUBLISHED`` needs no download.

    Raises:
        BadInputError: no such model, fewer entries than the tokenizer has, or other sizes than the
            recipe says.
    """
    if tokenizer is None and str(where) in PUBLISHED and not Path(where).is_dir():
        settings = dict(PUBLISHED[str(where)])
        found: PretrainedConfig = CONFIG_MAPPING[settings.pop("model_type")](**settings)
    else:
        found = _opened(AutoConfig.from_pretrained, where)
    # Its weights may be stored in half precision; training wants them whole.
    found.dtype = torch.float32
    words, known = 0 if tokenizer is None else tokenizer.vocab_size, found.vocab_size
    if words > known:
        raise BadInputError(
            f"{where} knows {known} tokens, the tokenizer has {words}; name a language model that "
            "was trained on it"
        )
    wanted = language_config(sizes).to_dict()
    for name in _SIZES:
        if getattr(found, name, None) != wanted[name]:
            raise BadInputError(
                f"the recipe's student has {name} {wanted[name]}, the language model {where} has "
                f"{getattr(found, name, None)}; change --student, or start from scratch with "
                "--language-model ''"
            )
    return found


def recipe_tokenizer(tokenizer: Path | str, language_model: Path | str) -> Tokenizer:
    """The tokenizer of a recipe: the one it names, its language model's, or the made worlds'.

    A language model's folder without a tokenizer is read by the made worlds'.

    Raises:
        BadInputError: no tokenizer there that can be read.
    """
    if tokenizer:
        return open_tokenizer(_tokenizer_folder(tokenizer))
    if language_model:
        folder = _tokenizer_folder(language_model)
        if (folder / "tokenizer.json").is_file():
            return open_tokenizer(folder)
    return load_tokenizer()


def _tokenizer_folder(where: Path | str) -> Path:
    """The folder itself, or one with a hub model's tokenizer and nothing else of it."""
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["tokenizer.json", "tokenizer_config.json"]
    try:
        return Path(snapshot_download(str(where), allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(
            f"tokenizer {str(where)!r} is neither a folder nor a hub model that can be fetched "
            f"({reason})"
        ) from None


def _opened(open_it: Callable[..., Any], where: Path | str, **options: Any) -> Any:
    try:
        return open_it(where, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(f"{where} is no language model's checkpoint: {reason}") from None


def described_student(
    config: DistillConfig, encoder: Path | str, language_model: Path | str = ""
) -> StillroomConfig:
    """The config of a recipe's student before anything of it is loaded or fetched.

    Sizes are read from the headers of checkpoints; those of published ones are known.

    Raises:
        BadInputError: no such encoder or language model.
    """
    text = (
        pretrained_config(language_model, config.student)
        if language_model
        else language_config(config.student)
    )
    found = encoder_config(encoder, heads=KEPT_HEADS)
    return student_config(config, found, text, feature_width=config.student.feature_width)


def build_student(
    config: DistillConfig,
    encoder: Path | str,
    language_model: Path | str = "",
    tokenizer: Path | str = "",
    *,
    feature_width: int = 0,
    kinds: Sequence[str] = CATEGORIES,
) -> tuple[StillroomStudent, StillroomProcessor]:
    """A student ready to be trained, drawn from the recipe's seed.

    ``encoder``, ``language_model`` and ``tokenizer`` are where those of the recipe lie. A student
    to go on from gets the heads that the losses ask for and it lacks. ``feature_width`` as in
    ``student_config``; ``kinds`` are what a new detector tells apart.

    Raises:
        BadInputError: no such encoder, language model or tokenizer, or ``start_from`` is no
            checkpoint of this recipe's student.
    """
    if config.start_from:
        student, processor = _gone_on_with(config)
        student = _with_heads(student, _heads(config, feature_width, kinds), config.train.seed)
        student.config.train_depth_head = config.losses.depth_head
        student.freeze()
    else:
        student, processor = _fresh(
            config, encoder, language_model, tokenizer, feature_width, kinds
        )
    if config.lora.rank:
        torch.manual_seed(config.train.seed)
        add_lora(student, config.lora)
    return student, processor


def _fresh(
    config: DistillConfig,
    encoder: Path | str,
    language_model: Path | str,
    tokenizer: Path | str,
    feature_width: int,
    kinds: Sequence[str],
) -> tuple[StillroomStudent, StillroomProcessor]:
    words = recipe_tokenizer(tokenizer, language_model)
    text = (
        pretrained_config(language_model, config.student, words)
        if language_model
        else language_config(config.student, words)
    )
    seen_by = load_encoder(encoder, heads=KEPT_HEADS)
    built = student_config(
        config,
        seen_by.config,
        text,
        words,
        feature_width=feature_width,
        kinds=kinds,
        depth_unit="metre" if made_by_us(encoder) else "scene",
    )
    torch.manual_seed(config.train.seed)
    student = StillroomStudent(built)
    if language_model:
        spoken = _opened(AutoModelForCausalLM.from_pretrained, language_model, dtype=torch.float32)
        student.language_model.load_state_dict(spoken.state_dict())
    elif config.student.mimetic_start:
        match_queries(student.language_model)
        if config.student.rotary_share == 1.0:
            begin_copying(student.language_model)
    # Taken as they are, not copied: an encoder of a billion parameters lies in memory once.
    student.encoder.load_state_dict(seen_by.state_dict(), assign=True)
    student.freeze()
    processor = StillroomProcessor(
        image_size=built.image_size, max_views=built.max_views, tokenizer=words
    )
    return student, processor


def _gone_on_with(config: DistillConfig) -> tuple[StillroomStudent, StillroomProcessor]:
    """The student of ``start_from``, if it is the one that the recipe describes."""
    where = config.start_from
    student: StillroomStudent = StillroomStudent.from_pretrained(where, dtype=torch.float32)
    processor = StillroomProcessor.from_pretrained(where)
    has = student.config
    # A copy: a config that joins another one is changed by it, and this one is in use.
    text = copy.deepcopy(has.language_model)
    wanted = student_config(config, has.encoder_sizes, text, processor.tokenizer)
    compared = {name: (getattr(has, name), getattr(wanted, name)) for name in _DESCRIBED}
    sizes = language_config(config.student).to_dict()
    compared |= {name: (getattr(has.language_model, name), sizes[name]) for name in _SIZES}
    for name, (there, asked) in compared.items():
        if there != asked:
            raise BadInputError(
                f"{where} is a student of another recipe: its {name} is {there}, the recipe's "
                f"{asked}; start from another checkpoint, or give the recipe its settings"
            )
    return student, processor


#: What a recipe settles of a student, besides the sizes of its language model.
_DESCRIBED = (
    "vision_grid",
    "vision_pool",
    "slot_kind",
    "slot_count",
    "slot_position",
    "visibility",
    "max_views",
    "blind",
)


def _with_heads(student: StillroomStudent, heads: dict[str, Any], seed: int) -> StillroomStudent:
    """The same student with heads it lacks, fresh; those it has stay as they were trained."""
    mine, width = student.config, heads.get("feature_width", 0)
    if width and mine.feature_width not in (0, width):
        raise BadInputError(
            f"the student to go on from was taught by features {mine.feature_width} wide, these "
            f"labels have {width}; start from scratch, or label with the same teacher"
        )
    if 0 < mine.detection_queries < heads.get("detection_queries", 0):
        raise BadInputError(
            f"the student to go on from has {mine.detection_queries} detection_queries, the recipe "
            f"{heads['detection_queries']}: it could not find that many things; ask for at most "
            f"--student.detection-queries {mine.detection_queries}"
        )
    wanted = copy.deepcopy(mine)
    for switch in ("measures", "detection_queries", "relation_width", "feature_width"):
        if heads.get(switch) and not getattr(mine, switch):
            kind = switch.split("_")[0]
            for name in (name for name in heads if name.startswith(kind)):
                setattr(wanted, name, heads[name])
    if wanted.to_dict() == mine.to_dict():
        return student
    torch.manual_seed(seed)
    grown = StillroomStudent(wanted)
    loaded = grown.load_state_dict(student.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    return grown
