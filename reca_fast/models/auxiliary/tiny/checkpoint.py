"""Writing a whole VLM folder of a few megabytes by transformers' own save_pretrained, and a VAE beside it."""

from pathlib import Path
from typing import Any

import torch

from reca_fast.models.auxiliary.vae import CONFIG as VAE_CONFIG
from reca_fast.models.auxiliary.vae import WEIGHTS as VAE_WEIGHTS
from reca_fast.models.bagel.tiny import VAE_FILE, TinyConfig
from reca_fast.models.files import Stored, open_weights, write_safetensors
from reca_fast.models.files.folder import write_object
from reca_fast.models.parts.kl_vae_names import kl_vae_names
from reca_fast.models.parts.lean_import import lean_import

from .tokenizer import MARKERS, write_tokenizer

VOCABULARY = 320


def write_tiny_auxiliary(folder: Path) -> None:
    """Write the checkpoint folder that the recipe tiny-auxiliary trains: a LLaVA that sees 112 x 112 pixels."""
    write_tiny_vlm(folder)


def write_tiny_vlm(
    folder: Path,
    flavour: str = "llava",
    *,
    side: int = 112,
    hidden_size: int = 64,
    layers: int = 2,
    shard_size: str = "1GB",
    seed: int = 0,
    **text: Any,
) -> None:
    """Write a checkpoint folder with random weights and a VAE in vae/ that was trained on photographs.

    Args:
        folder: made if it is not there.
        flavour: llava, qwen (Qwen2.5-VL), qwen2 (Qwen2-VL) or internvl.
        side: of the pictures that llava and internvl see, a multiple of 14 or 28.
        hidden_size: of the language model.
        layers: of it.
        shard_size: above which the weights are written as several files.
        seed: of the weights.
        text: more settings of the language model, as transformers calls them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(folder, flavour.rstrip("2"), VOCABULARY)
    markers = MARKERS[flavour.rstrip("2")]
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": (max(ids.values()) // 8 + 1) * 8,
        "max_position_embeddings": 2048,
        "bos_token_id": ids.get(str(markers.bos)),
        "eos_token_id": ids[markers.eos],
    }
    with lean_import():
        from transformers.utils import logging

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vlm = _MAKERS[flavour](sizes | text, ids[markers.image], side)
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        vlm.save_pretrained(folder, max_shard_size=shard_size)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    _write_vae(folder / "vae")


def _llava(text: dict[str, Any], image: int, side: int) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = {"model_type": "clip_vision_model", "image_size": side, "patch_size": 14, "projection_dim": 32}
    config = LlavaConfig(
        vision_config=vision | _TOWER, text_config={"model_type": "llama"} | text, image_token_index=image
    )
    return LlavaForConditionalGeneration(config)


def _qwen(text: dict[str, Any], image: int, side: int) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    width = text["hidden_size"]
    quarter = width // text["num_attention_heads"] // 8
    vision = {"depth": 2, "hidden_size": 48, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": width}
    windows = {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2 * quarter, quarter, quarter]}
    config = Qwen2_5_VLConfig(
        vision_config=vision | windows, text_config=text | {"rope_parameters": rope}, image_token_id=image
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen2(text: dict[str, Any], image: int, side: int) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    width = text["hidden_size"]
    quarter = width // text["num_attention_heads"] // 8
    vision = {"depth": 2, "embed_dim": 48, "hidden_size": width, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2 * quarter, quarter, quarter]}
    config = Qwen2VLConfig(vision_config=vision, text_config=text | {"rope_parameters": rope}, image_token_id=image)
    return Qwen2VLForConditionalGeneration(config)


def _internvl(text: dict[str, Any], image: int, side: int) -> Any:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    vision = {"image_size": [side, side], "patch_size": [14, 14]} | _TOWER
    config = InternVLConfig(
        vision_config=vision, text_config={"model_type": "qwen2"} | text, image_token_id=image, downsample_ratio=0.5
    )
    return InternVLForConditionalGeneration(config)


_TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_MAKERS = {"llava": _llava, "qwen": _qwen, "qwen2": _qwen2, "internvl": _internvl}


def _write_vae(folder: Path) -> None:
    """Tiny BAGEL's VAE in diffusers' layout."""
    config = TinyConfig().vae
    folder.mkdir(exist_ok=True)
    levels, widths = len(config.ch_mult), [config.ch * mult for mult in config.ch_mult]
    sizes = {
        "_class_name": "AutoencoderKL",
        "in_channels": config.in_channels,
        "out_channels": config.out_ch,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": widths,
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scale_factor,
        "shift_factor": config.shift_factor,
        "use_quant_conv": config.quant_convs,
        "use_post_quant_conv": config.quant_convs,
    }
    write_object(folder / VAE_CONFIG, sizes)
    with lean_import():
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        with torch.device("meta"):
            net = AutoencoderKL.from_config(sizes)
    names = kl_vae_names(config)
    with open_weights(VAE_FILE) as stored:
        state = net.state_dict()
        layout = {name: Stored(torch.float32, tuple(tensor.shape)) for name, tensor in state.items()}
        write_safetensors(
            folder / VAE_WEIGHTS, layout, lambda name: stored.tensor(names.key(name)).reshape(state[name].shape)
        )
