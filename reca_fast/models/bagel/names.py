"""Module names <-> key names of the public checkpoint, one table read in both directions."""

import re
from collections.abc import Iterable

TABLES = {
    "latent_pos_embed.pos_embed": "max_latent_size",
    "vit_pos_embed.pos_embed": "vit_max_num_patch_per_side",
}
"""Tensors of the file that are not in the module's state -> the setting for their side: fixed sin/cos tables, computed
on loading and written on export.
"""

_EXPERT_GROUPS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}
_PREFIXES = {
    "embed_tokens.": "language_model.model.embed_tokens.",
    "norm.": "language_model.model.norm.",
    "norm_gen.": "language_model.model.norm_moe_gen.",
    "lm_head.": "language_model.lm_head.",
    "vit.patch_embedding.": "vit_model.vision_model.embeddings.patch_embedding.",
    "vit.position_embedding.": "vit_model.vision_model.embeddings.position_embedding.",
    "vit.": "vit_model.vision_model.",
}
_EXPERT = re.compile(r"layers\.(\d+)\.(und|gen)\.(\w+)\.(weight|bias)")


def public_name(name: str) -> str:
    """Key of the public file for a parameter of `Bagel`."""
    if match := _EXPERT.fullmatch(name):
        layer, expert, module, leaf = match.groups()
        group = _EXPERT_GROUPS.get(module)
        suffix = "_moe_gen" if expert == "gen" else ""
        # The MLP carries the suffix on its group, everything else on the module itself.
        path = f"mlp{suffix}.{module}" if group == "mlp" else f"{group + '.' if group else ''}{module}{suffix}"
        return f"language_model.model.layers.{layer}.{path}.{leaf}"
    for prefix, public in _PREFIXES.items():
        if name.startswith(prefix):
            return public + name.removeprefix(prefix)
    return name


def public_names(names: Iterable[str]) -> dict[str, str]:
    """Public key -> module name, for all parameters of a model."""
    return {public_name(name): name for name in names}
