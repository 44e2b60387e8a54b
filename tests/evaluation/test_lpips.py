"""LPIPS is torchmetrics', whose network is built here as torchvision builds it; nothing of a file runs."""

import importlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from reca_fast.errors import UserError
from reca_fast.evaluation.lpips import Lpips, alexnet, vgg16

CPU = torch.device("cpu")
NETWORKS = {"alex": alexnet, "vgg": vgg16}


@pytest.fixture(scope="module", params=["alex", "vgg"])
def network(request):
    """(name, the network's layers as torchvision would number them, random weights)."""
    torch.manual_seed(0)
    layers = nn.Sequential(*NETWORKS[request.param]().layers)
    return request.param, layers


def weights_of(layers):
    return {f"features.{name}": tensor.clone() for name, tensor in layers.state_dict().items()}


def pictures(*size):
    return torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def theirs(monkeypatch, name, layers, first, second):
    """LPIPS of torchmetrics, with these layers in place of what torchvision would give."""
    lpips = importlib.import_module("torchmetrics.functional.image.lpips")
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained=False: layers)
    judge = lpips._LPIPS(net=name, pnet_rand=True)
    a, b = (picture.permute(2, 0, 1)[None].float() / 127.5 - 1 for picture in (first, second))
    return judge(a, b).item()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_it_is_that_of_torchmetrics(monkeypatch, tmp_path, network, ending):
    name, layers = network
    file = tmp_path / f"network.{ending}"
    (save_file if ending == "safetensors" else torch.save)(weights_of(layers), file)
    judge = Lpips(file, CPU)
    first, second = pictures(48, 64)
    assert judge.network == name
    assert judge(first, second) == pytest.approx(theirs(monkeypatch, name, layers, first, second), rel=1e-5)
    assert judge(first, first) == 0 and judge(first, second) > 0


def test_what_is_no_such_network_is_refused(tmp_path):
    file = tmp_path / "network.pth"
    with pytest.raises(UserError, match=r"missing; check --lpips"):
        Lpips(file, CPU)
    file.write_bytes(b"not weights")
    with pytest.raises(UserError, match="no file of tensors alone"):
        Lpips(file, CPU)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    with pytest.raises(UserError, match="neither AlexNet nor VGG16"):
        Lpips(file, CPU)
    stored = weights_of(nn.Sequential(*alexnet().layers))
    del stored["features.8.bias"]
    torch.save(stored, file)
    with pytest.raises(UserError, match=r"8\.bias is \[256\] in this network, and nothing in the file"):
        Lpips(file, CPU)


class Trap:
    folder = Path()

    def __reduce__(self):
        return os.mkdir, (str(Trap.folder),)


def test_nothing_in_the_file_runs(tmp_path):
    Trap.folder = tmp_path / "ran"
    file = tmp_path / "network.pth"
    torch.save({"features.0.weight": Trap()}, file)
    with pytest.raises(UserError, match="no file of tensors alone"):
        Lpips(file, CPU)
    assert not Trap.folder.exists()


def test_pictures_that_are_too_small_are_refused(tmp_path):
    file = tmp_path / "network.pth"
    torch.save(weights_of(nn.Sequential(*alexnet().layers)), file)
    judge = Lpips(file, CPU)
    assert judge(*pictures(32, 32)) > 0
    with pytest.raises(UserError, match="64x31"):
        judge(*pictures(31, 64))
