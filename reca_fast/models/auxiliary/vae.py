"""The VAE whose latents are reconstructed: an AutoencoderKL in the folder layout of diffusers."""

from pathlib import Path
from typing import Any

import torch

from reca_fast.errors import UserError
from reca_fast.models.files import SAME_NAMES, NameTable, open_weights
from reca_fast.models.files.folder import read_object
from reca_fast.models.parts.kl_vae import KLVAE, fill_kl_vae
from reca_fast.models.parts.kl_vae_config import KLVAEConfig
from reca_fast.schema import from_dict, shown

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""The names of the attention's projections -> those in files of diffusers before 0.15, such as Stable Diffusion's."""
OLD_NAMES = NameTable(
    (
        *(
            (f"{{half}}.mid_block.attentions.0.{new}.{{kind}}", f"{{half}}.mid_block.attentions.0.{old}.{{kind}}")
            for new, old in OLD_ATTENTION.items()
        ),
        ("*", "*"),
    )
)


def vae_config(folder: Path) -> KLVAEConfig:
    """The sizes of the VAE in a folder.

    Raises:
        UserError: config.json is missing or damaged, or describes another kind of VAE.
    """
    path = folder / CONFIG
    values = read_object(path)
    if values.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise UserError(f"{path} describes a {shown(values['_class_name'])}; latents are those of an AutoencoderKL.")
    channels = values.get("block_out_channels")
    if not isinstance(channels, list) or not channels or any(c % channels[0] for c in channels):
        raise UserError(f"{path}: block_out_channels is {shown(channels)}, which are no multiples of the first one.")
    down, up = values.get("down_block_types", []), values.get("up_block_types", [])
    plain = {"DownEncoderBlock2D", "UpDecoderBlock2D"}
    if {*down[:-1], *up} - plain or values.get("mid_block_add_attention") is False:
        raise UserError(f"{path} describes an AutoencoderKL with other blocks than Stable Diffusion's and FLUX's.")
    quant = [values.get(name, True) for name in ("use_quant_conv", "use_post_quant_conv")]
    if quant[0] != quant[1]:
        raise UserError(f"{path}: use_quant_conv and use_post_quant_conv differ; both or neither are known.")
    sizes: dict[str, Any] = {
        "in_channels": values.get("in_channels", 3),
        "out_ch": values.get("out_channels", 3),
        "ch": channels[0],
        "ch_mult": [c // channels[0] for c in channels],
        "num_res_blocks": values.get("layers_per_block", 1),
        "z_channels": values.get("latent_channels", 4),
        "norm_groups": values.get("norm_num_groups", 32),
        "scale_factor": values.get("scaling_factor", 0.18215),
        "shift_factor": values.get("shift_factor") or 0.0,
        "encoder_attention": "AttnDownEncoderBlock2D" in down,
        "quant_convs": quant[0],
    }
    return from_dict(KLVAEConfig, sizes, str(path))


def read_vae(folder: Path, config: KLVAEConfig, device: torch.device | str) -> KLVAE:
    """The VAE in a folder, frozen, in fp32.

    Raises:
        UserError: the file of weights is missing or damaged, or its tensors are not the VAE's.
    """
    with open_weights(folder / WEIGHTS) as weights:
        is_old = "encoder.mid_block.attentions.0.query.weight" in weights.shapes
        return fill_kl_vae(weights, config, device, torch.float32, names=OLD_NAMES if is_old else SAME_NAMES)
