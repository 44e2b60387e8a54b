"""What the public checkpoint calls the network's tensors."""

from reca_fast.models.files import NameTable

_LAYER = "showo.model.layers.{i}."
NETWORK_NAMES = NameTable(
    (
        ("embed_tokens.{kind}", "showo.model.embed_tokens.{kind}"),
        ("layers.{i}.{part:q_proj|k_proj|v_proj|dense}.{kind}", _LAYER + "self_attn.{part}.{kind}"),
        ("layers.{i}.{part:q_layernorm|k_layernorm}.{kind}", _LAYER + "self_attn.{part}.{kind}"),
        ("layers.{i}.input_layernorm.{kind}", _LAYER + "input_layernorm.{kind}"),
        ("layers.{i}.mlp.{part}.{kind}", _LAYER + "mlp.{part}.{kind}"),
        ("final_layernorm.{kind}", "showo.model.final_layernorm.{kind}"),
        ("lm_head.{kind}", "showo.lm_head.{kind}"),
        ("mm_projector.*", "mm_projector.*"),
    ),
    others=("vision_tower.", "vq_model."),  # a parity case holds the frozen encoders in the same file
)
