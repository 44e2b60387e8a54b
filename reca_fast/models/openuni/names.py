"""What public checkpoints call OpenUni's tensors.

The names of the whole model are those that the authors' own file has: `lmm.` for InternVL3 in the layout of its remote
code, `transformer.` for SANA and `vae.` for the DC-AE in diffusers' layouts, and the trained parts without a prefix.
"""

from reca_fast.models.files import NameTable
from reca_fast.models.files.names import prefixed

CONVOLUTIONS = ("patch_embed.weight", "blocks.{i}.ff.{part:conv_inverted|conv_point}.weight")
SANA_NAMES = NameTable(
    (
        ("patch_embed.{kind}", "patch_embed.proj.{kind}"),
        ("time_embedder.mlp.0.{kind}", "time_embed.emb.timestep_embedder.linear_1.{kind}"),
        ("time_embedder.mlp.2.{kind}", "time_embed.emb.timestep_embedder.linear_2.{kind}"),
        ("time_linear.{kind}", "time_embed.linear.{kind}"),
        ("caption_projection.0.{kind}", "caption_projection.linear_1.{kind}"),
        ("caption_projection.2.{kind}", "caption_projection.linear_2.{kind}"),
        ("blocks.*", "transformer_blocks.*"),
        ("{part:caption_norm|proj_out}.{kind}", "{part}.{kind}"),
        ("scale_shift_table", "scale_shift_table"),
    ),
    convolutions=CONVOLUTIONS,
)
"""SANA, as diffusers' SanaTransformer2DModel has it."""

_LLM = (("embed_tokens.weight", "embed_tokens.weight"), ("decoder.*", "*"))
NETWORK_NAMES = NameTable(
    (
        *prefixed(SANA_NAMES.rules, "sana.", "transformer."),
        *prefixed(_LLM, "", "lmm.language_model.model."),
        ("{part:connector|projector}.*", "{part}.*"),
        ("meta_queries", "meta_queries"),
    ),
    others=("lmm.vision_model.", "lmm.mlp1.", "vae."),
    ignored=frozenset({"lmm.language_model.lm_head.weight"}),
    convolutions=tuple(f"sana.{pattern}" for pattern in CONVOLUTIONS),
)
"""The network: everything but the frozen encoders, and the head that says words, which no picture needs."""
VIT_NAMES = NameTable(
    (
        ("embeddings.*", "lmm.vision_model.embeddings.*"),
        ("layers.*", "lmm.vision_model.encoder.layers.*"),
        ("mlp1.*", "lmm.mlp1.*"),
    ),
    under="lmm.",
    others=("lmm.language_model.",),
)
"""The vision tower and its projector."""
NATIVE_QKV = ("q_proj", "k_proj", "v_proj")
_TOWER, _NATIVE_TOWER = "lmm.vision_model.", "vision_tower."
_LAYER, _NATIVE_LAYER = f"{_TOWER}encoder.layers.{{i}}.", f"{_NATIVE_TOWER}encoder.layer.{{i}}."
INTERNVL_NAMES = NameTable(
    (
        ("{part:vision_model|mlp1}.*", "lmm.{part}.*"),
        (f"{_NATIVE_TOWER}embeddings.cls_token", f"{_TOWER}embeddings.class_embedding"),
        (f"{_NATIVE_TOWER}embeddings.position_embeddings", f"{_TOWER}embeddings.position_embedding"),
        (
            f"{_NATIVE_TOWER}embeddings.patch_embeddings.projection.{{kind}}",
            f"{_TOWER}embeddings.patch_embedding.{{kind}}",
        ),
        (f"{_NATIVE_LAYER}attention.{{part:{'|'.join(NATIVE_QKV)}}}.{{kind}}", f"{_LAYER}attn.qkv.{{kind}}"),
        (f"{_NATIVE_LAYER}attention.projection_layer.{{kind}}", f"{_LAYER}attn.proj.{{kind}}"),
        (f"{_NATIVE_LAYER}layernorm_before.{{kind}}", f"{_LAYER}norm1.{{kind}}"),
        (f"{_NATIVE_LAYER}layernorm_after.{{kind}}", f"{_LAYER}norm2.{{kind}}"),
        (f"{_NATIVE_LAYER}lambda_1", f"{_LAYER}ls1"),
        (f"{_NATIVE_LAYER}lambda_2", f"{_LAYER}ls2"),
        (f"{_NATIVE_LAYER}mlp.*", f"{_LAYER}mlp.*"),
        ("multi_modal_projector.layer_norm.{kind}", "lmm.mlp1.0.{kind}"),
        ("multi_modal_projector.linear_1.{kind}", "lmm.mlp1.1.{kind}"),
        ("multi_modal_projector.linear_2.{kind}", "lmm.mlp1.3.{kind}"),
        ("lm_head.weight", "lmm.language_model.lm_head.weight"),
        ("language_model.lm_head.weight", "lmm.language_model.lm_head.weight"),
        ("language_model.model.*", "lmm.language_model.model.*"),
        ("language_model.*", "lmm.language_model.model.*"),
    )
)
"""InternVL as its remote code has it, or transformers' own class, without the `model.` that it may have in front ->
the authors' file. Both of them call the language model alike.
"""
