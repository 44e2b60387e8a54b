"""What the public files of KL VAEs call the tensors of `KLVAE`.

The network is diffusers' `AutoencoderKL` and carries its names. The files carry those of the older latent-diffusion
code, and hold the attention's projections as 1x1 convolutions. The decoder's levels run the other way round: diffusers
numbers them in the order in which they run, from the smallest picture to the largest.
"""

from reca_fast.models.files import NameTable
from reca_fast.models.files.names import prefixed

from .kl_vae_config import KLVAEConfig

_RESIDUAL_BLOCK = (
    ("{part:norm1|conv1|norm2|conv2}.{kind}", "{part}.{kind}"),
    ("conv_shortcut.{kind}", "nin_shortcut.{kind}"),
)
_ATTENTION = (
    ("group_norm.{kind}", "norm.{kind}"),
    ("to_q.{kind}", "q.{kind}"),
    ("to_k.{kind}", "k.{kind}"),
    ("to_v.{kind}", "v.{kind}"),
    ("to_out.0.{kind}", "proj_out.{kind}"),
)
_PROJECTION = "{projection:to_q|to_k|to_v|to_out.0}.weight"


def kl_vae_names(config: KLVAEConfig) -> NameTable:
    """The table of names of a VAE of these sizes, for files that hold nothing else (see `NameTable.within`)."""
    rules = [
        ("{half}.{end:conv_in|conv_out}.{kind}", "{half}.{end}.{kind}"),
        ("{half}.conv_norm_out.{kind}", "{half}.norm_out.{kind}"),
        ("{end:quant_conv|post_quant_conv}.{kind}", "{end}.{kind}"),
        *prefixed(_RESIDUAL_BLOCK, "{half}.mid_block.resnets.0.", "{half}.mid.block_1."),
        *prefixed(_ATTENTION, "{half}.mid_block.attentions.0.", "{half}.mid.attn_1."),
        *prefixed(_RESIDUAL_BLOCK, "{half}.mid_block.resnets.1.", "{half}.mid.block_2."),
        *prefixed(_RESIDUAL_BLOCK, "encoder.down_blocks.{l}.resnets.{b}.", "encoder.down.{l}.block.{b}."),
        *prefixed(_ATTENTION, "encoder.down_blocks.{l}.attentions.{b}.", "encoder.down.{l}.attn.{b}."),
        ("encoder.down_blocks.{l}.downsamplers.0.conv.{kind}", "encoder.down.{l}.downsample.conv.{kind}"),
    ]
    levels = len(config.ch_mult)
    for level in range(levels):
        own, public = f"decoder.up_blocks.{level}.", f"decoder.up.{levels - 1 - level}."
        rules += prefixed(_RESIDUAL_BLOCK, f"{own}resnets.{{b}}.", f"{public}block.{{b}}.")
        rules.append((f"{own}upsamplers.0.conv.{{kind}}", f"{public}upsample.conv.{{kind}}"))
    convolutions = (
        f"{{half}}.mid_block.attentions.0.{_PROJECTION}",
        f"encoder.down_blocks.{{l}}.attentions.{{b}}.{_PROJECTION}",
    )
    return NameTable(tuple(rules), convolutions=convolutions)
