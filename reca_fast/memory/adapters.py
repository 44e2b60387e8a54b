"""Low-rank adapters (LoRA, DoRA) on the linear layers that would be trained. peft's layers hold and apply them.

Around each layer comes one of peft's, which keeps it as `base_layer`; the adapters are its parameters
`lora_A.default.weight` [rank, in], `lora_B.default.weight` [out, rank] and, with DoRA,
`lora_magnitude_vector.default.weight` [out]. Nothing else of the model is trained then, apart from what no
base has (`Fresh`), so a checkpoint holds these alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from reca_fast.config import LoraConfig
from reca_fast.errors import UserError, did_you_mean
from reca_fast.extras import library
from reca_fast.models import Model
from reca_fast.models.files import Change, Place
from reca_fast.models.parts.fresh import Fresh
from reca_fast.models.parts.lean_import import lean_import
from reca_fast.randomness import generator

ADAPTER = "default"
A, B, MAGNITUDE = (f"{part}.{ADAPTER}.weight" for part in ("lora_A", "lora_B", "lora_magnitude_vector"))

SHORTEST = 1e-12
"""Length that a row of zeros is taken to have."""


class RowLengths(nn.Module):
    """DoRA's part of a layer: the trained length of each row of the adapted weight. It stands where peft has one that
    makes the whole product B A, [out, in], in every pass; here the lengths come of rank-sized products.

    Args:
        rows: of the weight.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows))
        self.register_buffer("squares", torch.empty(rows), persistent=False)
        self.squares: Tensor
        """Squared lengths of the frozen weight's rows, fp32."""

    @torch.no_grad()
    def lengths(self, down: Tensor, up: Tensor, scaling: float, base: nn.Linear, dtype: torch.dtype) -> Tensor:
        """Length of each row of W + scaling * up @ down, fp32 [rows]. It counts as a constant, as in the paper."""
        with torch.autocast(up.device.type, enabled=False):
            crossed: Tensor = base(down.to(dtype))  # down @ W.T + bias
            crossed = crossed.float() if base.bias is None else crossed.float() - base.bias.float()
            wide, narrow = up.float(), down.float()
            cross = (wide * crossed.T).sum(1)
            square = (wide @ (narrow @ narrow.T) * wide).sum(1)
        squares: Tensor = self.squares + 2 * scaling * cross + scaling**2 * square
        return squares.clamp_min(SHORTEST**2).sqrt()

    def forward(
        self, x: Tensor, *, lora_A: nn.Linear, lora_B: nn.Linear, scaling: float, base_layer: nn.Linear, **given: Any
    ) -> Tensor:
        """What peft adds to the frozen layer's output, which it gives as `base_result`."""
        result: Tensor = given["base_result"]
        plain = result if base_layer.bias is None else result - base_layer.bias
        lengths = self.lengths(lora_A.weight, lora_B.weight, scaling, base_layer, result.dtype)
        stretch = (self.weight / lengths).to(result.dtype)
        added: Tensor = (stretch - 1) * plain + stretch * scaling * lora_B(lora_A(x))
        return added


def add_adapters(module: nn.Module, blocks: Sequence[nn.Module], options: LoraConfig) -> None:
    """Freeze a module and put adapters on the linear layers of its blocks that were trained. Parts that no checkpoint
    holds (`Fresh`) stay trained.

    Price: of each adapted layer two products of rank size; nothing is saved of the arithmetic, for gradients still pass
    through every layer. Saved are the gradients and the optimizer's states of all that is frozen now, 13.1 GB of bf16
    and 52.3 GB of fp32 moments at BAGEL's size, and the fp32 copies of its weights.

    Args:
        module: on the meta device.
        blocks: of it.
        options: `rank` 0 changes nothing.

    Raises:
        UserError: peft is missing, or `targets` name no layer.
    """
    if not options.rank:
        return
    with lean_import():
        peft = library("peft", "lora.rank")
    layers = dict(_trained_linears(module, blocks))
    leaves = sorted({name.rpartition(".")[2] for name in layers})
    for target in options.targets:
        if target not in leaves:
            hint = did_you_mean(target, leaves)
            raise UserError(f"lora.targets: no trained layer is called {target!r}, only {', '.join(leaves)}.{hint}")
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        use_rslora=options.rslora,
        use_dora=options.dora,
        target_modules={n for n in layers if not options.targets or n.rpartition(".")[2] in options.targets},
    )
    with lean_import(), torch.device("meta"):
        peft.inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for layer in _adapted(module):
        layer.cast_input_dtype_enabled = False  # autocast does it, without an fp32 copy of every input
        if options.dora:
            with torch.device("meta"):
                layer.lora_magnitude_vector[ADAPTER] = RowLengths(layer.out_features)
    module.requires_grad_(False)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.endswith((A, B, MAGNITUDE)))
    for part in module.modules():
        if isinstance(part, Fresh):
            part.requires_grad_(True)


def fill_adapters(module: nn.Module, place: Place, seed: int) -> None:
    """Give the adapters of a module, whose other weights are there, the values that they begin with: B is zero, A is
    drawn as peft draws it, and lengths are those of the frozen rows. So the first step's losses are the base's.

    Args:
        place: its devices; adapters are fp32 in any case.
        seed: A depends on it and on the layer's name alone.
    """
    names = {id(part): name for name, part in module.named_modules()}
    for layer in _adapted(module):
        name = names[id(layer)]
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        bound = 1 / math.sqrt(layer.in_features)
        drawn = torch.empty(down.weight.shape).uniform_(-bound, bound, generator=generator("lora", seed, name))
        _set(down, "weight", drawn, place(f"{name}.{A}", down.weight).device)
        _set(up, "weight", torch.zeros(up.weight.shape), place(f"{name}.{B}", up.weight).device)
        if lengths := layer.lora_magnitude_vector:
            part = lengths[ADAPTER]
            weight = layer.base_layer.weight
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            device = place(f"{name}.{MAGNITUDE}", part.weight).device
            rows = torch.linalg.vector_norm(whole.detach(), dim=1, dtype=torch.float32)
            part.squares = rows.square().to(device)
            _set(part, "weight", rows, device)


def merged(adapters: Mapping[str, Tensor], options: LoraConfig) -> dict[str, Change]:
    """What the adapters of a checkpoint make of the base's weights.

    Args:
        adapters: as `trained` names them; each is asked for when its weight is written.
        options: that they were trained with.

    Returns:
        Name of each adapted weight in the plain model -> function of the base's weight.
    """
    return {
        f"{name.removesuffix(A)}weight": partial(_merge, adapters, name.removesuffix(A), scaling(options))
        for name in adapters
        if name.endswith(A)
    }


def decays(model: Model, name: str) -> bool:
    """Whether weight decay acts on a trained parameter: as the model says, but never on the lengths of DoRA."""
    return not name.endswith(MAGNITUDE) and model.decays(name)


def scaling(options: LoraConfig) -> float:
    """The factor of B A."""
    return options.alpha / (math.sqrt(options.rank) if options.rslora else options.rank)


def _merge(adapters: Mapping[str, Tensor], layer: str, scale: float, base: Tensor) -> Tensor:
    down, up = (adapters[layer + part].to(torch.float32) for part in (A, B))
    weight = torch.addmm(base.to(torch.float32), up, down, alpha=scale)
    if layer + MAGNITUDE in adapters:
        lengths = torch.linalg.vector_norm(weight, dim=1).clamp_min(SHORTEST)
        weight *= (adapters[layer + MAGNITUDE].to(torch.float32) / lengths)[:, None]
    return weight


def _trained_linears(module: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Linear]]:
    inside = {id(part) for block in blocks for part in block.modules()}
    for name, part in module.named_modules():
        if id(part) in inside and isinstance(part, nn.Linear) and part.weight.requires_grad:
            yield name, part


def _adapted(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if hasattr(part, "lora_A") and hasattr(part, "base_layer")]


def _set(owner: nn.Module, leaf: str, value: Tensor, device: torch.device | str) -> None:
    """Put a parameter in the place of the empty one, which says whether and how it is sharded."""
    empty = owner.get_parameter(leaf)
    value = value.to(device)
    if isinstance(empty, DTensor):
        value = distribute_tensor(value, empty.device_mesh, empty.placements, src_data_rank=None)
    setattr(owner, leaf, nn.Parameter(value, requires_grad=True))
