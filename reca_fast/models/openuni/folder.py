"""An OpenUni checkpoint folder: the authors' file, and beside it the public models that it builds on.

    openuni_*.pth (or .safetensors)   queries, connector and projector; after stage 2 and RECA SANA too
    internvl3/                        InternVL3, in the layout of its remote code or in transformers' ("-hf")
    sana/                             the generator's folder, or the `transformer` in it
    vae/                              the DC-AE

What the authors' file holds of a part counts; what it lacks is read from the public model.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reca_fast.errors import UserError
from reca_fast.models.files import Weights, open_weights
from reca_fast.models.files.folder import REMEDY, check_links, read_object
from reca_fast.models.files.joined import JoinedWeights, Piece, hub_files
from reca_fast.models.files.pth import TORCH_SUFFIXES
from reca_fast.models.parts.qwen2_config import Qwen2Config
from reca_fast.models.parts.qwen_tokenizer import TOKENIZER_FILES
from reca_fast.schema import from_dict, shown

from .config import ConnectorConfig, DCAEConfig, OpenUniConfig, SanaConfig, VitConfig
from .names import INTERNVL_NAMES, NATIVE_QKV

LLM, SANA, VAE = "internvl3", "sana", "vae"
OWN = "openuni_*"
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
PREFIXES = {LLM: "lmm.", SANA: "transformer.", VAE: "vae."}
"""Folder of a public model -> what its keys begin with in the authors' file."""
TRAINED = ("meta_queries", "connector.", "projector.")
"""Beginnings of the keys that every file of the authors has."""
HEAD_DIM = 64
"""Numbers in a head of the connector: no file states them."""


@dataclass(frozen=True)
class OpenUniFolder:
    """A checkpoint folder, of which the configurations can be read and the weights opened.

    Args:
        path: of the folder.
        own: the authors' file.
    """

    path: Path
    own: Path

    @classmethod
    def find(cls, path: Path, choice: str = "auto") -> "OpenUniFolder":
        """The folder with its file of weights.

        Args:
            path: of the folder.
            choice: the file's name in the folder, or a path of its own; auto takes the only one that is called OWN.

        Raises:
            UserError: a part of the folder is missing, or auto finds several files or none.
        """
        if not path.is_dir():
            raise UserError(f"The checkpoint folder {path} does not exist; set model.path to an OpenUni folder.")
        for name, what in ((LLM, "InternVL3"), (SANA, "SANA"), (VAE, "the DC-AE")):
            check_links(path, [name])
            if not (path / name).is_dir():
                raise UserError(f"{path / name} is missing: put {what}'s folder from the hub there, or a link to it.")
        if choice != "auto":
            if not choice.endswith(SUFFIXES) or "\0" in choice:
                raise UserError(f"model.weights={shown(choice)}: a file of weights ends in {', '.join(SUFFIXES)}.")
            return cls(path, path / choice)
        found = sorted(each for each in path.glob(OWN) if each.suffix in SUFFIXES)
        if len(found) != 1:
            names = f"{' and '.join(each.name for each in found)}: name the one to read with --model.weights"
            raise UserError(
                f"{path} holds {names}."
                if found
                else f"{path} holds no {OWN}.pth: put one of the authors' files there, such as "
                "openuni_l_internvl3_2b_sana_1_6b_512_hf_text2image23m.pth."
            )
        return cls(path, found[0])

    @property
    def sana(self) -> Path:
        """The folder of the transformer."""
        inside = self.path / SANA / "transformer"
        return inside if inside.is_dir() else self.path / SANA

    @property
    def configs(self) -> dict[str, Path]:
        """Part -> its config.json."""
        return {
            LLM: self.path / LLM / "config.json",
            SANA: self.sana / "config.json",
            VAE: self.path / VAE / "config.json",
        }

    def files(self) -> list[Path]:
        """All files that a model is made of, those of weights that are read included."""
        with self.weights() as weights:
            read = dict.fromkeys(piece.weights.path for pieces in weights.sources.values() for piece in pieces)
        tokenizer = (self.path / LLM / name for name in TOKENIZER_FILES)
        return [*read, *self.configs.values(), *(path for path in tokenizer if path.is_file())]

    def weights(self) -> JoinedWeights:
        """All weights, under the names of the authors' file.

        Raises:
            UserError: a file is missing or damaged, or the authors' file is none of an OpenUni.
        """
        own = open_weights(self.own)
        check_own(own)
        sources = {key: [Piece(own, key)] for key in own.shapes}
        hub = {LLM: (self.path / LLM, "model"), SANA: (self.sana, "diffusion_pytorch_model")}
        hub[VAE] = (self.path / VAE, "diffusion_pytorch_model")
        for part, (folder, name) in hub.items():
            if any(key.startswith(PREFIXES[part]) for key in own.shapes):
                continue
            opened = [open_weights(path) for path in hub_files(folder, name)]
            if part == LLM:
                sources |= internvl_sources(opened)
            else:
                sources |= {PREFIXES[part] + key: [Piece(file, key)] for file in opened for key in file.shapes}
        return JoinedWeights(self.path, sources)

    def config(self) -> OpenUniConfig:
        """The sizes, from the configurations of the public models and the shapes in the authors' file.

        Raises:
            UserError: a file is missing or damaged, or a value in it is impossible.
        """
        internvl, where = read_object(self.configs[LLM]), str(self.configs[LLM])
        sana = from_dict(SanaConfig, read_object(self.configs[SANA]), str(self.configs[SANA]), remedy=REMEDY)
        vae = from_dict(DCAEConfig, read_object(self.configs[VAE]), str(self.configs[VAE]), remedy=REMEDY)
        with open_weights(self.own) as own:
            check_own(own)
            learnt = trained_sizes(own.shapes, str(self.own), sana.caption_channels)
        try:
            return OpenUniConfig(**internvl_sizes(internvl, where), **learnt, sana=sana, vae=vae)
        except ValueError as error:
            raise UserError(f"The parts in {self.path} do not fit each other: {error}.") from None


def check_own(weights: Weights) -> None:
    """Refuse a file that lacks a part which every file of the authors has.

    Raises:
        UserError: naming the part.
    """
    for prefix in TRAINED:
        if not any(key.startswith(prefix) for key in weights.shapes):
            raise UserError(
                f"{weights.path} holds no {prefix.rstrip('.')}, so it is no file of an OpenUni: take one of the "
                "authors' openuni_*.pth, or what `reca-fast export` made of one."
            )


def trained_sizes(shapes: Mapping[str, tuple[int, ...]], where: str, caption_channels: int) -> dict[str, Any]:
    """The fields of `OpenUniConfig` that no configuration states, from the shapes in the authors' file.

    Raises:
        UserError: naming `where`; the file lacks a tensor that tells a size.
    """
    norm, mlp = "connector.layers.0.layer_norm1.weight", "connector.layers.0.mlp.fc1.weight"
    telling = {"meta_queries": 2, norm: 1, mlp: 2}
    for key, dimensions in telling.items():
        if len(shapes.get(key, ())) != dimensions:
            raise UserError(f"{where} has no {key} of {dimensions} dimensions; take a whole file of the authors.")
    layers = {int(found[1]) for key in shapes if (found := re.match(r"connector\.layers\.(\d+)\.", key))}
    (width,), kind = shapes[norm], "enc_proj"
    if "projector.0.weight" in shapes:
        kind = "proj_enc_proj"
    elif shapes.get("projector.weight", (caption_channels, width))[1] != width:
        kind = "proj_enc"
    connector = {
        "hidden_size": width,
        "intermediate_size": shapes[mlp][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, math.ceil(width / HEAD_DIM)),
    }
    sizes = from_dict(ConnectorConfig, connector, f"The connector in {where}")
    return {"connector": sizes, "num_queries": shapes["meta_queries"][0], "projector": kind}


def internvl_sizes(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of `OpenUniConfig` that an InternVL3's config.json states, in either of its layouts.

    Raises:
        UserError: naming `where`; it describes another model.
    """
    remote = "llm_config" in values
    llm, vit = values.get("llm_config" if remote else "text_config"), values.get("vision_config")
    if not isinstance(llm, dict) or not isinstance(vit, dict):
        raise UserError(
            f"{where} describes no InternVL3: it has neither llm_config nor text_config beside vision_config."
        )
    if not remote:
        rope = llm.get("rope_parameters") or {}
        llm = {"rope_theta": rope.get("rope_theta", 1_000_000.0)} | llm if isinstance(rope, dict) else llm
        vit = {**vit, **{name: _side(vit.get(name)) for name in ("image_size", "patch_size") if name in vit}}
        vit["qkv_bias"], vit["qk_normalization"] = vit.get("attention_bias", False), vit.get("use_qk_norm", False)
    sizes: dict[str, Any] = {
        "llm": from_dict(Qwen2Config, llm, f"the language model in {where}", remedy=REMEDY),
        "vit": from_dict(VitConfig, vit, f"vision_config of {where}", remedy=REMEDY),
    }
    names = {"downsample_ratio": "downsample_ratio", "select_layer": "select_layer", "ps_version": "ps_version"}
    if not remote:
        names = {"downsample_ratio": "downsample_ratio", "vision_feature_layer": "select_layer"}
    return sizes | {own: values[name] for name, own in names.items() if name in values}


def _side(value: Any) -> Any:
    """The side of a square that is given as one number or as two equal ones."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


def internvl_sources(files: Sequence[Weights]) -> dict[str, list[Piece]]:
    """The tensors of an InternVL3's files under the names of the authors' file, whichever layout they have."""
    parts: dict[str, dict[int, Piece]] = {}
    for weights in files:
        for key in weights.shapes:
            plain = key.removeprefix("model.")
            try:
                name = INTERNVL_NAMES.key(plain)
            except KeyError:
                name = f"lmm.{key}"  # which is no tensor of an InternVL3, and will be called unexpected
            order = next((at for at, part in enumerate(NATIVE_QKV) if f".attention.{part}." in plain), 0)
            parts.setdefault(name, {})[order] = Piece(weights, key)
    return {name: [pieces[at] for at in sorted(pieces)] for name, pieces in parts.items()}
