"""Sizes of a Harmon checkpoint: from its config.json where there is one, else from the shapes of its tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from reca_fast.errors import UserError
from reca_fast.models.files.folder import read_object
from reca_fast.models.parts.kl_vae_config import KLVAEConfig
from reca_fast.models.parts.qwen2_config import Qwen2Config
from reca_fast.models.parts.ranges import Heads, Layers, Side, Width
from reca_fast.schema import Range, from_dict, shown

Shapes = Mapping[str, tuple[int, ...]]

MAR_TYPES: dict[str, dict[str, int]] = {
    "mar_base": {"width": 768, "depth": 12, "heads": 12},
    "mar_large": {"width": 1024, "depth": 16, "heads": 16},
    "mar_huge": {"width": 1280, "depth": 20, "heads": 16},
}
"""What the authors call the sizes of MAR; encoder and decoder are equal."""
LLM_HEADS = {896: (14, 2), 1536: (12, 2)}
"""Width of a published Qwen2.5 -> its heads and key/value heads, which no tensor's shape tells."""


@dataclass(frozen=True)
class MarConfig:
    """Sizes of MAR and of its denoiser, under the names of the authors' arguments.

    Raises:
        ValueError: the sizes contradict each other.
    """

    encoder_embed_dim: Width
    encoder_depth: Layers
    encoder_num_heads: Heads
    decoder_embed_dim: Width
    decoder_depth: Layers
    decoder_num_heads: Heads
    diffloss_d: Layers
    """Residual blocks of the denoiser."""
    diffloss_w: Width
    """Width of the denoiser."""
    img_size: Annotated[int, Range(1, 2**16)] = 256
    """Side, in pixels, of the pictures whose grid the position tables have. Other grids are resampled from it."""
    vae_stride: Side = 16
    """Pixels per latent cell along one side."""
    patch_size: Annotated[int, Range(1, 16)] = 1
    """Latent cells per token along one side."""
    mlp_ratio: Annotated[float, Range(above=0, at_most=64)] = 4.0
    vae_embed_dim: Annotated[int, Range(1, 256)] = 16
    """Channels of a latent cell."""
    mask_ratio_min: Annotated[float, Range(above=0, at_most=1)] = 0.7
    """The least share of a picture's tokens that training hides."""
    class_num: Annotated[int, Range(1, 2**20)] = 1000
    """Rows of a table that nothing reads."""
    buffer_size: Annotated[int, Range(1, 4096)] = 64
    """Tokens before those of the picture, which are never hidden."""
    num_sampling_steps: str = "100"
    """Which of the 1000 diffusion steps sampling keeps: see `diffusion.kept_steps`."""
    diffusion_batch_mul: Annotated[int, Range(1, 64)] = 4
    """How many noisy copies of a hidden token the denoiser learns from in a step."""

    def __post_init__(self) -> None:
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_embed_dim"), getattr(self, f"{part}_num_heads")
            if width % heads:
                raise ValueError(f"{part}_embed_dim {width} is no multiple of {part}_num_heads {heads}")
        if self.img_size % self.stride:
            raise ValueError(
                f"img_size {self.img_size} is no multiple of {self.stride}, which is vae_stride times patch_size"
            )

    @property
    def stride(self) -> int:
        """Pixels per token along one side."""
        return self.vae_stride * self.patch_size

    @property
    def side(self) -> int:
        """Tokens along one side of the grid that the position tables have."""
        return self.img_size // self.stride

    @property
    def token_dim(self) -> int:
        """Numbers of a token's latents."""
        return self.vae_embed_dim * self.patch_size**2


KL16 = KLVAEConfig(
    ch_mult=(1, 1, 2, 2, 4), scale_factor=0.2325, shift_factor=0.0, encoder_attention=True, quant_convs=True
)
"""The VAE of the MAR and Harmon releases, 16 times down, 16 channels."""


@dataclass(frozen=True)
class HarmonConfig:
    """Sizes of the whole model.

    Raises:
        ValueError: the VAE is not the one that MAR's sizes were made for.
    """

    llm: Qwen2Config
    mar: MarConfig
    vae: KLVAEConfig = field(default_factory=lambda: KL16)
    grad_scale: Annotated[float, Range(0, 1)] = 0.1
    """What the gradient that reaches a condition's embeddings is multiplied by."""

    def __post_init__(self) -> None:
        found = (self.vae.downsample, self.vae.z_channels)
        if found != (self.mar.vae_stride, self.mar.vae_embed_dim):
            raise ValueError(
                f"the VAE makes {found[1]} channels out of {found[0]} pixels, and MAR takes {self.mar.vae_embed_dim} "
                f"channels out of {self.mar.vae_stride}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str, shapes: Shapes | None = None) -> "HarmonConfig":
        """From the object in a config.json: `llm` and `mar`, and perhaps `vae`, `vae_scale` and `grad_scale`.

        Args:
            values: the object; {} takes everything from the shapes.
            where: the file, for messages.
            shapes: of the tensors of the checkpoint. They fill what `llm` and `mar` leave open.

        Raises:
            UserError: naming `where`; a value is missing or impossible.
        """
        known = sizes_of(shapes or {})
        sections = {name: _object(values, name, where) for name in ("llm", "mar")}
        llm, mar = known["llm"] | sections["llm"], known["mar"] | sections["mar"]
        if sections["llm"].get("tie_word_embeddings") is False:
            raise UserError(f"{where}: llm.tie_word_embeddings is false, but Harmon's head is its token embedding.")
        mar = _of_type(mar, where)
        scale = values.get("vae_scale", KL16.scale_factor)
        mar_config = from_dict(MarConfig, mar, f"mar of {where}", remedy=REMEDY)
        try:
            return cls(
                llm=from_dict(Qwen2Config, llm, f"llm of {where}", remedy=REMEDY),
                mar=mar_config,
                vae=_vae(values.get("vae"), mar_config, scale, where),
                grad_scale=from_dict(_Scale, {"grad_scale": values.get("grad_scale", 0.1)}, where).grad_scale,
            )
        except ValueError as error:
            raise UserError(f"{where}: {error}.") from None

    @classmethod
    def from_folder(cls, folder: Path, shapes: Shapes) -> "HarmonConfig":
        """From a checkpoint folder: its config.json, if it has one, and the shapes of its tensors."""
        path = folder / "config.json"
        return cls.from_dict(read_object(path) if path.exists() else {}, str(path), shapes)


REMEDY = "put a config.json with the sections llm and mar beside the weights, as the public folders have it"


@dataclass(frozen=True)
class _Scale:
    grad_scale: Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class _RecordedVAE:
    """A VAE's sizes as config.json states them where they are not the public ones."""

    ch: Annotated[int, Range(1, 4096)]
    ch_mult: tuple[Annotated[int, Range(1, 64)], ...]
    num_res_blocks: Annotated[int, Range(1, 16)]
    embed_dim: Annotated[int, Range(1, 256)]
    norm_num_groups: Annotated[int, Range(1, 1024)] = 32


def _vae(values: Any, mar: MarConfig, scale: Any, where: str) -> KLVAEConfig:
    """The VAE that `values` describe; for None the public one, or, where MAR has other sizes, one of these sizes."""
    public = {"scale_factor": scale, "shift_factor": 0.0, "encoder_attention": True, "quant_convs": True}
    if values is None:
        levels = int(math.log2(mar.vae_stride)) + 1
        mults = KL16.ch_mult if levels == len(KL16.ch_mult) else (1,) * levels
        return KLVAEConfig.from_dict(public | {"ch_mult": list(mults), "z_channels": mar.vae_embed_dim}, where)
    sizes = from_dict(_RecordedVAE, values, f"vae of {where}")
    return KLVAEConfig.from_dict(
        public
        | {
            "ch": sizes.ch,
            "ch_mult": list(sizes.ch_mult),
            "num_res_blocks": sizes.num_res_blocks,
            "z_channels": sizes.embed_dim,
            "norm_groups": sizes.norm_num_groups,
        },
        f"vae of {where}",
    )


def _object(values: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    section = values.get(name, {})
    if not isinstance(section, dict):
        raise UserError(f"{where}: {name} is {shown(section)}, not an object of sizes; {REMEDY}.")
    return section


def _of_type(mar: dict[str, Any], where: str) -> dict[str, Any]:
    """MAR's sizes with those that its `type` stands for, or that its width is published with."""
    kind = mar.get("type")
    if kind is not None and kind not in MAR_TYPES:
        raise UserError(f"{where}: mar.type is {shown(kind)}, not one of {', '.join(MAR_TYPES)}.")
    sizes: dict[str, Any] = {}
    for part in ("encoder", "decoder"):
        width = mar.get(f"{part}_embed_dim")
        of_width = next((each for each in MAR_TYPES.values() if each["width"] == width), None)
        found = MAR_TYPES[kind] if kind is not None else of_width
        if found is not None:
            names = {"embed_dim": "width", "depth": "depth", "num_heads": "heads"}
            sizes |= {f"{part}_{name}": found[own] for name, own in names.items()}
    return sizes | mar


def sizes_of(shapes: Shapes) -> dict[str, dict[str, Any]]:
    """The sizes that the shapes of a checkpoint's tensors tell, in the sections `llm` and `mar`."""
    llm: dict[str, Any] = {}
    mar: dict[str, Any] = {}
    layer, blocks = "llm.model.layers.", "mar.diffloss.net.res_blocks."
    if (table := shapes.get("llm.model.embed_tokens.weight")) is not None and len(table) == 2:
        llm |= {"vocab_size": table[0], "hidden_size": table[1], "num_hidden_layers": _count(shapes, layer)}
        if (up := shapes.get(f"{layer}0.mlp.up_proj.weight")) is not None:
            llm["intermediate_size"] = up[0]
        if table[1] in LLM_HEADS:
            llm["num_attention_heads"], llm["num_key_value_heads"] = LLM_HEADS[table[1]]
    for part in ("encoder", "decoder"):
        if (norm := shapes.get(f"mar.{part}_norm.weight")) is not None:
            mar |= {f"{part}_embed_dim": norm[0], f"{part}_depth": _count(shapes, f"mar.{part}_blocks.")}
    if (project := shapes.get("mar.diffloss.net.input_proj.weight")) is not None:
        mar |= {"diffloss_w": project[0], "diffloss_d": _count(shapes, blocks)}
    if (classes := shapes.get("mar.class_emb.weight")) is not None:
        mar["class_num"] = classes[0]
    rows = [shapes.get(f"mar.{name}_pos_embed_learned") for name in ("encoder", "diffusion")]
    if rows[0] is not None and rows[1] is not None and len(rows[0]) == len(rows[1]) == 3:
        mar["buffer_size"] = rows[0][1] - rows[1][1]
    return {"llm": llm, "mar": mar}


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered parts stand below a prefix."""
    return len({key[len(prefix) :].partition(".")[0] for key in shapes if key.startswith(prefix)})


def _published(hidden: int, ffn: int, layers: int, mar: str, denoiser: tuple[int, int]) -> HarmonConfig:
    heads, kv_heads = LLM_HEADS[hidden]
    sizes = MAR_TYPES[mar]
    both = {"embed_dim": sizes["width"], "depth": sizes["depth"], "num_heads": sizes["heads"]}
    parts: dict[str, Any] = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in both.items()}
    return HarmonConfig(
        llm=Qwen2Config(hidden, ffn, layers, heads, kv_heads, vocab_size=151936),
        mar=MarConfig(**parts, diffloss_d=denoiser[0], diffloss_w=denoiser[1]),
    )


PUBLISHED = {
    "Harmon-0.5B": _published(896, 4864, 24, "mar_base", (6, 1024)),
    "Harmon-1.5B": _published(1536, 8960, 28, "mar_huge", (12, 1536)),
}
"""Name of a public checkpoint -> its sizes."""
