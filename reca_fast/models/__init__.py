"""Models, found by their checkpoint folder or by their published name. A model is a room beside `bagel/` and one line
in MODELS; what it has to offer stands in `protocol.py`.
"""

import importlib
from pathlib import Path

from reca_fast.config import ModelConfig
from reca_fast.errors import UserError

from .protocol import Batch, Case, EditsPictures, FrozenPart, Model, SaysTokens
from .tiny import TINY, is_tiny, with_path

__all__ = [
    "MODELS",
    "TINY",
    "Batch",
    "Case",
    "EditsPictures",
    "FrozenPart",
    "Model",
    "SaysTokens",
    "editor",
    "marks",
    "model_class",
    "open_model",
    "published_model",
    "recognised",
]

MODELS = {
    "bagel": "reca_fast.models.bagel:BagelModel",
    "openuni": "reca_fast.models.openuni:OpenUniModel",
    "showo": "reca_fast.models.showo:ShowoModel",
    "auxiliary": "reca_fast.models.auxiliary:AuxiliaryModel",
    "harmon": "reca_fast.models.harmon:HarmonModel",
}
"""Name of an architecture -> the module and the class that implements `Model`. Imported when it is asked for."""


def model_class(name: str) -> type[Model]:
    """The class of the architecture `name`, a key of MODELS."""
    module, _, cls = MODELS[name].partition(":")
    found: type[Model] = getattr(importlib.import_module(module), cls)
    return found


def recognised(folder: Path) -> type[Model] | None:
    """The class of the architecture whose checkpoint a folder is; None when it is none that is known."""
    return next((cls for cls in map(model_class, MODELS) if cls.recognises(folder)), None)


def marks() -> str:
    """The files by which the known architectures tell their checkpoint folders, in words for a message."""
    return " or ".join(model_class(name).MARK for name in MODELS)


def open_model(options: ModelConfig) -> Model:
    """The model of the checkpoint folder `options.path`, its module still on the meta device; or the tiny model
    `options.name`, where there is no path.

    Raises:
        UserError: no such folder, or a folder of no known model.
    """
    if is_tiny(options):
        options = with_path(options)
    if not options.path:
        raise UserError("No checkpoint given; set --model.path to the folder of one.")
    folder = Path(options.path)
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise UserError(f"The checkpoint folder {folder} {what}; set --model.path to where it is.")
    if cls := recognised(folder):
        named = _architecture(options.name)
        if named and model_class(named) is not cls:
            found = next(name for name in MODELS if model_class(name) is cls)
            raise UserError(
                f"{folder} is a checkpoint of another model: it is one of {found}, and model.name={options.name} is "
                f"one of {named}. Take a recipe for this checkpoint, or set --model.path to one of {options.name}."
            )
        return cls.open(options)
    if any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds weights, but {marks()} is missing, which tells the model; copy it there.")
    raise UserError(f"{folder} is no checkpoint of a known model: it holds no {marks()}.")


def _architecture(name: str) -> str | None:
    """The key of MODELS of a published or a tiny model's architecture; None for a name of neither."""
    if name in TINY:
        return TINY[name].removeprefix(f"{__name__}.").partition(".")[0]
    return next((each for each in MODELS if name and name in model_class(each).PUBLISHED), None)


def published_model(name: str, options: ModelConfig) -> Model:
    """The model that its authors published under `name`, at its true sizes and without any file.

    Raises:
        UserError: no architecture has published such a model.
    """
    for architecture in MODELS:
        if model := model_class(architecture).published(name, options):
            return model
    known = ", ".join(each for architecture in MODELS for each in model_class(architecture).PUBLISHED)
    raise UserError(f"{name} is no published model; known are {known}.")


def editor(model: Model) -> EditsPictures:
    """The model itself, as one that edits pictures.

    Raises:
        UserError: it edits none.
    """
    if isinstance(model, EditsPictures):
        return model
    others = ", ".join(name for name in MODELS if hasattr(model_class(name), "EDITING"))
    raise UserError(
        f"This checkpoint's model draws pictures from prompts alone; those that change a given picture are: {others}. "
        "Leave the picture out, or set --model.path to a checkpoint of one of them."
    )
