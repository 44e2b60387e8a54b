"""BAGEL at its real width with random weights, made on the device: no checkpoint is read.

`Training` is the trainer's step (autocast, fp32 weights, fused AdamW) in three phases that can be timed apart; the VAE
is left out. `predicted_memory` says from shapes alone how much memory it will need.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.config import LossWeights, ModelConfig, OptimConfig
from reca_fast.flow import Sample
from reca_fast.kernels import choose_backend, flow_interpolate
from reca_fast.kernels.common.liger import liger_installed
from reca_fast.memory import apply_levers
from reca_fast.models.bagel.batch import BagelBatch
from reca_fast.models.bagel.collate import collate
from reca_fast.models.bagel.config import BagelConfig, LLMConfig
from reca_fast.models.bagel.flops import step_flops
from reca_fast.models.bagel.model import Bagel
from reca_fast.models.bagel.tokenizer import BagelTokenizer
from reca_fast.models.parts.siglip_config import SiglipConfig
from reca_fast.objectives import flow_loss_by_task, weighted_loss
from reca_fast.optim import clip_gradients, make_optimizer

LAYERS = 28
TOKENS_PER_PICTURE = 4379
"""A 1024 x 1024 picture: 4096 latent tokens, 256 of the vision tower, a prompt of 21 and six markers."""
PUBLIC = BagelConfig(LLMConfig(3584, 18944, LAYERS, 28, 4, 152064), SiglipConfig(1152, 4304, 27, 16, 980))
TINY = BagelConfig(LLMConfig(128, 256, LAYERS, 4, 2, 512), SiglipConfig(64, 96, 3, 4, 980))


def real_config(layers: int, *, tiny: bool = False) -> BagelConfig:
    """The public sizes with fewer decoder layers; `tiny`: the rehearsal's."""
    config = TINY if tiny else PUBLIC
    return replace(config, llm=replace(config.llm, num_hidden_layers=layers))


def pack(config: BagelConfig, pictures: int, *, tiny: bool = False) -> BagelBatch:
    """Grey pictures of 1024 x 1024 with prompts of 21 tokens, on the CPU."""
    last = config.llm.vocab_size
    markers = BagelTokenizer(last - 4, last - 3, last - 2, last - 1, qwen=None)
    side, view = (64, 56) if tiny else (1024, 224)
    understanding = torch.zeros(view, view, 3, dtype=torch.uint8)
    target = torch.zeros(side, side, 3, dtype=torch.uint8)
    samples = [Sample(f"picture {i}", "reca", understanding, target, tuple(range(21))) for i in range(pictures)]
    return collate(samples, config, markers)


def random_model(config: BagelConfig, device: torch.device, *, recompute: bool, compile_layers: bool) -> Bagel:
    """Trained weights in fp32, frozen ones in bf16, all of a size that keeps activations near 1."""
    with torch.device("meta"):
        model = Bagel(config, attention=choose_backend("auto", device, torch.bfloat16))
    levers = ModelConfig(recompute=recompute, compile=compile_layers)
    apply_levers(model, list(model.layers), levers, compiler="eager" if device.type == "cpu" else "inductor")
    draw = torch.Generator(device).manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        dtype = torch.float32 if parameter.requires_grad else torch.bfloat16
        values = torch.empty(parameter.shape, dtype=dtype, device=device)
        if parameter.ndim == 1:
            values.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            values.normal_(std=parameter.shape[-1] ** -0.5, generator=draw)
        owner, leaf = name.rsplit(".", 1)
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(values, requires_grad=parameter.requires_grad))
    model.fill_tables(device)
    return model


@dataclass
class Training:
    """A model, its optimizer and one batch; `phases` are to be called in their order."""

    model: Bagel
    batch: BagelBatch  # on the device
    latents: Tensor
    timesteps: Tensor
    optimizer: torch.optim.Optimizer
    flops: float
    loss: Tensor | None = None

    def forward(self) -> None:
        batch, times = self.batch, self.timesteps
        with self.autocast():
            x_t = flow_interpolate(self.latents, times[batch.image_index], seed=1)
            velocity = self.model(batch, x_t, times).velocity
        sums = flow_loss_by_task(velocity, self.latents, times, batch.image_index, batch.target_tasks, seed=1)
        self.loss = weighted_loss(sums, batch.counts, LossWeights())

    def backward(self) -> None:
        assert self.loss is not None, "forward() comes first"
        self.loss.backward()

    def update(self) -> None:
        clip_gradients(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def autocast(self) -> AbstractContextManager:
        """As the trainer has it: no narrow copy of a weight outlives its product."""
        return torch.autocast(self.latents.device.type, torch.bfloat16, cache_enabled=False)

    @property
    def phases(self) -> dict:
        return {"forward": self.forward, "backward": self.backward, "optimizer": self.update}


@contextmanager
def training(
    layers: int, pictures: int, device: torch.device, *, recompute: bool, compile_layers: bool = False
) -> Iterator[Training]:
    """The step of `layers` layers on a pack of `pictures` pictures."""
    tiny = device.type == "cpu"
    config = real_config(layers, tiny=tiny)
    batch = pack(config, pictures, tiny=tiny)
    flops = step_flops(config, batch, frozen=True)
    model = random_model(config, device, recompute=recompute, compile_layers=compile_layers)
    draw = torch.Generator(device).manual_seed(1)
    latents = torch.randn(len(batch.gen_rows), config.patch_latent_dim, device=device, generator=draw)
    timesteps = torch.rand(pictures, device=device, generator=draw)
    optimizer = make_optimizer(model, OptimConfig())
    yield Training(model, batch.to(device), latents, timesteps, optimizer, flops)


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
    batch = pack(config, pictures, tiny=tiny)
    with torch.device("meta"):
        model = Bagel(config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    in_layers = sum(p.numel() for p in model.layers.parameters() if p.requires_grad)
    one, two = (kept_activations(n, pictures, tiny) for n in (1, 2))
    layer = two - one + 2 * in_layers // layers
    kept = one - (two - one) + layers * (batch.num_tokens * config.llm.hidden_size * 2 if recompute else layer)
    # Of the product of gate and up; theirs overwrite them in Liger's kernel, and are two more without it.
    transient = (1 if liger_installed() else 3) * len(batch.gen_rows) * config.llm.intermediate_size * 2
    return Memory(4 * trained + 2 * frozen, 8 * trained, 4 * trained, kept, layer, transient)


@cache
def kept_activations(layers: int, pictures: int, tiny: bool = False) -> int:
    """Bytes that the backward pass of a bf16 step keeps without recomputation, weights not counted."""
    config = real_config(layers, tiny=tiny)
    batch = pack(config, pictures, tiny=tiny)
    kept: dict[int, torch.UntypedStorage] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        model = Bagel(config)
        model.fill_tables("cpu")
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage  # held, so that its identity is not given to another
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            noise, timesteps = (
                torch.randn(len(batch.gen_rows), config.patch_latent_dim),
                torch.rand(len(batch.latent_shapes)),
            )
            out = model(batch, noise, timesteps)
    del out
    return sum(storage.nbytes() for storage in kept.values())
