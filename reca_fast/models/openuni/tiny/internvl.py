"""Writing an InternVL3 folder in either of the layouts that the hub has."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from reca_fast.models.files import NameTable
from reca_fast.models.files.folder import write_object
from reca_fast.models.openuni.config import OpenUniConfig
from reca_fast.models.openuni.names import INTERNVL_NAMES, NATIVE_QKV

PREFIX = "lmm."


def write_internvl(folder: Path, config: OpenUniConfig, weights: dict[str, Tensor], *, native: bool) -> None:
    """Write config.json and model.safetensors.

    Args:
        weights: all of the model's, under the names of the authors' file.
        native: in the layout of transformers' class; otherwise in that of the remote code.
    """
    mine = {key.removeprefix(PREFIX): tensor for key, tensor in weights.items() if key.startswith(PREFIX)}
    write_object(folder / "config.json", native_config(config) if native else remote_config(config))
    save_file(native_weights(mine, config) if native else mine, folder / "model.safetensors")


def remote_config(config: OpenUniConfig) -> dict[str, Any]:
    """config.json as the remote code has it."""
    llm = {**asdict(config.llm), "model_type": "qwen2", "rope_scaling": {"factor": 2.0, "rope_type": "dynamic"}}
    vit = {**asdict(config.vit), "model_type": "intern_vit_6b", "drop_path_rate": 0.1}
    joints = {"downsample_ratio": config.downsample_ratio, "ps_version": config.ps_version}
    joints |= {"select_layer": config.select_layer, "force_image_size": config.vit.image_size}
    return {"model_type": "internvl_chat", "llm_config": llm, "vision_config": vit, **joints}


def native_config(config: OpenUniConfig) -> dict[str, Any]:
    """config.json as transformers has it."""
    vit = {**asdict(config.vit), "model_type": "internvl_vision", "attention_bias": config.vit.qkv_bias}
    vit |= {name: [vit[name]] * 2 for name in ("image_size", "patch_size")}
    text = {key: value for key, value in asdict(config.llm).items() if key not in ("rope_theta", "rope_scaling")}
    text |= {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": config.llm.rope_theta}}
    joints = {"downsample_ratio": config.downsample_ratio, "vision_feature_layer": config.select_layer}
    return {"model_type": "internvl", "text_config": text, "vision_config": vit, **joints}


def native_weights(remote: dict[str, Tensor], config: OpenUniConfig) -> dict[str, Tensor]:
    """The remote code's tensors under the names of transformers' class, queries, keys and values apart."""
    written: dict[str, Tensor] = {}
    for part, suffix in zip(NATIVE_QKV, range(3), strict=True):
        for layer in range(config.vit.num_hidden_layers):
            for kind in ("weight", "bias"):
                key = f"vision_tower.encoder.layer.{layer}.attention.{part}.{kind}"
                fused = remote[INTERNVL_NAMES.key(key).removeprefix(PREFIX)]
                written[f"model.{key}"] = fused.chunk(3)[suffix].clone()
    native = [rule for rule in INTERNVL_NAMES.rules if "vision_tower" in rule[0] or "projector" in rule[0]]
    backwards = [(public, own) for own, public in native if "qkv" not in public]
    table = NameTable(
        (
            *((public.removeprefix(PREFIX), f"model.{own}") for public, own in backwards),
            ("language_model.model.*", "model.language_model.*"),
            ("language_model.lm_head.weight", "lm_head.weight"),
        )
    )
    return written | {table.key(key): tensor.clone() for key, tensor in remote.items() if ".attn.qkv." not in key}
