"""OpenUni's ways: as its authors take the step (`openuni_eager.py`), and reca_fast's.

The authors keep every activation at 512 x 512 pixels, so "authors" is what they run.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .case import WEIGHTS, authors_step, write_case
from .openuni_eager import EagerOpenUni
from .way import Step, Way, Work, our_step, ours, settings

SEED = 7
IMG, END, CONTEXT = 10, 11, 12
SIZES: dict[str, dict[str, Any]] = {
    # 41 M parameters, two pictures of 128 x 128 in prompts of 100 tokens: 64 vectors, 64 queries, 16 x 16 latents.
    "recorded": {
        **{"pixels": 128, "prompt": 100, "queries": 64, "vit": (192, 6, 6, 768, 224, 14), "llm": (384, 8, 6, 1536)},
        **{"connector": (384, 4, 6, 1024), "sana": (8, 32, 6, 4, 64, 512), "vae": (32, 64, 128, 256)},
    },
    # For trying the harness itself.
    "tiny": {
        **{"pixels": 32, "prompt": 24, "queries": 8, "vit": (32, 1, 2, 64, 32, 4), "llm": (48, 1, 4, 96)},
        **{"connector": (48, 1, 4, 80), "sana": (4, 8, 1, 2, 16, 24), "vae": (8, 8, 16)},
    },
}
WAYS = {
    "authors": Way("authors"),
    "ours": ours(),
    "ours, cached": Way("ours", cached=True),
    "ours, recomputed": ours(recomputes=True),
}


def config_of(size: str) -> dict[str, Any]:
    """config.json of a parity case of that size."""
    s = SIZES[size]
    width, layers, heads, inner, side, patch = s["vit"]
    vit = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner}
    vit |= {"model_type": "intern_vit_6b", "image_size": side, "patch_size": patch, "num_channels": 3}
    vit |= {"qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm", "layer_norm_eps": 1e-6}
    vit |= {"hidden_act": "gelu", "initializer_factor": 0.1, "drop_path_rate": 0.0, "dropout": 0.0}
    hidden, layers, heads, inner = s["llm"]
    llm = {"model_type": "qwen2", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    llm |= {"num_key_value_heads": 2, "intermediate_size": inner, "vocab_size": 4096, "hidden_act": "silu"}
    llm |= {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False}
    width, layers, heads, inner = s["connector"]
    connector = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    connector |= {"num_attention_heads": heads, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    heads, dim, layers, cross, cross_dim, caption = s["sana"]
    channels = 8 if size == "tiny" else 32
    sana = {"in_channels": channels, "out_channels": channels, "num_attention_heads": heads, "attention_head_dim": dim}
    sana |= {"num_layers": layers, "num_cross_attention_heads": cross, "cross_attention_head_dim": cross_dim}
    sana |= {"cross_attention_dim": cross * cross_dim, "caption_channels": caption, "mlp_ratio": 2.5, "dropout": 0.0}
    stages = s["vae"]
    sana |= {"attention_bias": False, "sample_size": s["pixels"] // 2 ** (len(stages) - 1), "patch_size": 1}
    sana |= {"norm_elementwise_affine": False, "norm_eps": 1e-6, "interpolation_scale": None}
    kinds = ["ResBlock"] * (len(stages) - 1) + ["EfficientViTBlock"]
    vae: dict[str, Any] = {
        "in_channels": 3,
        "latent_channels": channels,
        "attention_head_dim": 8,
    }
    for half in ("encoder", "decoder"):
        vae |= {f"{half}_block_types": kinds, f"{half}_block_out_channels": list(stages)}
        vae |= {f"{half}_layers_per_block": [1 + (size != "tiny")] * len(stages)}
        vae |= {f"{half}_qkv_multiscales": [[]] * (len(stages) - 1) + [[5]]}
    vae |= {"upsample_block_type": "interpolate", "downsample_block_type": "Conv", "decoder_norm_types": "rms_norm"}
    vae |= {"decoder_act_fns": "silu", "scaling_factor": 0.41407}
    tokens = {"<img>": IMG, "</img>": END, "<IMG_CONTEXT>": CONTEXT, "<|im_start|>": 4, "<|im_end|>": 5}
    seen = (side // patch // 2) ** 2
    return {
        **{"special_tokens": tokens | {"newline": 6, "user": 7, "assistant": 8}, "pad_index": 0, "max_length": 2048},
        **{"proj_type": "enc_proj", "train_scheduler": {"num_train_timesteps": 1000, "shift": 1.0}},
        **{"loss_weighting": "none", "task": "image2image", "batch": 2, "num_queries": s["queries"]},
        **{"vit_input_size": side, "llm": llm, "vit": vit, "connector": connector, "sana": sana, "vae": vae},
        "image_hw": [s["pixels"]] * 2,
        "lmm": {"select_layer": -1, "downsample_ratio": 0.5, "ps_version": "v2", "num_image_token": seen},
        "trainable": {name: True for name in ("transformer", "connector", "projector", "meta_queries")},
    }


def inputs_of(config: dict[str, Any], size: str) -> dict[str, Tensor]:
    """inputs.safetensors of a parity case: random pictures, drawn again from themselves."""
    draw = torch.Generator().manual_seed(SEED)
    batch, prompt, seen = config["batch"], SIZES[size]["prompt"], config["lmm"]["num_image_token"]
    ids = torch.randint(20, config["llm"]["vocab_size"], (batch, prompt), generator=draw)
    ids[:, 3], ids[:, 4 : 4 + seen], ids[:, 4 + seen], ids[:, -1] = IMG, CONTEXT, END, IMG
    side, channels = config["sana"]["sample_size"], config["sana"]["in_channels"]
    u = torch.rand(batch, generator=draw)
    timesteps = 1000 - (1000 * u).floor()
    return {
        **{"input_ids": ids, "attention_mask": torch.ones(batch, prompt, dtype=torch.uint8)},
        "pixel_values": torch.rand(batch, 3, *config["image_hw"], generator=draw) * 2 - 1,
        **{"noise": torch.randn(batch, channels, side, side, generator=draw), "u": u},
        **{"timesteps": timesteps, "sigmas": timesteps / 1000},
    }


def write(size: str, folder: Path) -> None:
    config = config_of(size)
    write_case(folder, config, inputs_of(config, size), EagerOpenUni(config).published_shapes())


def build(way: Way, work: Work) -> Step:
    if way.kind == "authors":
        return authors_step(work, EagerOpenUni, lambda model, inputs: model(inputs))
    config, model, batch = _open(way, work)
    return our_step(way, work, config, model, batch.to(work.device))


def _open(way: Way, work: Work) -> tuple[Any, Any, Any]:
    """(configuration, reca_fast's model on the meta device, batch). Imported in here, so that the authors' step is
    measured without it.
    """
    from reca_fast.models.openuni.cases import RecordedCase
    from reca_fast.models.openuni.model import OpenUniModel
    from reca_fast.models.openuni.tokenizer import PUBLISHED_TOKENS

    options = {"model.path": "", "model.weights": str(work.folder / WEIGHTS)}
    config, case = settings(work, {**options, **way.options}), RecordedCase.open(work.folder)
    assert case is not None
    return config, OpenUniModel(case.config, config.model, PUBLISHED_TOKENS), case.batch(work.dtype)
