"""transformers' VLM, taken apart: what is trained (`LanguageSide`), and the frozen tower before it (`Tower`)."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from reca_fast.errors import UserError
from reca_fast.kernels import Varlen
from reca_fast.models.parts.lean_import import lean_import
from reca_fast.schema import shown

from .family import FAMILIES, Family
from .fast import PACKED, WINDOWED, make_fast
from .tables import tables_of, weights_on_meta

LANGUAGE_MODELS = {"llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text"}
"""`model_type` of the text models whose layers are known to take packs: causal, rotary, RMSNorm before each part."""


class LanguageSide(nn.Module):
    """The projector and the language model of a VLM: all that is trained of it.

    Args:
        vlm: transformers' class, on the meta device; taken apart.
        family: of it.
    """

    def __init__(self, vlm: Any, family: Family) -> None:
        super().__init__()
        text = vlm.model.language_model
        self.projector: nn.Module = vlm.model.get_submodule(family.PROJECTOR)
        self.embed_tokens: nn.Embedding = text.embed_tokens
        self.layers: nn.ModuleList = text.layers
        self.norm: nn.Module = make_fast(text.layers, text.norm, text.config.hidden_act)
        self.rotary: nn.Module = text.rotary_emb
        self.lm_head: nn.Linear = vlm.lm_head
        self.backend, self.dtype = "sdpa", torch.float32
        self.tables = tables_of(self)
        text.config._attn_implementation = PACKED  # the layers hold this very object

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding table."""
        return self.lm_head.weight is self.embed_tokens.weight

    def untie(self) -> None:
        """Give the head a weight of its own, on the meta device."""
        self.lm_head.weight = nn.Parameter(torch.empty_like(self.embed_tokens.weight))

    def forward(self, ids: Tensor, positions: Tensor, segments: Varlen, image_rows: Tensor, features: Tensor) -> Tensor:
        """Hidden states behind the last norm.

        Args:
            ids: int64 [T].
            positions: int64 [T] or [3, T], see `Family.positions`.
            segments: of the T tokens, a sample each, causal.
            image_rows: int64 [N], rows of the pictures' tokens.
            features: the tower's output for them, [N * joined, width].

        Returns:
            [T, D].
        """
        seen: Tensor = self.projector(features)
        x = self.embed_tokens(ids).to(self.dtype).index_copy(0, image_rows, seen.to(self.dtype))[:, None]
        turns = self.turns(x, positions[..., None])
        for layer in self.layers:
            # The call is transformers' own, apart from what `packed_attention` needs.
            x = layer(x, attention_mask=None, position_embeddings=turns, segments=segments, backend=self.backend)
        out: Tensor = self.norm(x[:, 0])
        return out

    @torch.no_grad()
    def turns(self, x: Tensor, positions: Tensor) -> Any:
        """Cosines and sines of positions [T, 1] or [3, T, 1], in the dtype of x.

        It is transformers' own computation without its decorators: one reads the largest position from the device, to
        stretch the table for texts longer than the model knows; such samples are never planned.
        """
        return inspect.unwrap(type(self.rotary).forward)(self.rotary, x, positions)


class Unprojected(nn.Module):
    """Stands in the projector's place in the tower: its input goes through, the rows of each token joined.

    Args:
        joined: how many rows the projector makes one token of.
    """

    def __init__(self, joined: int) -> None:
        super().__init__()
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        """[..., rows, width] -> [..., rows / joined, joined * width]."""
        return x if self.joined == 1 else x.reshape(-1, self.joined * x.shape[-1])


class Tower(nn.Module):
    """The frozen vision tower, run by transformers' own `get_image_features` without its projector. That method knows
    which layers' output counts, and what is folded into what.

    Args:
        vlm: transformers' class, on the meta device.
        family: of it.
    """

    def __init__(self, vlm: Any, family: Family) -> None:
        super().__init__()
        self.family = family
        self.tower: nn.Module = vlm.model.get_submodule(family.TOWER)
        whole = copy.copy(vlm.model)
        whole._modules = {family.TOWER: self.tower}
        whole.set_submodule(family.PROJECTOR, Unprojected(family.joined))
        self._whole = (whole,)  # in a tuple, so that it is no submodule: it only lends its method
        self.requires_grad_(False).eval()
        self.tables, self.backend = tables_of(self), "sdpa"
        if family.WINDOWS:
            vlm.config.vision_config._attn_implementation = WINDOWED  # the layers hold this very object

    def forward(self, pixels: Tensor) -> Tensor:
        """One picture [3, H, W], normalised -> the projector's input [rows, width]."""
        inputs = self.family.tower_inputs(pixels)
        if self.family.WINDOWS:  # get_image_features is this call, and a split by picture that waits for the device
            made = self.tower(inputs.pop("pixel_values"), backend=self.backend, **inputs)
        else:
            made = self._whole[0].get_image_features(**inputs)
        made = getattr(made, "pooler_output", made)  # transformers 4 gives the features themselves
        joined = made if isinstance(made, Tensor) else torch.cat(list(made))
        return joined.reshape(-1, joined.shape[-1] // self.family.joined)


class VLM(NamedTuple):
    """The parts of a VLM, on the meta device."""

    family: Family
    language: LanguageSide
    tower: Tower
    config: Any  # transformers'

    @property
    def text(self) -> Any:
        """Configuration of the language model."""
        return self.config.text_config


def build_vlm(values: Mapping[str, Any], where: str) -> VLM:
    """The VLM that a config.json describes, without weights.

    Args:
        values: the content of config.json, `architectures` included.
        where: names it in messages.

    Raises:
        UserError: the sizes are impossible, or the language model is none that packs are known to suit.
    """
    kind = FAMILIES[values["architectures"][0]]
    known = {name: value for name, value in values.items() if name not in ("auto_map", "quantization_config")}
    if "quantization_config" in values:
        raise UserError(f"{where} is of quantized weights; take the checkpoint that was not quantized.")
    try:
        with lean_import():  # classes are imported when they are asked for
            import transformers

            cls = getattr(transformers, kind.CLASS)
            config = cls.config_class.from_dict(known)
            _check_text(config.text_config, where)
            with weights_on_meta():
                vlm = cls(config)
                vlm.tie_weights()
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, StrictDataclassError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{where} describes no {kind.CLASS} that transformers can build ({said}).") from None
    family = kind(config)
    language = LanguageSide(vlm, family)  # first: the tower loses its projector
    return VLM(family, language, Tower(vlm, family), config)


def _check_text(text: Any, where: str) -> None:
    if text.model_type not in LANGUAGE_MODELS:
        raise UserError(
            f"The language model of {where} is a {shown(text.model_type)}; known are "
            f"{', '.join(sorted(LANGUAGE_MODELS))}."
        )
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) == "longrope":
        raise UserError(f"{where} has rope_type longrope, whose positions depend on the longest text of a pack.")
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if window is not None and window < text.max_position_embeddings:
        raise UserError(f"{where} has attention in windows of {window} tokens (sliding_window), which packs lack.")
