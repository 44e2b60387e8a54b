"""A complete BAGEL checkpoint folder of a few megabytes, in the public layout. Tests and the demo start from it."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from reca_fast.data.prompts import templates
from reca_fast.models.bagel.tokenizer import MARKERS
from reca_fast.models.parts.kl_vae import KLVAE, save_kl_vae

from .config import TinyConfig
from .weights import tiny_weights

END_OF_TEXT = "<|endoftext|>"


def write_tiny_checkpoint(
    folder: str | Path, *, seed: int = 0, vae_file: str | Path | None = None, **sizes: Any
) -> TinyConfig:
    """Write the checkpoint folder and return its sizes; `sizes` override the fields of `TinyConfig`.

    The same arguments give the same bytes. Without `vae_file` the VAE is random too: fine for tests, blind otherwise.
    The demo gives reca_fast/demo/vae.safetensors.
    """
    config, folder = TinyConfig(**sizes), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "llm_config.json", config.llm_config())
    _write_json(folder / "vit_config.json", config.vit_config())
    # The public config.json has neither part: a reader that misses them takes the public constants.
    glue = {"model_type": "bagel", "vae_config": config.vae.to_dict(), "bagel_config": config.glue_config()}
    _write_json(folder / "config.json", glue)
    _write_tokenizer(folder, config)
    save_file(tiny_weights(config, seed), folder / "ema.safetensors")
    if vae_file is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            save_kl_vae(KLVAE(config.vae), folder / "ae.safetensors")
    else:
        shutil.copyfile(vae_file, folder / "ae.safetensors")
    return config


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, config: TinyConfig) -> None:
    """Train a byte-level BPE on the prompt templates; write it as tokenizer.json and as Qwen's three older files."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    # Contractions, words with one leading mark, single digits, punctuation, white space: Qwen's pieces.
    pieces = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.text_vocab,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(templates(), trainer)
    special = [END_OF_TEXT, *MARKERS.values()]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in special}
    _write_json(folder / "vocab.json", dict(sorted(vocabulary.items(), key=lambda entry: entry[1])))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "add_prefix_space": False}
    none = {"bos_token": None, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "unk_token": None}
    _write_json(folder / "tokenizer_config.json", settings | none)
