"""What BAGEL's step keeps, needs at its peak and computes at true sizes, for settings of `memory`; on fake tensors.

    python bench/activations.py --levers recompute=blocks --levers recompute=budget budget_gib=40
    python bench/activations.py --layers 8 --levers recompute=blocks mlp_rows=4096

Eight pictures of 1024 x 1024, weights and arithmetic in bf16, latents given. Gradients of weights are dropped as they
appear, and weights do not count. About a minute for 28 layers on a quiet core.
"""

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.gpu_stages.bagel import fill_fake, make_model, pack, real_config
from reca_fast.config import LossWeights, MemoryConfig
from reca_fast.memory import apply_levers, watch_host_memory
from reca_fast.objectives import weighted_loss


class Alive(TorchDispatchMode):
    """Bytes of all tensors that were made inside and are alive, and their peak; those in `others` do not count."""

    def __init__(self, others: set[StorageWeakRef]) -> None:
        super().__init__()
        self.others, self.sizes, self.peak = others, dict[StorageWeakRef, int](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                place = StorageWeakRef(tensor.untyped_storage())
                if place not in self.sizes and place not in self.others:
                    self.sizes[place] = tensor.untyped_storage().nbytes()
                    self.peak = max(self.peak, self.now())
        return out

    def now(self) -> int:
        self.sizes = {place: size for place, size in self.sizes.items() if not place.expired()}
        return sum(self.sizes.values())


def drop(weight: Tensor) -> None:
    """Its gradient, and the cycles in which the recomputation of fake tensors leaves its memory."""
    weight.grad = None
    if weight.numel() > 5e7:
        gc.collect()


def measure(layers: int, pictures: int, levers: dict[str, Any]) -> str:
    """One line about a step."""
    model = make_model(real_config(layers))
    batch = pack(model, pictures)
    said: list[str] = []
    on_host: list[int] = []
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        apply_levers(model.module, model.blocks(), MemoryConfig(**levers), say=said.append)
        fill_fake(model, torch.bfloat16)
        weights = [p for part in (model.module, model.encoders.vit) for p in part.parameters()]
        alive = Alive({StorageWeakRef(p.untyped_storage()) for p in weights})

        def note(tensor: Tensor) -> None:
            on_host.append(tensor.nbytes)
            place = StorageWeakRef(tensor.untyped_storage())
            alive.others.add(place)
            alive.sizes.pop(place, None)  # counted when it was made

        for weight in weights:
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(drop)
        with FlopCounterMode(display=False) as counter, alive, watch_host_memory(note):
            sums = model.loss_sums(model.encode(batch))
            loss = weighted_loss(sums, batch.counts, LossWeights())
            del sums
            kept = alive.now()
            loss.backward()
    flops = counter.get_total_flops() / pictures
    return (
        f"{levers}: keeps {kept / 1e9:.1f} GB on the device and {sum(on_host) / 1e9:.1f} GB on the host, "
        f"peak {alive.peak / 1e9:.1f} GB, {flops / 1e12:.1f} TFLOP a picture. {' '.join(said)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--levers", nargs="+", action="append", required=True, metavar="NAME=VALUE")
    args = parser.parse_args()
    for group in args.levers:
        levers: dict[str, Any] = {}
        for name, value in (pair.split("=") for pair in group):
            kind = type(getattr(MemoryConfig(), name))
            levers[name] = value == "true" if kind is bool else kind(value)
        print(measure(args.layers, args.pictures, levers), flush=True)


if __name__ == "__main__":
    main()
