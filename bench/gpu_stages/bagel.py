"""BAGEL at its real width with random weights, made on the device: no checkpoint is read.

`Training` is the trainer's step (autocast, fp32 weights, fused AdamW) in three phases that can be timed apart; the VAE
is left out. `predicted_memory` says from shapes alone how much memory it will need.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.config import DataConfig, LossWeights, MemoryConfig, ModelConfig, OptimConfig
from reca_fast.kernels import choose_backend
from reca_fast.kernels.common.liger import liger_installed
from reca_fast.memory import apply_levers, host_empty
from reca_fast.models.bagel.batch import BagelBatch
from reca_fast.models.bagel.config import BAGEL_7B_MOT, BagelConfig, LLMConfig
from reca_fast.models.bagel.model import BagelModel
from reca_fast.models.bagel.tokenizer import BagelTokenizer
from reca_fast.models.parts.siglip_config import SiglipConfig
from reca_fast.objectives import weighted_loss
from reca_fast.optim import Update, open_update
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import RECA, Sample, Text
from reca_fast.train.state import trained

LAYERS = 28
TOKENS_PER_PICTURE = 4379
"""A 1024 x 1024 picture: 4096 latent tokens, 256 of the vision tower, a prompt of 21 and six markers."""
TINY = BagelConfig(LLMConfig(128, 256, LAYERS, 4, 2, 512), SiglipConfig(64, 96, 3, 4, 980))


def real_config(layers: int, *, tiny: bool = False) -> BagelConfig:
    """The public sizes with fewer decoder layers; `tiny`: the rehearsal's."""
    config = TINY if tiny else BAGEL_7B_MOT
    return replace(config, llm=replace(config.llm, num_hidden_layers=layers))


def make_model(config: BagelConfig, *, freeze_und: bool = True) -> BagelModel:
    """On the meta device; its texts are ids below those of the markers, the last four of the vocabulary."""
    last = config.llm.vocab_size
    markers = BagelTokenizer(last - 4, last - 3, last - 2, last - 1, qwen=None)
    return BagelModel(config, ModelConfig(freeze_und=freeze_und), markers)


def pack(model: BagelModel, pictures: int, *, tiny: bool = False) -> BagelBatch:
    """Grey pictures of 1024 x 1024 with prompts of 21 tokens, on the CPU; random latents stand for the VAE's."""
    side, view = (64, 56) if tiny else (1024, 224)
    condition = torch.zeros(view, view, 3, dtype=torch.uint8)
    target = torch.zeros(side, side, 3, dtype=torch.uint8)
    text = Text(tuple(range(21)))
    samples = [Sample(f"picture {i}", (RECA,), condition, target, text) for i in range(pictures)]
    draw = draw_of_pack(0, 0, 0)
    batch = model.inputs(DataConfig()).collate(samples, draw)
    latents = torch.randn(len(batch.gen_rows), model.config.patch_latent_dim, generator=draw)
    return replace(batch, latents=latents, targets=())


def fill_randomly(model: BagelModel, device: torch.device) -> None:
    """Trained weights in fp32, frozen ones in bf16, all of a size that keeps activations near 1."""
    draw = torch.Generator(device).manual_seed(0)
    model.module.attention = choose_backend("auto", device, torch.bfloat16)
    for module in (model.encoders.vit, model.module):
        for name, parameter in list(module.named_parameters()):
            dtype = torch.float32 if parameter.requires_grad else torch.bfloat16
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            if parameter.ndim == 1:
                values.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                values.normal_(std=parameter.shape[-1] ** -0.5, generator=draw)
            owner, leaf = name.rsplit(".", 1)
            filled = torch.nn.Parameter(values, requires_grad=parameter.requires_grad)
            setattr(module.get_submodule(owner), leaf, filled)
    model.module.fill_tables(device)


@dataclass
class Training:
    """A model, its update and one batch; `phases` are to be called in their order."""

    model: BagelModel
    batch: BagelBatch  # on the device
    adamw: Update
    flops: float
    loss: Tensor | None = None

    def forward(self) -> None:
        sums = self.model.loss_sums(self.model.encode(self.batch))
        self.loss = weighted_loss(sums, self.batch.counts, LossWeights())

    def backward(self) -> None:
        assert self.loss is not None, "forward() comes first"
        self.loss.backward()

    def update(self) -> None:
        assert self.loss is not None, "forward() comes first"
        self.adamw.finish(self.loss.detach().reshape(1))

    @property
    def phases(self) -> dict:
        return {"forward": self.forward, "backward": self.backward, "optimizer": self.update}


@contextmanager
def training(
    layers: int, pictures: int, device: torch.device, *, recompute: bool, compile_layers: bool = False
) -> Iterator[Training]:
    """The step of `layers` layers on a pack of `pictures` pictures."""
    tiny = device.type == "cpu"
    model = make_model(real_config(layers, tiny=tiny))
    batch = pack(model, pictures, tiny=tiny)
    flops = model.flops(batch)
    levers = MemoryConfig(recompute="blocks" if recompute else "none", compile=compile_layers)
    compiler = "eager" if tiny else "inductor"
    apply_levers(model.module, model.blocks(), levers, device=device, compiler=compiler)
    fill_randomly(model, device)
    parts = trained(model.module), model.blocks(), model.decays
    adamw = open_update(*parts, OptimConfig(warmup_steps=0), total_steps=1, device=device, host_empty=host_empty)
    adamw.begin(0)
    yield Training(model, batch.to(device), adamw, flops)


@dataclass(frozen=True)
class Memory:
    """Bytes that a step needs, by what they are for."""

    weights: int  # trained in fp32, frozen in bf16
    moments: int
    gradients: int
    kept: int  # what the forward pass leaves for the backward pass: activations, bf16 copies of weights
    layer: int  # what one layer of it leaves, which recomputation makes again
    transient: int  # gradients of the widest activations, those of the MLP's inner rows

    def peak(self, recompute: bool) -> int:
        """The larger of two moments: all activations and no gradient yet, or all gradients and one layer's left."""
        start = self.kept + (self.layer if recompute else 0)
        return self.weights + self.moments + max(start, self.gradients + self.layer) + self.transient


def predicted_memory(layers: int, pictures: int, *, recompute: bool, tiny: bool = False) -> Memory:
    """From shapes alone, on fake tensors; activations are counted at one and two layers."""
    config = real_config(layers, tiny=tiny)
    model = make_model(config)
    batch = pack(model, pictures, tiny=tiny)
    parameters = [*model.module.parameters(), *model.encoders.vit.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    in_layers = sum(p.numel() for block in model.blocks() for p in block.parameters() if p.requires_grad)
    one, two = (kept_activations(n, pictures, tiny) for n in (1, 2))
    layer = two - one + 2 * in_layers // layers
    kept = one - (two - one) + layers * (batch.num_tokens * config.llm.hidden_size * 2 if recompute else layer)
    # Of the product of gate and up; theirs overwrite them in Liger's kernel, and are two more without it.
    transient = (1 if liger_installed() else 3) * len(batch.gen_rows) * config.llm.intermediate_size * 2
    return Memory(4 * trained + 2 * frozen, 8 * trained, 4 * trained, kept, layer, transient)


@cache
def kept_activations(layers: int, pictures: int, tiny: bool = False) -> int:
    """Bytes that the backward pass of a bf16 step keeps without recomputation, weights not counted."""
    model = make_model(real_config(layers, tiny=tiny))
    batch = pack(model, pictures, tiny=tiny)
    kept: dict[int, torch.UntypedStorage] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        fill_fake(model, torch.bfloat16)
        parts = (model.module, model.encoders.vit)
        weights = {p.untyped_storage()._cdata for part in parts for p in part.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage  # held, so that its identity is not given to another
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            sums = model.loss_sums(model.encode(batch))
    del sums
    return sum(storage.nbytes() for storage in kept.values())


def fill_fake(model: BagelModel, dtype: torch.dtype | None = None) -> None:
    """Fake weights on the CPU, to be called under FakeTensorMode; `dtype` None: as a run has them, trained ones in fp32
    and frozen ones in bf16.
    """
    for module in (model.encoders.vit, model.module):
        module.to_empty(device="cpu")
        for parameter in module.parameters():
            own = torch.float32 if parameter.requires_grad else torch.bfloat16
            parameter.data = parameter.data.to(dtype or own)
    model.module.fill_tables("cpu")
