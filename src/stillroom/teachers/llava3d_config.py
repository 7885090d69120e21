"""What a LLaVA-3D is made of, in the layout of the released ``config.json``; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.records import BadInputError, require_file
from stillroom.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, LlamaConfig

TemplateName = Literal["llava_v1", "v1", "mini"]


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """The vision tower; the defaults are CLIP ViT-L/14-336."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    # Edge of the square crop and of its patches, in pixels.
    image_size: int = 336
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768

    @property
    def grid(self) -> int:
        """Patches along one edge."""
        return self.image_size // self.patch_size

    def transformers(self) -> CLIPVisionConfig:
        """The same for transformers."""
        from transformers import CLIPVisionConfig

        return CLIPVisionConfig(**asdict(self))


#: What a user may choose of ``TeacherOptions``.
OPTIONS = frozenset(
    {
        *("dtype", "quantizer", "geometry", "template", "task", "vision", "frames", "topk"),
        *("max_new_tokens", "attention_layers", "share_scene", "device", "offload"),
    }
)
#: Vision towers that the release names by their hub page, where no ``vision_config`` is written.
KNOWN_TOWERS = {"openai/clip-vit-large-patch14-336": ClipSize()}

# Written for the release's loader; read only to refuse what this port does not do.
_FIXED: dict[str, Any] = {
    "mm_video_tower": "SpatialAwareModule",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_patch_merge_type": "flat",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "rope_scaling": None,
    "attention_bias": False,
}


@dataclass(frozen=True, kw_only=True)
class LLaVA3DConfig:
    """Sizes and habits of a LLaVA-3D; the defaults are the released 7B."""

    # The language model: a plain Llama.
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    vocab_size: int = 32000
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0
    # Hub page of the vision tower, asked only when a checkpoint lacks its weights.
    mm_vision_tower: str = "openai/clip-vit-large-patch14-336"
    clip: ClipSize = field(default_factory=ClipSize)
    # Hidden state of the tower that is used; -2 is the output of the last layer but one.
    mm_vision_select_layer: int = -2
    # Views per scene.
    num_frames: int = 20
    # A single photo: square cuts its middle out, pad adds bars.
    image_aspect_ratio: Literal["square", "pad"] = "square"
    tokenizer_padding_side: Literal["right", "left"] = "right"
    tokenizer_model_max_length: int = 4096
    # Constants of the release's code. Metres; visual tokens per scene.
    voxel_size: float = 0.2
    max_visual_tokens: int = 2560
    # The frame that the model reads: the scene's own, or the one below its first camera.
    frame: Literal["source", "view0"] = "source"
    # bfloat16 repeats the released evaluation, which rounds depths, poses and points.
    geometry_dtype: Literal["float32", "bfloat16"] = "float32"
    # Words around the question; see prompts.py.
    prompt: TemplateName = "llava_v1"
    # Who sees whom in the language model; the release is causal throughout.
    visibility: Literal["causal", "prefix"] = "causal"
    # Longest answer, in tokens.
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        for sizes in (self, self.clip):
            _check_sizes(sizes)
        for which, sizes in (("the", self), ("the vision tower's", self.clip)):
            if sizes.hidden_size % sizes.num_attention_heads:
                raise BadInputError(
                    f"{which} hidden_size {sizes.hidden_size} is no multiple of its "
                    f"num_attention_heads {sizes.num_attention_heads}"
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise BadInputError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.clip.patch_size > self.clip.image_size:
            raise BadInputError(
                f"the vision tower's patch_size {self.clip.patch_size} is larger than its "
                f"image_size {self.clip.image_size}"
            )
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise BadInputError(
                    f"config.json has {name} = {getattr(self, name)}, outside of its "
                    f"{self.vocab_size} entries"
                )
        layers = self.clip.num_hidden_layers
        if not -layers - 1 <= self.mm_vision_select_layer <= layers:
            raise BadInputError(
                f"mm_vision_select_layer {self.mm_vision_select_layer} is not among the "
                f"{layers + 1} hidden states of the vision tower"
            )

    def adjusted(self, options: TeacherOptions) -> LLaVA3DConfig:
        """The same with what a user chose in place of the checkpoint's own habits.

        Raises:
            BadInputError: an option that LLaVA-3D has not.
        """
        options.only(OPTIONS, of="LLaVA-3D")
        chosen = {
            "geometry_dtype": None if options.geometry == "auto" else options.geometry,
            "prompt": None if options.template == "auto" else options.template,
            "num_frames": options.frames,
            "max_new_tokens": options.max_new_tokens,
        }
        return replace(self, **{k: v for k, v in chosen.items() if v is not None})  # type: ignore[arg-type]

    def habits(self) -> dict[str, Any]:
        """How scenes are read and questions worded: what a fingerprint says beside the weights."""
        names = ("frame", "num_frames", "voxel_size", "max_visual_tokens", "geometry_dtype")
        return {n: getattr(self, n) for n in (*names, "prompt", "visibility", "max_new_tokens")}

    @property
    def clip_layers_run(self) -> int:
        """Layers of the vision tower up to the selected hidden state; later ones are not run."""
        select = self.mm_vision_select_layer
        return select if select >= 0 else self.clip.num_hidden_layers + 1 + select

    def llama(self) -> LlamaConfig:
        """The language model's part, for transformers."""
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            hidden_act=self.hidden_act,
            tie_word_embeddings=self.tie_word_embeddings,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
            pad_token_id=self.pad_token_id,
        )

    def to_json(self, *, torch_dtype: str) -> dict[str, Any]:
        """The released ``config.json``'s layout, with this port's few fields beside it."""
        own = asdict(self)
        clip = own.pop("clip")
        return {
            "architectures": ["LlavaLlamaForCausalLM"],
            "model_type": "llava_llama",
            "torch_dtype": torch_dtype,
            "mm_hidden_size": self.clip.hidden_size,
            **_FIXED,
            **own,
            "vision_config": clip,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], *, folder: Path | None = None) -> LLaVA3DConfig:
        """Read the released layout; fields that the release does not write keep their defaults.

        Where the vision tower is a folder, perhaps within ``folder``, its sizes are read there.

        Raises:
            BadInputError: no LLaVA-3D, a field of the wrong type, or a feature this port lacks.
        """
        if raw.get("model_type", "llava_llama") not in ("llava_llama", "llava3d"):
            raise BadInputError(
                f"config.json describes a {raw['model_type']!r}, expected model_type 'llava_llama'"
            )
        for name, expected in _FIXED.items():
            if name in raw and raw[name] not in (expected, None):
                raise BadInputError(
                    f"config.json has {name} = {raw[name]!r}; only {expected!r} is supported"
                )
        # A null stands where transformers writes what nobody set.
        values = {
            f.name: raw[f.name]
            for f in fields(cls)
            if raw.get(f.name) is not None and f.name != "clip"
        }
        if "num_attention_heads" in values:
            values.setdefault("num_key_value_heads", values["num_attention_heads"])
        values["rope_theta"] = _rope_theta(raw)
        tower = str(values.get("mm_vision_tower", cls.mm_vision_tower))
        values["clip"] = _clip(raw, tower, folder)
        config = cls(**_checked(cls, values))
        width = raw.get("mm_hidden_size", config.clip.hidden_size)
        if width != config.clip.hidden_size:
            raise BadInputError(
                f"config.json has mm_hidden_size {width} but its vision tower is "
                f"{config.clip.hidden_size} wide"
            )
        return config

    @classmethod
    def read(cls, folder: Path) -> LLaVA3DConfig:
        """``config.json`` of a checkpoint folder.

        Raises:
            BadInputError: the file is missing, no JSON object, or not a LLaVA-3D.
        """
        return cls.from_json(read_json(folder / "config.json", "config.json"), folder=folder)


def read_json(file: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file. Raises BadInputError naming ``what`` otherwise."""
    try:
        raw = json.loads(require_file(file, what).read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInputError(f"{file} is not readable JSON ({error})") from None
    if not isinstance(raw, dict):
        raise BadInputError(f"{file} must hold a JSON object, got {type(raw).__name__}")
    return raw


def _rope_theta(raw: Mapping[str, Any]) -> float:
    """Transformers 4 wrote ``rope_theta`` at the top, 5 writes it inside ``rope_parameters``."""
    nested = raw.get("rope_parameters") or {}
    if not isinstance(nested, Mapping) or nested.get("rope_type", "default") != "default":
        raise BadInputError(
            f"config.json has rope_parameters {nested!r}; only rope_type 'default' is supported"
        )
    theta = raw.get("rope_theta", nested.get("rope_theta", LLaVA3DConfig.rope_theta))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < 1e12:
        raise BadInputError(f"config.json has rope_theta = {theta!r}, expected something like 1e4")
    return float(theta)


def tower_folder(tower: str, folder: Path | None) -> Path | None:
    """The vision tower's own folder, as it is or within the checkpoint's; None for a hub page."""
    places = [Path(tower)] if folder is None else [folder / tower, Path(tower)]
    return next((place for place in places if tower and place.is_dir()), None)


def _clip(raw: Mapping[str, Any], tower: str, folder: Path | None) -> ClipSize:
    written = raw.get("vision_config")
    place = tower_folder(tower, folder)
    if written is None and place is not None:
        written = read_json(place / "config.json", "the vision tower's config.json")
        written = written.get("vision_config", written)
    if written is None:
        if tower not in KNOWN_TOWERS:
            raise BadInputError(
                f"config.json names the vision tower {tower!r} without its sizes; "
                "add them as vision_config"
            )
        return KNOWN_TOWERS[tower]
    if not isinstance(written, Mapping):
        raise BadInputError("config.json's vision_config must be an object of sizes")
    values = {f.name: written[f.name] for f in fields(ClipSize) if f.name in written}
    return ClipSize(**_checked(ClipSize, values))


def _check_sizes(sizes: LLaVA3DConfig | ClipSize) -> None:
    """Refuse sizes that no model has, before anything is built from them."""
    for f in fields(sizes):
        value = getattr(sizes, f.name)
        if f.name in _LIMITS and not 0 < value <= _LIMITS[f.name]:
            raise BadInputError(
                f"config.json has {f.name} = {value!r}, expected more than 0 and at most "
                f"{_LIMITS[f.name]}"
            )


def _checked(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse a text where a number should stand, before it fails deep inside a layer."""
    checked = dict(values)
    for f in fields(cls):
        if f.name not in values or f.name == "clip":
            continue
        default: Any = f.default
        value = values[f.name]
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if not isinstance(value, kinds) or (
            isinstance(value, bool) and not isinstance(default, bool)
        ):
            raise BadInputError(
                f"config.json has {f.name} = {value!r}, expected something like {default!r}"
            )
        if isinstance(default, float):
            checked[f.name] = float(value)
        allowed = _CHOICES.get(f.name)
        if allowed is not None and value not in allowed:
            raise BadInputError(
                f"config.json has {f.name} = {value!r}, expected one of {', '.join(allowed)}"
            )
    return checked


_CHOICES = {
    "hidden_act": ("silu", "gelu", "quick_gelu", "gelu_new", "gelu_pytorch_tanh", "relu"),
    "tokenizer_padding_side": ("right", "left"),
    "image_aspect_ratio": ("square", "pad"),
    "frame": ("source", "view0"),
    "geometry_dtype": ("float32", "bfloat16"),
    "prompt": ("llava_v1", "v1", "mini"),
    "visibility": ("causal", "prefix"),
}

#: Largest sizes that are taken: far above any published model, far below what exhausts memory.
_LIMITS: dict[str, float] = {
    "hidden_size": 65_536,
    "intermediate_size": 262_144,
    "num_hidden_layers": 512,
    "num_attention_heads": 1_024,
    "num_key_value_heads": 1_024,
    "vocab_size": 1_048_576,
    "max_position_embeddings": 1_048_576,
    "tokenizer_model_max_length": 1 << 62,
    "image_size": 4_096,
    "patch_size": 4_096,
    "projection_dim": 65_536,
    "num_frames": 100_000,
    "voxel_size": 100.0,
    "max_visual_tokens": 1_048_576,
    "max_new_tokens": 1_048_576,
    "rms_norm_eps": 1.0,
    "layer_norm_eps": 1.0,
}
