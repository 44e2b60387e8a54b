"""The recorded pack of a parity case, inputs.safetensors, checked before anything is computed from it."""

from pathlib import Path

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.recorded import read_tensors

NEEDED = {
    **dict.fromkeys(("sample_lens", "split_lens", "attn_modes", "packed_text_ids", "packed_text_indexes"), 1),
    **dict.fromkeys(("packed_position_ids", "packed_vae_token_indexes", "packed_latent_position_ids"), 1),
    **{"patchified_vae_latent_shapes": 2, "noise": 2, "packed_timesteps": 1, "padded_latent": 4},
}
OPTIONAL = {
    **dict.fromkeys(("packed_vit_token_indexes", "packed_vit_position_ids", "vit_token_seqlens"), 1),
    **{"ce_loss_indexes": 1, "packed_label_ids": 1, "packed_vit_tokens": 2, "vae_posterior_noise": 4},
}
"""In NEEDED and OPTIONAL: name of a tensor -> its number of dimensions."""
FRACTIONS = ("noise", "packed_timesteps", "padded_latent", "packed_vit_tokens", "vae_posterior_noise")
"""Names of the tensors that hold floating-point numbers. The others hold int64."""
MAX_ROWS = 2**20
"""No pack has more rows, and no int64 in it is as large."""


def read_inputs(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, by name.

    Raises:
        UserError: the file is missing or damaged; or a tensor is missing, has another dtype or number of dimensions, or
            names a row that the pack does not have.
    """
    inputs = read_tensors(path)
    if missing := sorted(NEEDED.keys() - inputs.keys()):
        raise UserError(f"{path} lacks {', '.join(missing)}.")
    for name, tensor in inputs.items():
        if name.endswith(".uint8_hwc"):
            if tensor.dtype != torch.uint8 or tensor.dim() != 3 or tensor.shape[2] != 3 or not tensor.numel():
                raise UserError(f"{path}: {name} is {_kind(tensor)}; a picture is uint8 [height, width, 3].")
        elif dimensions := (NEEDED | OPTIONAL).get(name):
            fits = tensor.is_floating_point() if name in FRACTIONS else tensor.dtype == torch.int64
            if not fits or tensor.dim() != dimensions:
                kind = "fractions" if name in FRACTIONS else "int64"
                raise UserError(f"{path}: {name} is {_kind(tensor)}; it must be {kind} in {dimensions} dimensions.")
            if name not in FRACTIONS and tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < MAX_ROWS:
                raise UserError(
                    f"{path}: {name} holds {int(tensor.min())} to {int(tensor.max())}, not 0 to {MAX_ROWS - 1}."
                )
    rows, latents = int(inputs["sample_lens"].sum()), inputs["packed_vae_token_indexes"]
    areas = int(inputs["patchified_vae_latent_shapes"].prod(1).sum())
    if rows > MAX_ROWS or areas != len(latents):
        raise UserError(f"{path}: {rows} rows, {len(latents)} of them latents of {areas} cells, are no recorded pack.")
    for name in ("packed_text_indexes", "packed_vae_token_indexes", "packed_vit_token_indexes", "ce_loss_indexes"):
        if name in inputs and inputs[name].numel() and int(inputs[name].max()) >= rows:
            raise UserError(f"{path}: {name} names row {int(inputs[name].max())} of {rows}.")
    return inputs


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
