"""Sizes of a KL VAE, as latent-diffusion checkpoints state them."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from reca_fast.errors import UserError, did_you_mean
from reca_fast.schema import Range, from_dict

from .ranges import RGB, Side


@dataclass(frozen=True)
class KLVAEConfig:
    """Sizes of a KL VAE under the names of the latent-diffusion (LDM) code. The defaults are those of FLUX.1's VAE.

    Raises:
        ValueError: the sizes contradict each other.
    """

    in_channels: RGB = 3
    out_ch: RGB = 3
    ch: Annotated[int, Range(1, 4096)] = 128
    """Channels at full resolution; each level has `ch` times its entry in `ch_mult`."""
    ch_mult: tuple[Annotated[int, Range(1, 64)], ...] = (1, 2, 4, 4)
    """One entry a level; between two levels the sides of the picture are halved."""
    num_res_blocks: Annotated[int, Range(1, 16)] = 2
    """Residual blocks in each level of the encoder; the decoder has one more."""
    z_channels: Annotated[int, Range(1, 256)] = 16
    """Channels of the latents."""
    norm_groups: Annotated[int, Range(1, 1024)] = 32
    """Groups of every GroupNorm: 32 in all public checkpoints."""
    scale_factor: Annotated[float, Range(above=0, at_most=1000)] = 0.3611
    shift_factor: Annotated[float, Range(-1000, 1000)] = 0.1159
    """A latent is scale_factor * (z - shift_factor), where z is what the encoder's moments describe."""
    encoder_attention: bool = False
    """Attention after each residual block of the encoder's last level, as the KL-16 VAE of MAR and Harmon has it."""
    quant_convs: bool = False
    """1x1 convolutions after the encoder and before the decoder, as VAEs older than FLUX.1's have them."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.ch_mult) <= 8:
            raise ValueError(f"ch_mult has {len(self.ch_mult)} entries; it must have 1 to 8")
        if self.ch * max(self.ch_mult) > 2**14:
            raise ValueError(
                f"ch {self.ch} times the largest ch_mult {max(self.ch_mult)} is more than {2**14:,} channels"
            )
        for mult in self.ch_mult:
            if self.ch * mult % self.norm_groups:
                raise ValueError(
                    f"ch {self.ch} times {mult} of ch_mult is no multiple of norm_groups {self.norm_groups}"
                )

    @property
    def downsample(self) -> int:
        """Pixels per latent cell along one side."""
        return int(2 ** (len(self.ch_mult) - 1))

    @classmethod
    def from_dict(cls, values: Any, where: str = "vae_config") -> "KLVAEConfig":
        """Read the sizes from a JSON object. `resolution` may stand there without effect, `downsample` must be right.

        Raises:
            UserError: naming `where`; a key is unknown, a value is impossible, or `downsample` contradicts `ch_mult`.
        """
        config, downsample = cls.beside_downsample(values, where)
        if downsample != config.downsample:
            raise UserError(
                f"{where}: downsample {downsample} contradicts ch_mult {list(config.ch_mult)}, "
                f"which halves the picture {len(config.ch_mult) - 1} times; correct one of them."
            )
        return config

    @classmethod
    def beside_downsample(cls, values: Any, where: str) -> tuple["KLVAEConfig", int]:
        """The sizes and the `downsample` stated beside them, which here may contradict them.

        A recorded parity case whose latents come without a VAE states the `downsample` of the VAE that made them.
        """
        known = cls.__dataclass_fields__
        for key in values if isinstance(values, dict) else ():
            if key not in (*known, "resolution", "downsample"):
                raise UserError(f"{where} has the unknown key {key[:60]!r}.{did_you_mean(key[:60], known)}")
        config = from_dict(cls, values, where)
        return config, from_dict(_Downsample, {"downsample": config.downsample} | values, where).downsample

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `from_dict` reads back."""
        return {**asdict(self), "ch_mult": list(self.ch_mult), "downsample": self.downsample}


@dataclass(frozen=True)
class _Downsample:
    downsample: Side
