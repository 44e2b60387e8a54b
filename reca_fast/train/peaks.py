"""Dense bf16 peaks of known GPUs, for model-FLOPs utilisation. An unknown GPU has no peak and no utilisation."""

import torch

PEAKS = {
    "A100": 312e12,
    "A800": 312e12,
    "A10": 125e12,
    "A40": 150e12,
    "RTX A6000": 155e12,
    "L4": 121e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "RTX 5090": 209e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "H20": 148e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
}
"""Part of the device name -> FLOP/s with fp32 accumulation, without sparsity (the vendors' data sheets)."""


def peak_flops(device: torch.device) -> float | None:
    """Peak of a device in FLOP/s; None for CPUs and for GPUs that the table does not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    words = name.replace("-", " ").split()
    known = [part for part in PEAKS if all(word in words for word in part.split())]
    return PEAKS[max(known, key=len)] if known else None
