"""Architecture of a BAGEL checkpoint, read from llm_config.json, vit_config.json and (when there) config.json."""

import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from reca_fast.errors import UserError

SECTIONS = ("llm_config", "vit_config", "bagel_config", "vae_config")
T = TypeVar("T")


def _pick(kind: type[T], values: Any, where: str) -> T:
    """Fill a dataclass from a dict that may hold more; a missing or impossible value is named with its key."""
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no settings (name: value).")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    needed = [name for name, f in known.items() if f.default is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{where} lacks {', '.join(missing)}; copy it from the public checkpoint.")
    chosen = {name: value for name, value in values.items() if name in known}
    for name, value in chosen.items():
        wanted: Any = known[name].type
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UserError(f"{where}: {name} is {value!r}, not of type {wanted.__name__}.")
        if wanted is int and value < 1 and name != "vit_select_layer":
            raise UserError(f"{where}: {name} is {value}; it must be at least 1.")
    try:
        return kind(**chosen)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None


def _check_multiple(config: Any, size: str, part: str) -> None:
    if getattr(config, size) % getattr(config, part):
        raise ValueError(f"{size} {getattr(config, size)} is no multiple of {part} {getattr(config, part)}")


@dataclass(frozen=True)
class LLMConfig:
    """Qwen2 mixture-of-transformers. Names as in llm_config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    qk_norm: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def __post_init__(self) -> None:
        if self.hidden_act != "silu" or self.tie_word_embeddings or not self.qk_norm:
            raise ValueError(
                "it describes another model: BAGEL has hidden_act=silu, tie_word_embeddings=false, "
                f"qk_norm=true, not {self.hidden_act}, {self.tie_word_embeddings}, {self.qk_norm}"
            )
        _check_multiple(self, "hidden_size", "num_attention_heads")
        _check_multiple(self, "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class ViTConfig:
    """SigLIP vision transformer in NaViT form. Names as in vit_config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int = 14
    num_channels: int = 3
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_multiple(self, "hidden_size", "num_attention_heads")


@dataclass(frozen=True)
class GlueConfig:
    """What the authors pass on the command line; the defaults are what the public checkpoint needs."""

    latent_patch_size: int = 2
    max_latent_size: int = 64
    vit_max_num_patch_per_side: int = 70
    connector_act: str = "gelu_pytorch_tanh"
    interpolate_pos: bool = False
    timestep_shift: float = 1.0
    vit_select_layer: int = -2

    def __post_init__(self) -> None:
        if self.interpolate_pos or self.connector_act != "gelu_pytorch_tanh":
            raise ValueError("interpolate_pos=true and connectors other than gelu_pytorch_tanh are not part of RECA")


@dataclass(frozen=True)
class BagelConfig:
    """The whole model. `vae` is the dict of a config.json, empty for the public FLUX VAE."""

    llm: LLMConfig
    vit: ViTConfig
    glue: GlueConfig = field(default_factory=GlueConfig)
    vae: dict[str, Any] = field(default_factory=dict)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.get("z_channels", 16))

    @property
    def latent_downsample(self) -> int:
        return int(self.vae.get("downsample", 8))

    @property
    def latent_stride(self) -> int:
        """Pixels per latent token along one side."""
        return self.latent_downsample * self.glue.latent_patch_size

    @property
    def patch_latent_dim(self) -> int:
        return self.glue.latent_patch_size**2 * self.latent_channels

    @property
    def vit_layers(self) -> int:
        """Layers that exist: everything after the selected one is never built."""
        return self.vit.num_hidden_layers + 1 + self.glue.vit_select_layer

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "BagelConfig":
        """From one dict with llm_config, vit_config, vae_config and bagel_config (a parity case's config.json)."""
        for name in ("llm_config", "vit_config"):
            if name not in values:
                raise UserError(f"{where} has no {name}.")
        return cls._from_sections(values, {name: f"{name} of {where}" for name in SECTIONS})

    @classmethod
    def _from_sections(cls, values: dict[str, Any], where: dict[str, str]) -> "BagelConfig":
        vae = values.get("vae_config", {})
        if not isinstance(vae, dict):
            raise UserError(f"{where['vae_config']} holds no settings (name: value).")
        return cls(
            llm=_pick(LLMConfig, values["llm_config"], where["llm_config"]),
            vit=_pick(ViTConfig, values["vit_config"], where["vit_config"]),
            glue=_pick(GlueConfig, values.get("bagel_config", {}), where["bagel_config"]),
            vae=vae,
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "BagelConfig":
        """From a checkpoint folder. The public one has no vae_config and bagel_config: its constants are the
        defaults.
        """
        if not folder.is_dir():
            raise UserError(f"The checkpoint folder {folder} does not exist; set model.path to a BAGEL folder.")
        values = {
            "llm_config": read_json(folder / "llm_config.json"),
            "vit_config": read_json(folder / "vit_config.json"),
        }
        extra = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
        values |= {name: extra[name] for name in ("vae_config", "bagel_config") if name in extra}
        files = {name: str(folder / f"{name}.json") for name in ("llm_config", "vit_config")}
        return cls._from_sections(values, {name: f"{name} of {folder / 'config.json'}" for name in SECTIONS} | files)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a UserError that names the file."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; check that the folder is the right one and whole.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object.")
    return values
