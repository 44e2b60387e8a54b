"""VLMs whose sizes are known without files, by name, for planning: what their public config.json says."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class PublishedVLM(NamedTuple):
    """Sizes of a public VLM."""

    config: Mapping[str, Any]  # as in config.json
    head: int  # tokens before its picture in a conversation
    marks: int  # tokens that come on either side of a picture beside those of the chat template


_QWEN_VL_TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}

PUBLISHED: Mapping[str, PublishedVLM] = {
    "LLaVA-1.5-7B": PublishedVLM(
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "image_token_index": 32000,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
            "text_config": {
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 32064,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
            },
        },
        head=5,
        marks=0,
    ),
    "Qwen2.5-VL-3B": PublishedVLM(
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "image_token_id": 151655,
            "tie_word_embeddings": True,
            "vision_config": _QWEN_VL_TOWER | {"out_hidden_size": 2048},
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
                "max_position_embeddings": 128000,
                "rms_norm_eps": 1e-6,
                "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
                "rope_theta": 1000000.0,
                "tie_word_embeddings": True,
            },
        },
        head=15,
        marks=0,
    ),
    "InternVL3-2B": PublishedVLM(
        {
            "architectures": ["InternVLForConditionalGeneration"],
            "image_token_id": 151667,
            "downsample_ratio": 0.5,
            "tie_word_embeddings": False,
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": [448, 448],
                "patch_size": [14, 14],
                "attention_bias": True,
            },
            "text_config": {
                "model_type": "qwen2",
                "hidden_size": 1536,
                "intermediate_size": 8960,
                "num_hidden_layers": 28,
                "num_attention_heads": 12,
                "num_key_value_heads": 2,
                "vocab_size": 151674,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1000000.0,
            },
        },
        head=5,
        marks=1,
    ),
}
"""Name -> sizes."""
