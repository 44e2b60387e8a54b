"""LPIPS (Zhang et al., 2018): how different two pictures are to a network that was trained to name pictures.

The network's weights are a file of the user's, torchvision's AlexNet or VGG16; the few weights that LPIPS puts upon its
layers come with torchmetrics. torchmetrics' own LPIPS needs torchvision to build the network, of which not every torch
has a build, and downloads its weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from reca_fast.errors import UserError, reading

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and deviation of the channels of photographs, which count from -1 to 1."""
SMALLEST = 32
"""Pixels a side below which the last layers have nothing to see."""
WIDTHS = (64, 128, 256, 512, 512)
"""Channels of VGG16's convolutions, of which the first two groups have two and the others three."""


@dataclass(frozen=True)
class Network:
    """The convolutions of a network, numbered as torchvision numbers them."""

    name: str
    layers: tuple[nn.Module, ...]
    compared: tuple[int, ...]  # numbers of the layers after which pictures are compared


def alexnet() -> Network:
    """AlexNet, without what comes after its last compared layer."""

    def pooled() -> nn.Module:
        return nn.MaxPool2d(kernel_size=3, stride=2)

    layers = (
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), pooled()),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), pooled()),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )
    return Network("alex", layers, (1, 4, 7, 9, 11))


def vgg16() -> Network:
    """VGG16, without what comes after its last compared layer."""
    layers: list[nn.Module] = []
    compared = []
    channels = 3
    for group, width in enumerate(WIDTHS):
        if group:
            layers.append(nn.MaxPool2d(2))
        for _ in range(2 if group < 2 else 3):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        compared.append(len(layers) - 1)
    return Network("vgg", tuple(layers), tuple(compared))


NETWORKS: dict[tuple[int, ...], Callable[[], Network]] = {(64, 3, 11, 11): alexnet, (64, 3, 3, 3): vgg16}
"""Shape of the first convolution -> the network that has it."""


class Lpips:
    """LPIPS with AlexNet or VGG16, whichever the file holds: 0 for equal pictures.

    Args:
        file: torchvision's weights of the network, as torch.save or safetensors writes them.
        device: where it computes.

    Raises:
        UserError: the file is missing or damaged, or holds another network.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        stored = _weights(file)
        first = stored.get("features.0.weight", torch.empty(0))
        if tuple(first.shape) not in NETWORKS:
            raise UserError(
                f"--lpips {file} holds neither AlexNet nor VGG16; give torchvision's weights of one of them, whose "
                "first tensor is features.0.weight."
            )
        network = NETWORKS[tuple(first.shape)]()
        self.network = network.name
        """alex or vgg."""
        self._compared = network.compared
        self._layers = nn.ModuleList(network.layers)
        wanted = {name: stored.get(f"features.{name}") for name in self._layers.state_dict()}
        self._layers.load_state_dict(_checked(wanted, self._layers.state_dict(), f"--lpips {file}"))
        self._layers.requires_grad_(False).to(device)
        self._heads = [head.to(device) for head in _heads(network.name, len(network.compared))]
        self._device = device

    @torch.inference_mode()
    def __call__(self, picture: Tensor, reference: Tensor) -> float:
        """The difference of two pictures, uint8 [H, W, 3] both.

        Raises:
            UserError: they are too small.
        """
        if min(picture.shape[:2]) < SMALLEST:
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            raise UserError(f"LPIPS needs pictures of {SMALLEST} pixels a side and more, and this one has {size}.")
        pixels = torch.stack([picture, reference]).to(self._device).permute(0, 3, 1, 2).float()
        shift, scale = (torch.tensor(values, device=self._device)[:, None, None] for values in (SHIFT, SCALE))
        hidden = (pixels / 127.5 - 1 - shift) / scale
        total = torch.zeros((), device=self._device)
        heads = iter(self._heads)
        for number, layer in enumerate(self._layers):
            hidden = layer(hidden)
            if number in self._compared:
                first, second = F.normalize(hidden, dim=1, eps=1e-8)
                total += F.conv2d((first - second).square()[None], next(heads)).mean()
        return float(total)


def _weights(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, none of whose content can run."""
    with reading(file, missing="check --lpips"), file.open("rb"):
        pass
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they happen to spell
        said = " ".join(str(error).split())
        raise UserError(f"--lpips {file} is no file of tensors alone, or not whole: {said:.200}") from None
    return stored if isinstance(stored, Mapping) else {}


def _checked(found: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors that were found, all there and in the wanted shapes."""
    out = {}
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or tensor.shape != wanted[name].shape:
            shape = list(tensor.shape) if isinstance(tensor, Tensor) else "nothing"
            raise UserError(f"{where}: {name} is {list(wanted[name].shape)} in this network, and {shape} in the file.")
        out[name] = tensor
    return out


def _heads(network: str, count: int) -> list[Tensor]:
    """The weights [1, channels, 1, 1] that LPIPS puts upon each layer, from the files of torchmetrics."""
    import torchmetrics

    file = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / f"{network}.pth"
    with reading(file, missing="install torchmetrics 1.4 or newer"):
        stored = torch.load(file, map_location="cpu", weights_only=True)
    return [stored[f"lin{number}.model.1.weight"] for number in range(count)]
