"""Sizes of a BAGEL checkpoint, read from its llm_config.json, vit_config.json and, where it has one, config.json."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from reca_fast.errors import UserError
from reca_fast.models.files.folder import REMEDY, check_links, read_object
from reca_fast.models.parts.kl_vae_config import KLVAEConfig
from reca_fast.models.parts.ranges import Epsilon, Heads, Layers, Side, Width
from reca_fast.models.parts.siglip_config import SiglipConfig
from reca_fast.schema import Range, from_dict, shown

CONFIG_FILES = ("llm_config.json", "vit_config.json", "config.json")
SECTIONS = ("llm_config", "vit_config", "bagel_config", "vae_config")
STATED = {"llm_config": "rope_theta", "vit_config": "patch_size"}
"""A setting that each file must state. The classes of the authors' code have other defaults than the public checkpoint
needs, so what a file leaves out would be read differently there.
"""

Positive = Annotated[float, Range(above=0, at_most=1e12)]


def _check_multiple(config: Any, size: str, part: str) -> None:
    if getattr(config, size) % getattr(config, part):
        raise ValueError(f"{size} {getattr(config, size)} is no multiple of {part} {getattr(config, part)}")


@dataclass(frozen=True)
class LLMConfig:
    """Sizes of the language model, a Qwen2 whose every layer has two experts. Fields as in llm_config.json.

    Raises:
        ValueError: the sizes contradict each other, or describe another model than BAGEL.
    """

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    vocab_size: Annotated[int, Range(1, 2**22)]
    rope_theta: Positive = 1_000_000.0
    rms_norm_eps: Epsilon = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    qk_norm: bool = True
    rope_scaling: dict[str, Any] | None = None

    @property
    def head_dim(self) -> int:
        """Numbers in one attention head."""
        return self.hidden_size // self.num_attention_heads

    def __post_init__(self) -> None:
        if self.hidden_act != "silu" or self.tie_word_embeddings or not self.qk_norm:
            raise ValueError(
                "it describes another model: BAGEL has hidden_act=silu, tie_word_embeddings=false, "
                f"qk_norm=true, not {shown(self.hidden_act)}, {self.tie_word_embeddings}, {self.qk_norm}"
            )
        if self.rope_scaling is not None:
            raise ValueError(
                f"rope_scaling is {shown(self.rope_scaling)}, but BAGEL's positions are not scaled; take the "
                "llm_config.json of the public checkpoint"
            )
        _check_multiple(self, "hidden_size", "num_attention_heads")
        _check_multiple(self, "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class GlueConfig:
    """Settings that join the parts. The authors pass them on the command line, no file of the checkpoint states them.

    The defaults are what the public checkpoint needs; a config.json may state others under `bagel_config`.
    """

    latent_patch_size: Annotated[int, Range(1, 16)] = 2
    """Side of the square of latent cells that makes one token."""
    max_latent_size: Side = 64
    """Side of the position table for latent tokens: a larger picture cannot be drawn."""
    vit_max_num_patch_per_side: Side = 70
    """Side of the position table for patches of the vision tower."""
    connector_act: str = "gelu_pytorch_tanh"
    interpolate_pos: bool = False
    timestep_shift: Positive = 1.0
    """Above 1, more of the times that training draws lie near noise."""
    vit_select_layer: Annotated[int, Range(-256, -1)] = -2
    """The layer of the vision tower whose output is used, counted from the end: -1 is the last, -2 the one before."""

    def __post_init__(self) -> None:
        if self.interpolate_pos or self.connector_act != "gelu_pytorch_tanh":
            raise ValueError("interpolate_pos=true and connectors other than gelu_pytorch_tanh are not part of RECA")


@dataclass(frozen=True)
class BagelConfig:
    """Sizes of the whole model."""

    llm: LLMConfig
    vit: SiglipConfig
    glue: GlueConfig = field(default_factory=GlueConfig)
    vae: KLVAEConfig = field(default_factory=KLVAEConfig)
    latent_downsample: int = 8
    """Pixels per latent cell along one side: the VAE's, except in a parity case that has none."""

    def __post_init__(self) -> None:
        if self.vit_layers < 1:
            raise ValueError(
                f"vit_select_layer {self.glue.vit_select_layer} leaves none of the {self.vit.num_hidden_layers} layers"
            )

    @property
    def latent_channels(self) -> int:
        """Numbers in one latent cell."""
        return self.vae.z_channels

    @property
    def latent_stride(self) -> int:
        """Pixels per latent token along one side."""
        return self.latent_downsample * self.glue.latent_patch_size

    @property
    def patch_latent_dim(self) -> int:
        """Numbers in one latent token."""
        return self.glue.latent_patch_size**2 * self.latent_channels

    @property
    def vit_layers(self) -> int:
        """Layers of the vision tower that are built: up to the selected one."""
        return self.vit.num_hidden_layers + 1 + self.glue.vit_select_layer

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "BagelConfig":
        """From the object in a parity case's config.json, which has all sections: SECTIONS.

        Raises:
            UserError: naming `where`; a section is missing, or a value in it is impossible.
        """
        for name in ("llm_config", "vit_config"):
            if name not in values:
                raise UserError(f"{where} has no {name}.")
        places = {name: f"{name} of {where}" for name in SECTIONS}
        vae, downsample = KLVAEConfig.beside_downsample(values.get("vae_config", {}), places["vae_config"])
        return cls._from_sections(values, places, vae, downsample)

    @classmethod
    def _from_sections(
        cls, values: dict[str, Any], where: dict[str, str], vae: KLVAEConfig, latent_downsample: int
    ) -> "BagelConfig":
        try:
            config = cls(
                llm=from_dict(LLMConfig, values["llm_config"], where["llm_config"], remedy=REMEDY),
                vit=from_dict(SiglipConfig, values["vit_config"], where["vit_config"], remedy=REMEDY),
                glue=from_dict(GlueConfig, values.get("bagel_config", {}), where["bagel_config"]),
                vae=vae,
                latent_downsample=latent_downsample,
            )
        except ValueError as error:
            raise UserError(f"{where['bagel_config']}: {error}.") from None
        for section, name in STATED.items():
            if name not in values[section]:
                raise UserError(f"{where[section]} lacks {name}; {REMEDY}.")
        return config

    @classmethod
    def from_folder(cls, folder: Path) -> "BagelConfig":
        """From a checkpoint folder. The public one states neither vae_config nor bagel_config; the defaults hold then.

        Raises:
            UserError: the folder or a file is missing, or a value in it is impossible.
        """
        if not folder.is_dir():
            raise UserError(f"The checkpoint folder {folder} does not exist; set model.path to a BAGEL folder.")
        check_links(folder, CONFIG_FILES)
        values = {name: read_object(folder / f"{name}.json") for name in ("llm_config", "vit_config")}
        extra = read_object(folder / "config.json") if (folder / "config.json").exists() else {}
        values |= {name: extra[name] for name in ("vae_config", "bagel_config") if name in extra}
        files = {name: str(folder / f"{name}.json") for name in ("llm_config", "vit_config")}
        places = {name: f"{name} of {folder / 'config.json'}" for name in SECTIONS} | files
        vae = KLVAEConfig.from_dict(values.get("vae_config", {}), places["vae_config"])
        return cls._from_sections(values, places, vae, vae.downsample)


BAGEL_7B_MOT = BagelConfig(
    llm=LLMConfig(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    ),
    vit=SiglipConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=980
    ),
)
"""The sizes of the checkpoint that the authors published, 14.6 G numbers with the VAE."""
