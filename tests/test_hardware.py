"""What is asked of the machine: which device an option means, how fast a GPU can be, what it is called."""

import pytest
import torch

from reca_fast.errors import UserError
from reca_fast.hardware import PEAKS, describe_machine, find_gpu, peak_flops, pick_device


def test_the_cpu_can_always_be_had() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="device='tpu': expected auto, cpu or cuda"):
        pick_device("tpu")


def test_a_gpu_that_is_not_there_is_told(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch sees no GPU here; `reca-fast doctor` says why\. Use --device cpu"):
        pick_device("cuda")
    assert describe_machine()[1].startswith("GPU: none (")


def test_more_processes_than_gpus_are_told(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    assert pick_device("auto", local_rank=1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="This host has 2 GPUs; start at most that many processes"):
        pick_device("auto", local_rank=2)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", PEAKS["H100"]),
        ("NVIDIA H100 PCIe", PEAKS["H100 PCIe"]),
        ("NVIDIA H100 NVL", PEAKS["H100 NVL"]),
        ("NVIDIA A100-SXM4-80GB", PEAKS["A100"]),
        ("NVIDIA L40S", PEAKS["L40S"]),
        ("NVIDIA GeForce RTX 4090", PEAKS["RTX 4090"]),
        ("Some Other GPU", None),
    ],
)
def test_a_peak_is_that_of_the_longest_name_that_fits(name, peak, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("4090", "RTX 4090"),
        ("rtx_3060", "RTX 3060"),
        ("RTX 3060 12GB", "RTX 3060"),
        ("geforce-rtx-4060-ti-16gb", "RTX 4060 Ti"),
        ("a100-40gb", "A100 40GB"),
        ("A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("h100 pcie", "H100 PCIe"),
        ("h100nvl", "H100 NVL"),
        ("l40s", "L40S"),
        ("B200", "B200"),
    ],
)
def test_a_gpu_is_found_however_its_name_is_written(said, meant) -> None:
    assert find_gpu(said).name == meant


def test_an_unknown_gpu_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no GPU 'RTX 4096' in the table; the nearest is RTX 40"):
        find_gpu("RTX 4096")
