"""Sizes of an OpenUni: those of its four parts, and what joins them."""

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from reca_fast.models.parts.qwen2_config import Qwen2Config
from reca_fast.models.parts.ranges import RGB, Epsilon, Heads, Layers, Side, Width
from reca_fast.schema import Range, shown

Projector = Literal["enc_proj", "proj_enc", "proj_enc_proj"]


@dataclass(frozen=True)
class VitConfig:
    """Sizes of InternVL's vision tower, under the names of its config.json.

    Raises:
        ValueError: the sizes contradict each other, or describe a tower that is not computed here.
    """

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    image_size: Annotated[int, Range(1, 2**16)] = 448
    """Side in pixels of the square to which every picture is resized."""
    patch_size: Side = 14
    num_channels: RGB = 3
    qkv_bias: bool = True
    layer_norm_eps: Epsilon = 1e-6
    hidden_act: str = "gelu"
    norm_type: str = "layer_norm"
    qk_normalization: bool = False

    def __post_init__(self) -> None:
        if self.hidden_act != "gelu" or self.norm_type != "layer_norm" or self.qk_normalization:
            raise ValueError(
                "it describes another vision tower: InternVL3's small ones have hidden_act=gelu, norm_type=layer_norm "
                f"and qk_normalization=false, not {shown(self.hidden_act)}, {shown(self.norm_type)} and "
                f"{self.qk_normalization}"
            )
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "hidden_size", "num_attention_heads")

    @property
    def side(self) -> int:
        """Patches along a side of a picture."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ConnectorConfig:
    """Sizes of the connector, the small transformer between the queries and SANA.

    Raises:
        ValueError: the sizes contradict each other, or the activation is another one.
    """

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6

    def __post_init__(self) -> None:
        if self.hidden_act != "gelu_pytorch_tanh":
            raise ValueError(f"hidden_act is {shown(self.hidden_act)}; OpenUni's connector has gelu_pytorch_tanh")
        check_multiple(self, "hidden_size", "num_attention_heads")


@dataclass(frozen=True)
class SanaConfig:
    """Sizes of a SANA transformer, under the names of its config.json in diffusers' layout.

    Raises:
        ValueError: the sizes contradict each other, or describe a SANA that is not computed here.
    """

    num_attention_heads: Heads
    attention_head_dim: Width
    num_layers: Layers
    num_cross_attention_heads: Heads
    cross_attention_head_dim: Width
    cross_attention_dim: Width
    caption_channels: Width = 2304
    in_channels: Width = 32
    out_channels: Width = 32
    mlp_ratio: Annotated[float, Range(above=0, at_most=64)] = 2.5
    attention_bias: bool = False
    norm_eps: Epsilon = 1e-6
    qk_norm: str | None = None
    timestep_scale: Annotated[float, Range(above=0, at_most=1e6)] = 1.0
    patch_size: Annotated[int, Range(1, 1)] = 1
    sample_size: Annotated[int, Range(1, 2**12)] = 16
    """Side, in latent cells, of the pictures that it was made for; others can be drawn."""
    norm_elementwise_affine: bool = False
    guidance_embeds: bool = False
    interpolation_scale: float | None = None

    def __post_init__(self) -> None:
        if self.norm_elementwise_affine or self.guidance_embeds or self.interpolation_scale is not None:
            raise ValueError(
                "it describes another SANA: OpenUni's have neither weights in the blocks' norms, nor an embedding of "
                "the guidance, nor position embeddings (interpolation_scale null)"
            )
        if self.qk_norm not in (None, "rms_norm_across_heads"):
            raise ValueError(f"qk_norm is {shown(self.qk_norm)}; a SANA has rms_norm_across_heads, or null")
        if self.cross_attention_dim != self.hidden_size or self.in_channels != self.out_channels:
            raise ValueError(
                f"cross_attention_dim {self.cross_attention_dim} must be num_attention_heads times attention_head_dim, "
                f"{self.hidden_size}, and in_channels must be out_channels"
            )

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_channels(self) -> int:
        """Channels of a block's convolution behind its gate."""
        return int(self.mlp_ratio * self.hidden_size)


Stages = tuple[Annotated[int, Range(1, 2**14)], ...]
Depths = tuple[Annotated[int, Range(0, 64)], ...]
Scales = tuple[tuple[Annotated[int, Range(1, 31)], ...], ...]
Blocks = tuple[Literal["ResBlock", "EfficientViTBlock"], ...]


@dataclass(frozen=True)
class DCAEConfig:
    """Sizes of a DC-AE under the names of diffusers' AutoencoderDC; the defaults are those of SANA's.

    Raises:
        ValueError: the stages of its encoder and decoder are not as many everywhere.
    """

    in_channels: RGB = 3
    latent_channels: Annotated[int, Range(1, 1024)] = 32
    attention_head_dim: Annotated[int, Range(1, 1024)] = 32
    encoder_block_types: Blocks = (*("ResBlock",) * 3, *("EfficientViTBlock",) * 3)
    decoder_block_types: Blocks = (*("ResBlock",) * 3, *("EfficientViTBlock",) * 3)
    encoder_block_out_channels: Stages = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: Stages = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: Depths = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: Depths = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: Scales = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: Scales = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: Literal["pixel_shuffle", "interpolate"] = "interpolate"
    downsample_block_type: Literal["pixel_unshuffle", "Conv"] = "Conv"
    decoder_norm_types: str | tuple[str, ...] = "rms_norm"
    decoder_act_fns: str | tuple[str, ...] = "silu"
    scaling_factor: Annotated[float, Range(above=0, at_most=1000)] = 0.41407

    def __post_init__(self) -> None:
        stages = len(self.encoder_block_out_channels)
        for name, value in asdict(self).items():
            if name.startswith(("encoder_", "decoder_")) and not isinstance(value, str) and len(value) != stages:
                raise ValueError(f"{name} has {len(value)} entries where encoder_block_out_channels has {stages}")
        if not 1 <= stages <= 8:
            raise ValueError(f"encoder_block_out_channels has {stages} entries; it must have 1 to 8")

    @property
    def downsample(self) -> int:
        """Pixels per latent cell along one side."""
        return int(2 ** (len(self.encoder_block_out_channels) - 1))

    def keywords(self) -> dict[str, Any]:
        """The arguments of AutoencoderDC."""
        return asdict(self)


@dataclass(frozen=True)
class OpenUniConfig:
    """Sizes of the whole model.

    Raises:
        ValueError: the parts do not fit each other.
    """

    llm: Qwen2Config
    vit: VitConfig
    connector: ConnectorConfig
    sana: SanaConfig
    vae: DCAEConfig = field(default_factory=DCAEConfig)
    num_queries: Annotated[int, Range(1, 2**16)] = 256
    projector: Projector = "enc_proj"
    """What turns query states into SANA's context: connector and then a linear layer in all published models."""
    downsample_ratio: Annotated[float, Range(above=0, at_most=1)] = 0.5
    """Tokens of the language model along a side of a picture, for each patch of the vision tower there."""
    ps_version: Literal["v1", "v2"] = "v2"
    """Order in which patches are joined: rows first (v2), or turned over (v1, an error that old models learnt with)."""
    select_layer: Annotated[int, Range(-256, -1)] = -1
    """The layer of the vision tower whose output is used, counted from the end."""

    def __post_init__(self) -> None:
        if self.vit_layers < 1:
            raise ValueError(f"select_layer {self.select_layer} leaves no layer of the vision tower")
        if self.vit.side % self.joined or abs(1 / self.joined - self.downsample_ratio) > 1e-6:
            raise ValueError(f"downsample_ratio {self.downsample_ratio} does not divide {self.vit.side} patches a side")
        width = {"enc_proj": self.llm.hidden_size, "proj_enc": self.sana.caption_channels}
        if self.connector.hidden_size != width.get(self.projector, self.connector.hidden_size):
            raise ValueError(
                f"the connector is {self.connector.hidden_size} wide where a projector of the kind {self.projector} "
                f"wants {width[self.projector]}"
            )
        if self.sana.in_channels != self.vae.latent_channels:
            raise ValueError(
                f"SANA takes {self.sana.in_channels} channels and the VAE has {self.vae.latent_channels}; take both "
                "from one model"
            )

    @property
    def vit_layers(self) -> int:
        """Layers of the vision tower that run."""
        return self.vit.num_hidden_layers + 1 + self.select_layer

    @property
    def joined(self) -> int:
        """Side of the square of patches that become one token of the language model."""
        return round(1 / self.downsample_ratio)

    @property
    def picture_tokens(self) -> int:
        """Tokens of the language model that a condition takes."""
        return (self.vit.side // self.joined) ** 2

    @property
    def stride(self) -> int:
        """Pixels per latent cell along one side; a cell is one token of SANA."""
        return self.vae.downsample


def check_multiple(config: Any, size: str, part: str) -> None:
    """Raise ValueError where one field of a configuration is no multiple of another one."""
    if getattr(config, size) % getattr(config, part):
        raise ValueError(f"{size} {getattr(config, size)} is no multiple of {part} {getattr(config, part)}")


_DCAE = DCAEConfig()


def _published(llm: Qwen2Config, connector: ConnectorConfig, sana: SanaConfig) -> OpenUniConfig:
    vit = VitConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    return OpenUniConfig(llm, vit, connector, sana, _DCAE)


_QWEN_1B = Qwen2Config(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151674,
)
_QWEN_2B = Qwen2Config(
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    vocab_size=151674,
)
_SANA_600M = SanaConfig(
    num_attention_heads=36,
    attention_head_dim=32,
    num_layers=28,
    num_cross_attention_heads=16,
    cross_attention_head_dim=72,
    cross_attention_dim=1152,
)
_SANA_1600M = SanaConfig(
    num_attention_heads=70,
    attention_head_dim=32,
    num_layers=20,
    num_cross_attention_heads=20,
    cross_attention_head_dim=112,
    cross_attention_dim=2240,
)
_SANA_1024 = replace(_SANA_1600M, qk_norm="rms_norm_across_heads", sample_size=32)
_SMALL = ConnectorConfig(hidden_size=896, intermediate_size=3072, num_hidden_layers=6, num_attention_heads=14)
_LARGE = ConnectorConfig(hidden_size=1536, intermediate_size=8960, num_hidden_layers=6, num_attention_heads=24)
PUBLISHED = {
    "OpenUni-B-512": _published(_QWEN_1B, _SMALL, _SANA_600M),
    "OpenUni-L-512": _published(_QWEN_2B, _LARGE, _SANA_1600M),
    "OpenUni-L-1024": _published(_QWEN_2B, _LARGE, _SANA_1024),
}
"""Name under which the authors published a model -> its sizes."""
