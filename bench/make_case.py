"""Write a random parity case: config, weights, packed inputs, and what the scatter reference makes of them.

    python bench/make_case.py FOLDER --seed 3 --llm num_attention_heads=4 --bagel timestep_shift=3.0 \\
        --sample text=7,vit=28x42,vae=64x96 --sample text=4,vit=14x56,vae=16x64,dropped --joint

A case has the files, tensor names, dtypes and shapes of the recorded ones, so everything that replays those replays
these too, at other head counts, picture sizes and packings. Sizes are height x width in pixels. Each of --llm, --vit,
--bagel and --vae changes entries of that section of config.json.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.random_pack import Sample, build_config, pack_inputs, random_weights
from bench.scatter_reference import Config, ScatterBagel

DECODER = "language_model.model."
GLUE_GRADS = ["llm2vae.bias", "llm2vae.weight", "vae2llm.weight"]
RECA_VALUES = ["last_hidden", "last_hidden_gen", "mse_elementwise", "mse_per_token", "velocity_pred"]
EARLY_VALUES = ["layer0_out", "llm_input", "t_after_shift", "timestep_embed", "vit_out", "x_t"]


def expected_names(layers: int, joint: bool) -> tuple[list[str], list[str]]:
    """Which intermediates and which parameters' gradients a case records."""
    first, last = f"{DECODER}layers.0.", f"{DECODER}layers.{layers - 1}."
    attention = [f"{first}self_attn.k_norm_moe_gen.weight", f"{first}self_attn.q_proj_moe_gen.weight"]
    if joint:
        und = [f"{first}self_attn.k_proj.weight", f"{first}self_attn.v_proj.bias", f"{last}mlp.down_proj.weight"]
        ends = [f"{DECODER}norm.weight", f"{DECODER}embed_tokens.weight", "language_model.lm_head.weight"]
        return [*RECA_VALUES, "ce_per_token"], [*attention, *und, *ends, *GLUE_GRADS, "connector.fc1.weight"]
    gen = [
        f"{first}input_layernorm_moe_gen.weight",
        f"{first}mlp_moe_gen.up_proj.weight",
        f"{last}self_attn.o_proj_moe_gen.weight",
        f"{last}self_attn.v_proj_moe_gen.bias",
        f"{DECODER}norm_moe_gen.weight",
    ]
    times = ["time_embedder.mlp.0.weight", "time_embedder.mlp.2.bias"]
    return RECA_VALUES + EARLY_VALUES, [*attention, *gen, *GLUE_GRADS, *times]


def run_reference(
    config: Config, weights: dict[str, Tensor], inputs: dict[str, Tensor], *, joint: bool, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One forward and backward of the scatter reference: the tensors and the scalars of a case's expected files."""
    model = ScatterBagel(config, freeze_und=not joint)
    model.load_state_dict(weights)
    model.to(dtype)
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    trace: dict[str, Tensor] = {}
    loss = model(inputs, with_ce=joint, trace=trace)
    loss.backward()

    values, wanted = expected_names(config["llm_config"]["num_hidden_layers"], joint)
    params = dict(model.named_parameters())
    tensors = {name: trace[name].detach().contiguous() for name in values}
    tensors |= {f"grad.{name}": gradient for name in wanted if (gradient := params[name].grad) is not None}
    norms = {name: p.grad.double().norm().item() for name, p in params.items() if p.grad is not None}
    moved = {name: norm for name, norm in norms.items() if norm > 0}
    scalars = {
        "freeze_und": not joint,
        "freeze_vit": True,
        "freeze_vae": True,
        "with_ce": joint,
        "mse_weight": 1.0,
        "ce_weight": 1.0,
        "world_size": 1,
        "loss": loss.item(),
        "mse": trace["mse"].item(),
        "ce": trace["ce"].item() if joint else None,
        "num_mse_tokens": len(trace["mse_per_token"]),
        "num_ce_tokens": len(trace["ce_per_token"]) if joint else 0,
        "grad_norm_all": sum(norm**2 for norm in norms.values()) ** 0.5,
        "grad_norm_by_param": moved,
        "params_with_nonzero_grad": list(moved),
        "params_with_exactly_zero_grad": [name for name in norms if name not in moved],
        "params_with_no_grad_tensor": [n for n, p in params.items() if p.requires_grad and p.grad is None],
        "params_frozen": [name for name, p in params.items() if not p.requires_grad],
    }
    return tensors, scalars


def write_run(
    folder: Path, suffix: str, config: Config, weights: dict[str, Tensor], inputs: dict[str, Tensor], *, joint: bool
) -> None:
    """Expected values of one run in float32, with their distance from a float64 run."""
    tensors, scalars = run_reference(config, weights, inputs, joint=joint, dtype=torch.float32)
    exact, exact_scalars = run_reference(config, weights, inputs, joint=joint, dtype=torch.float64)
    gaps = {name: (value - exact[name]).abs().max().item() for name, value in tensors.items()}
    gaps["loss(abs)"] = abs(scalars["loss"] - exact_scalars["loss"])
    gaps["grad_norm_all(rel)"] = abs(scalars["grad_norm_all"] / exact_scalars["grad_norm_all"] - 1)
    scalars["float32_vs_float64_max_abs_diff"] = gaps
    save_file(tensors, folder / f"expected{suffix}.safetensors")
    (folder / f"expected{suffix}.json").write_text(json.dumps(scalars, indent=1) + "\n")


def make_case(
    folder: Path | str,
    *,
    seed: int,
    llm: Config,
    vit: Config,
    samples: list[Sample],
    joint: bool = False,
    bagel: Config | None = None,
    vae: Config | None = None,
) -> Path:
    """Write a complete case folder. llm, vit, bagel and vae change entries of the small default settings.

    With `joint` a second run with trainable understanding weights and cross-entropy on the prompts is recorded too.
    """
    if joint and all(sample.text_dropped for sample in samples):
        raise ValueError("a joint run needs a sample whose text is kept")
    folder = Path(folder)
    config = build_config(llm, vit, bagel, vae)
    inputs = pack_inputs(config, samples, seed, joint)
    folder.mkdir(parents=True, exist_ok=True)
    config |= {"has_joint_run": joint, "weights_seed": seed}
    weights = random_weights(ScatterBagel(config), seed)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(weights, folder / "weights.safetensors")
    save_file(inputs, folder / "inputs.safetensors")
    write_run(folder, "", config, weights, inputs, joint=False)
    if joint:
        write_run(folder, "_joint", config, weights, inputs, joint=True)
    return folder


def parse_sample(text: str) -> Sample:
    """`text=7,vit=28x42,vae=64x96[,dropped]`"""
    parts = text.split(",")
    try:
        fields = dict(part.split("=") for part in parts if part != "dropped")
        (vit_h, vit_w), (vae_h, vae_w) = (map(int, fields.pop(name).split("x")) for name in ("vit", "vae"))
        sample = Sample(int(fields.pop("text")), (vit_h, vit_w), (vae_h, vae_w), "dropped" in parts)
    except (KeyError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not like text=7,vit=28x42,vae=64x96[,dropped]") from error
    if fields:
        raise argparse.ArgumentTypeError(f"{text!r} is not like text=7,vit=28x42,vae=64x96[,dropped]")
    return sample


def parse_settings(text: str) -> Config:
    """`name=value[,name=value...]` with JSON numbers as values."""
    try:
        return {name: json.loads(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not like name=1,other=2.0") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the case is written")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default 0)")
    for section in ("llm", "vit", "bagel", "vae"):
        parser.add_argument(f"--{section}", type=parse_settings, default={}, metavar="NAME=VALUE,...")
    parser.add_argument(
        "--sample", dest="samples", type=parse_sample, action="append", required=True, metavar="text=N,vit=HxW,vae=HxW"
    )
    parser.add_argument("--joint", action="store_true", help="also record a run with cross-entropy, nothing detached")
    try:
        make_case(**vars(parser.parse_args()))
    except ValueError as error:  # sizes and settings that do not go together
        parser.error(f"{error}.")


if __name__ == "__main__":
    main()
