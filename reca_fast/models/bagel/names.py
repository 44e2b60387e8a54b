"""What the public checkpoint calls BAGEL's tensors."""

from dataclasses import replace

from reca_fast.models.files import NameTable
from reca_fast.models.files.names import prefixed
from reca_fast.models.parts.siglip import SIGLIP_NAMES

TABLES = {
    "latent_pos_embed.pos_embed": "max_latent_size",
    "vit_pos_embed.pos_embed": "vit_max_num_patch_per_side",
}
"""Position tables in the file -> the setting that states the side of their grid. They are formulas: the model computes
them and never reads them, and an export writes them.
"""

_LAYER = "language_model.model.layers.{i}."
# In the file, a part of the generation expert has the suffix _moe_gen: the MLP as a whole, all else one by one.
_EXPERT = (
    ("{part:q_proj|k_proj|v_proj|o_proj|q_norm|k_norm}.{kind}", "self_attn.{part}%.{kind}"),
    ("{part:gate_proj|up_proj|down_proj}.{kind}", "mlp%.{part}.{kind}"),
    ("{part:input_layernorm|post_attention_layernorm}.{kind}", "{part}%.{kind}"),
)


def _expert(suffix: str) -> list[tuple[str, str]]:
    return [(own, public.replace("%", suffix)) for own, public in _EXPERT]


NETWORK_NAMES = NameTable(
    (
        ("embed_tokens.{kind}", "language_model.model.embed_tokens.{kind}"),
        *prefixed(_expert(""), "layers.{i}.und.", _LAYER),
        *prefixed(_expert("_moe_gen"), "layers.{i}.gen.", _LAYER),
        ("norm.{kind}", "language_model.model.norm.{kind}"),
        ("norm_gen.{kind}", "language_model.model.norm_moe_gen.{kind}"),
        ("lm_head.{kind}", "language_model.lm_head.{kind}"),
        ("{part:connector|time_embedder|vae2llm|llm2vae}.*", "{part}.*"),
    ),
    others=("vit_model.",),
    ignored=frozenset(TABLES),
)
"""The network: all that stands in the file of weights but the ViT."""
VIT_NAMES = replace(SIGLIP_NAMES.within(file="vit_model."), under="vit_model.")
"""The ViT, which stands in the same file."""
