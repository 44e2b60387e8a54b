"""Any module is filled from any file of weights: by name and shape, each tensor to its place."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reca_fast.errors import UserError
from reca_fast.models.files import NameTable, Placement, check_fit, fill, open_weights, uniform

ON_CPU = uniform(torch.float32, "cpu")


class Toy(nn.Module):
    """An embedding that is also the head, as small language models have it, a layer, and two buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.layer = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("computed", torch.zeros(2), persistent=False)


NAMES = NameTable(
    (("embedding.*", "lm.embed.*"), ("head.*", "lm.head.*"), ("layer.*", "lm.layer.*"), ("count", "lm.count")),
    under="lm.",
)


def toy() -> Toy:
    with torch.device("meta"):
        return Toy()


def tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"lm.embed.weight": (5, 3), "lm.layer.weight": (3, 3), "lm.layer.bias": (3,), "lm.count": (1,)}
    return {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}


@pytest.fixture(params=["safetensors", "pth"])
def write(request, tmp_path):
    """Write tensors to a file of either kind."""

    def written(stored: dict[str, Tensor]) -> Path:
        path = tmp_path / f"weights.{request.param}"
        if request.param == "pth":
            torch.save(stored, path)
        else:
            save_file(stored, path)
        return path

    return written


def filled(path: Path, module: nn.Module, place=ON_CPU, names: NameTable = NAMES) -> nn.Module:
    with open_weights(path) as weights:
        fill(module, weights, place, names)
    return module


def test_parameters_and_persistent_buffers(write) -> None:
    stored, module = tensors(), toy()
    filled(write(stored), module)
    assert torch.equal(module.embedding.weight, stored["lm.embed.weight"])
    assert torch.equal(module.layer.weight, stored["lm.layer.weight"])
    assert torch.equal(module.count, stored["lm.count"])
    assert module.computed.is_meta  # in no checkpoint: the module computes it
    assert isinstance(module.layer.weight, nn.Parameter) and not isinstance(module.count, nn.Parameter)


@pytest.mark.parametrize("keys", [["lm.embed.weight"], ["lm.head.weight"], ["lm.embed.weight", "lm.head.weight"]])
def test_shared_parameters_stay_shared(keys, write) -> None:
    """Files hold them under either name, or under both."""
    stored = tensors()
    table = stored.pop("lm.embed.weight")
    module = toy()
    filled(write(stored | {key: table.clone() for key in keys}), module)
    assert module.head.weight is module.embedding.weight and torch.equal(module.head.weight, table)


def test_each_tensor_to_its_place(write) -> None:
    """The place is asked with the name in the module and the empty tensor, and requires_grad stays as it was."""
    module = toy()
    module.layer.requires_grad_(False)
    asked = {}

    def place(name: str, tensor: Tensor) -> Placement:
        asked[name] = tuple(tensor.shape), tensor.device.type
        return Placement(torch.bfloat16 if name.startswith("layer.") else torch.float64, "cpu")

    filled(write(tensors()), module, place)
    shapes = {"embedding.weight": (5, 3), "layer.weight": (3, 3), "layer.bias": (3,), "count": (1,)}
    assert asked == {name: (shape, "meta") for name, shape in shapes.items()}
    assert module.layer.weight.dtype is torch.bfloat16 and module.embedding.weight.dtype is torch.float64
    assert not module.layer.weight.requires_grad and module.embedding.weight.requires_grad


def test_an_update_never_writes_to_the_file(write) -> None:
    module, path = toy(), write(tensors())
    before = path.read_bytes()
    filled(path, module)
    with torch.no_grad():
        module.layer.weight.add_(1)
    assert path.read_bytes() == before
    assert torch.equal(module.layer.weight, tensors()["lm.layer.weight"] + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lm.layer.bias": None}, r"1 missing \(lm\.layer\.bias\)"),
        ({"lm.embed.weight": None}, r"1 missing \(lm\.embed\.weight\)"),
        ({"lm.layer.scale": torch.ones(1)}, r"1 unexpected \(lm\.layer\.scale\)"),
        ({"lm.layer.bias": torch.ones(4)}, r"1 misshapen \(lm\.layer\.bias \[4\] instead of \[3\]\)"),
        ({"lm.layer.bias": torch.ones(3).int()}, "holds lm.layer.bias as (I32|int32); weights must be F64, F32"),
        ({"lm.layer.bias": torch.ones(3).long()}, "holds lm.layer.bias as int64; weights must be F64, F32"),
    ],
)
def test_a_file_that_does_not_fit(changes, message, write) -> None:
    """The fault is named, and the module stays empty."""
    stored = {key: tensor for key, tensor in (tensors() | changes).items() if tensor is not None}
    module, path = toy(), write(stored)
    with pytest.raises(UserError, match=message):
        filled(path, module)
    assert all(tensor.is_meta for tensor in module.state_dict().values())


def test_two_modules_from_one_file(write) -> None:
    """Each takes what is its own; together they account for every key."""
    with torch.device("meta"):
        tower = nn.Linear(2, 2)
    tower_names = NameTable((("*", "vision.*"),), under="vision.")
    stored = tensors() | {"vision.weight": torch.ones(2, 2), "vision.bias": torch.zeros(2)}
    path = write(stored)
    filled(path, toy())
    filled(path, tower, names=tower_names)
    assert torch.equal(tower.weight, torch.ones(2, 2))
    with open_weights(path) as weights, torch.device("meta"):
        read = check_fit(weights, (Toy(), NAMES), (nn.Linear(2, 2), tower_names))
    assert read.keys() == stored.keys() and read["vision.weight"] == "weight"


def test_a_convolution_in_the_file_is_a_matrix_in_the_module(write) -> None:
    with torch.device("meta"):
        module = nn.Linear(3, 2, bias=False)
    names = NameTable((("*", "*"),), convolutions=("weight",))
    kernel = torch.arange(6.0).view(2, 3, 1, 1)
    filled(write({"weight": kernel}), module, names=names)
    assert torch.equal(module.weight, kernel.view(2, 3))
    with pytest.raises(UserError, match=r"weight \[2, 3\] instead of \[2, 3, 1, 1\]"):
        filled(write({"weight": kernel.view(2, 3)}), module, names=names)
