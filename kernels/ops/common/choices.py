"""Which implementation of each operation a device gets, for `reca-fast doctor`."""

from itertools import chain

import torch

from .implementation import implementation, kernel_mode, why_not_triton
from .liger import liger_installed
from .registry import OPERATIONS


def kernel_choices(device: torch.device) -> dict[str, tuple[str, str]]:
    """Every public operation by name -> what computes it on `device` ("triton", "liger" or "reference"), and why.
    Attention is not among them; `available_backends` says which libraries can compute it there.

    Raises:
        ValueError: the setting asks for Triton and it cannot run on `device`, or the setting is unknown.
    """
    chosen = implementation(torch.empty(0, device=device))
    mode = kernel_mode()
    if chosen == "triton":
        why = f"kernels={mode}"
        liger = ("liger", why)
        if not liger_installed():
            liger = ("reference", "liger-kernel is not installed; pip install 'reca-fast[gpu]'")
        if device.type != "cuda":
            liger = ("reference", "Liger's kernels run on a GPU only")
    else:
        why = why_not_triton(device) or "Triton kernels run on a GPU"
        if mode == "reference":
            why = "kernels=reference"
        elif device.type == "cpu":
            why = "auto takes kernels on a GPU only"
        liger = ("reference", why)
    by_us, by_liger = _functions("triton"), _functions("liger")
    return dict.fromkeys(by_us, (chosen, why)) | dict.fromkeys(by_liger, liger)


def _functions(computed_by: str) -> list[str]:
    """The public functions of all operations that are computed so, sorted."""
    return sorted(chain.from_iterable(x.functions for x in OPERATIONS.values() if x.computed_by == computed_by))
