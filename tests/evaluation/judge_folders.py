"""Tiny judges in the layout of transformers, with random weights: what matters is that they are read and applied."""

import json
from pathlib import Path

import torch

WORDS = ["a", "cat", "dog", "red", "on", "table"]


def write_clip(folder: Path, **changes) -> Path:
    """A CLIP of two layers that sees pictures of 16 pixels, with a tokenizer that knows some words by their letters."""
    from transformers import CLIPConfig, CLIPModel

    letters = sorted({letter for word in WORDS for letter in word})
    vocabulary = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1, "pad_token_id": 0}
    text = {**small, **ids, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8, **changes
    )
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    processor = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True}
    write_preprocessing(folder, **processor)
    return folder


def write_dino(folder: Path) -> Path:
    """A DINOv2 of two layers that sees the middle of pictures."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=14, patch_size=7
    )
    Dinov2Model(config).save_pretrained(folder)
    crop = {"size": {"shortest_edge": 18}, "crop_size": {"height": 14, "width": 14}, "do_center_crop": True}
    write_preprocessing(folder, **crop)
    return folder


def write_preprocessing(folder: Path, **settings) -> None:
    normal = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**normal, **settings}))
