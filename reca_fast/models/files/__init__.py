"""Files of weights: opening them, the names inside them, giving a module its weights, and writing them.

Nothing here knows a model. A model states how its tensors are called in its public checkpoint (`NameTable`), the
trainer states in which dtype and on which device each tensor shall be (`Place`), and `fill` does the rest:

    with open_weights(folder / "ema.safetensors") as weights:
        fill(module, weights, place, names)
"""

from .empty import EmptyWeights
from .fill import Place, Placement, check_fit, fill, uniform
from .names import SAME_NAMES, NameTable
from .read import check_finite, open_safetensors, open_weights, stored_shapes
from .weights import Weights
from .write import Change, Stored, after, rewrite_weights, write_safetensors

__all__ = [
    "SAME_NAMES",
    "Change",
    "EmptyWeights",
    "NameTable",
    "Place",
    "Placement",
    "Stored",
    "Weights",
    "after",
    "check_finite",
    "check_fit",
    "fill",
    "open_safetensors",
    "open_weights",
    "rewrite_weights",
    "stored_shapes",
    "uniform",
    "write_safetensors",
]
