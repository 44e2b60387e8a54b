"""BAGEL's ways.

- **authors**: the authors' layout in eager torch (`bench/scatter_reference.py`): rows of both experts in one sequence,
  gathered and scattered around every operation, AdamW over a list of tensors.
- **grouped**: each expert's rows in a tensor of their own, pointwise operations fused, one fused AdamW, as trainers of
  mixtures of experts have it. The understanding rows are part of the graph: gradients flow through them, down to the
  connector, though the understanding expert's weights want none.
- **ours**: reca_fast's own `train_step`, plain and with each lever pulled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.random_pack import Sample, build_config, pack_inputs, random_weights
from bench.scatter_reference import ScatterBagel

from .way import LR, Step, Way, Work, clip_and_step, our_step, ours, settings

SEED = 7
WEIGHTS = "ema.safetensors"
SIZES: dict[str, dict[str, Any]] = {
    # Two samples of 256 ViT + 40 text + 1024 latent tokens and image markers: 2648 packed tokens, 58 M parameters.
    "recorded": {
        "llm": {
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 8192,
        },
        "vit": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 6},
        "bagel": {"max_latent_size": 64, "vit_max_num_patch_per_side": 70},
        "vae": {"z_channels": 16},
        "samples": [Sample(38, (224, 224), (512, 512))] * 2,
    },
    # BAGEL's width, two of its 28 layers, two pictures of 1024 x 1024: for a GPU.
    "real": {
        "llm": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 2,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 8192,
        },
        "vit": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 2, "num_attention_heads": 16},
        "bagel": {"max_latent_size": 64, "vit_max_num_patch_per_side": 70},
        "vae": {"z_channels": 16},
        "samples": [Sample(21, (224, 224), (1024, 1024))] * 2,
    },
    # For trying the harness itself.
    "tiny": {"samples": [Sample(6, (28, 42), (64, 96))] * 2},
}


LAYER: dict[str, Any] = {"recomputes": True, "order": "layer"}
WAYS: dict[str, Way] = {
    "authors": Way("authors"),
    "authors fused": Way("authors", kernel="fused"),
    "grouped": Way("grouped"),
    "ours": ours(),
    "ours, cached": Way("ours", cached=True),
    "ours, trained bf16": ours(trained="bf16"),
    "ours, frozen int8": ours(frozen="int8"),
    "ours, frozen nf4": ours(frozen="nf4"),
    "ours, matmul int8": ours(matmul="int8"),
    "authors, recomputed": Way("authors", recomputes=True),
    "authors fused, recomputed": Way("authors", recomputes=True, kernel="fused"),
    "grouped, recomputed": Way("grouped", recomputes=True),
    "ours, recomputed": ours(recomputes=True),
    "ours, selective": ours(recomputes=True, recompute="selective"),
    "ours, layer-major": ours(**LAYER),
    "ours, gradients on host": ours(**LAYER, gradients="host"),
    "ours, gradients twice": ours(**LAYER, gradients="twice"),
    "ours, frozen on host": ours(**LAYER, frozen_on="host"),
    "ours, half swapped": ours(**LAYER, gradients="host", swap=0.5),
}
"""Name -> way, those that recompute behind those that do not."""


def sized(size: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(sizes, packed batch) of that name."""
    setting = dict(SIZES[size])
    samples = setting.pop("samples")
    config = build_config(**setting)
    return config, pack_inputs(config, samples, SEED)


def write(size: str, folder: Path) -> None:
    """The weights that all ways begin with, under the checkpoint's names."""
    save_file(random_weights(ScatterBagel(sized(size)[0]), SEED), folder / WEIGHTS)


def build(way: Way, work: Work) -> Step:
    return {"authors": authors_step, "grouped": grouped_step, "ours": ours_step}[way.kind](way, work)


def authors_step(way: Way, work: Work) -> Step:
    """In bf16 the layers hold bf16 weights, as sharding gives them to the authors, and AdamW changes fp32 originals."""
    sizes, given = sized(work.size)
    with torch.device("meta"):  # takes over the given weights instead of copying them
        model = ScatterBagel(sizes, kernel=way.kernel, checkpointing=way.recomputes)
    stored = {name: tensor.to(work.device) for name, tensor in load_file(work.folder / WEIGHTS).items()}
    model.load_state_dict({name: tensor.to(work.dtype) for name, tensor in stored.items()}, assign=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    masters = {name: nn.Parameter(stored[name]) if work.precision == "bf16" else p for name, p in trained.items()}
    del stored
    optimizer = torch.optim.AdamW(masters.values(), lr=LR, eps=1e-15, weight_decay=0.0)
    inputs = {n: x.to(work.device, work.dtype if x.is_floating_point() else x.dtype) for n, x in given.items()}

    def step() -> float:
        with torch.device(work.device):  # where it makes tensors of its own
            loss = model(inputs)
        loss.backward()
        if work.update:
            for name, parameter in trained.items():
                if masters[name] is not parameter and parameter.grad is not None:
                    masters[name].grad, parameter.grad = parameter.grad.float(), None
            clip_and_step(optimizer, masters.values())
            for name, parameter in trained.items():
                if masters[name] is not parameter:
                    parameter.data.copy_(masters[name].data)
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def grouped_step(way: Way, work: Work) -> Step:
    from reca_fast.config import LossWeights, MemoryConfig
    from reca_fast.memory import apply_levers, fill_model
    from reca_fast.objectives import weighted_loss
    from reca_fast.train.state import trained

    config, model, batch = _open(work, {"model.freeze_und": False})
    module = model.module
    module.set_trainable(freeze_und=True)
    module.freeze_und = False  # nothing cuts the understanding rows out of the graph,
    module.connector.requires_grad_(True)  # and there is something behind them that wants a gradient
    apply_levers(module, model.blocks(), MemoryConfig(recompute="blocks" if way.recomputes else "none"))
    fill_model(model, work.device, config.memory)
    parameters = [p for name, p in trained(module).items() if not name.startswith("connector.")]
    optimizer = torch.optim.AdamW(parameters, lr=LR, eps=1e-15, weight_decay=0.0, fused=True)

    def step() -> float:
        loss = weighted_loss(model.loss_sums(model.encode(batch)), batch.counts, LossWeights())
        loss.backward()
        if work.update:
            clip_and_step(optimizer, parameters)
        module.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def ours_step(way: Way, work: Work) -> Step:
    return our_step(way, work, *_open(work, way.options))


def _open(work: Work, options: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(configuration, reca_fast's model on the meta device, batch on the device). Imported in here, so that the
    authors' step is measured without it.
    """
    from reca_fast.models.bagel.cases import RecordedCase
    from reca_fast.models.bagel.config import BagelConfig
    from reca_fast.models.bagel.model import BagelModel

    class WithoutVAE(BagelModel):
        """The batch holds latents."""

        def fill_encoders(self, device: torch.device) -> None:
            self.encoders.fill_vit(self.weights, self.dtype, device)

    config, (sizes, inputs) = settings(work, options), sized(work.size)
    case = RecordedCase(Path(), BagelConfig.from_dict(sizes, "the benchmark"), sizes, inputs)
    return config, WithoutVAE(case.config, config.model), case.batch().to(work.device)
