"""Scores of models that look at pictures: CLIP's likeness of picture and prompt, DINO's likeness of two pictures.

The weights are folders of the user's, in the layout of transformers. Nothing is downloaded, and no code of a folder
runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.evaluation.preprocess import read_preprocessing
from reca_fast.schema import read_json

CLIP = ("clip",)
DINO = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
"""Architectures, as config.json names them, whose first token stands for the whole picture. `vit` is DINO's first."""
UNUSED = ("pooler.", "embeddings.mask_token", "mask_token")
"""Parts that no score reads, so that files may lack them."""


class ClipScore:
    """CLIP score: 100 times the cosine between a picture and its prompt, 0 where it is negative.

    Args:
        folder: a CLIP model with its tokenizer and its preprocessor_config.json.
        device: where it computes.

    Raises:
        UserError: the folder is none of these, or not whole.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoTokenizer

        self._model = _load(folder, "clip", "CLIPModel", CLIP, device)
        self._preprocess, self._device = read_preprocessing(folder), device
        self._tokenizer = _local(folder, "clip", lambda **options: AutoTokenizer.from_pretrained(folder, **options))
        self._longest = self._model.config.text_config.max_position_embeddings
        self.shortened = 0
        """How many prompts so far had more tokens than the model reads, and were cut."""

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Tensor], prompts: Sequence[str]) -> list[float]:
        """The score of each picture (uint8 [H, W, 3], any sizes) with the prompt at its place."""
        pixels = torch.stack([self._preprocess(picture) for picture in pictures]).to(self._device)
        lengths = [len(ids) for ids in self._tokenizer(list(prompts))["input_ids"]]
        self.shortened += sum(length > self._longest for length in lengths)
        tokens = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self._device)
        model = self._model
        seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        read = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        said = model.text_projection(read.pooler_output)
        return [float(score) for score in (100 * F.cosine_similarity(seen, said)).clamp(min=0).cpu()]


class DinoSimilarity:
    """DINO similarity: the cosine between the first tokens that a DINO model makes of two pictures, 1 for equal ones.

    Args:
        folder: a DINO, DINOv2 or DINOv3 model with its preprocessor_config.json.
        device: where it computes.

    Raises:
        UserError: the folder is none of these, or not whole.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._model = _load(folder, "dino", "AutoModel", DINO, device)
        self._preprocess, self._device = read_preprocessing(folder), device

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Tensor], references: Sequence[Tensor]) -> list[float]:
        """The likeness of each picture to the reference at its place; uint8 [H, W, 3], any sizes."""
        first, second = (self._first_tokens(those) for those in (pictures, references))
        return [float(score) for score in F.cosine_similarity(first, second).cpu()]

    def _first_tokens(self, pictures: Sequence[Tensor]) -> Tensor:
        pixels = torch.stack([self._preprocess(picture) for picture in pictures]).to(self._device)
        tokens: Tensor = self._model(pixel_values=pixels).last_hidden_state
        return tokens[:, 0]


def _load(folder: Path, option: str, kind: str, known: Sequence[str], device: torch.device) -> Any:
    """The model of a folder, whole and in fp32."""
    if not folder.is_dir():
        raise UserError(f"--{option} {folder}: there is no such folder; give one with config.json and weights.")
    config = read_json(folder / "config.json")
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in known:
        raise UserError(f"--{option} {folder} holds a model of the type {found!r}, not {' or '.join(known)}.")
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model, info = _local(
        folder,
        option,
        lambda **options: getattr(transformers, kind).from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, **options
        ),
    )
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith(UNUSED))
    if lacking := lacking + sorted(str(name) for name in info.get("mismatched_keys", ())):
        raise UserError(f"--{option} {folder} lacks {lacking[0]} and {len(lacking) - 1} more weights; take it whole.")
    return model.to(device).eval()


def _local(folder: Path, option: str, load: Any) -> Any:
    """What `load` makes of a folder, without the network and without code of the folder's."""
    from safetensors import SafetensorError

    try:
        return load(local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"--{option} {folder} cannot be loaded: {said:.300}") from None
