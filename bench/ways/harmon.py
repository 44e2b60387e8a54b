"""Harmon's ways: as its authors take the step (`harmon_eager.py`), and reca_fast's.

The authors recompute every block's activations, so "authors, recomputed" is what they run.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .case import WEIGHTS, authors_step, write_case
from .harmon_eager import REPEATS, EagerHarmon
from .way import Step, Way, Work, our_step, ours, settings

SEED, HIDDEN, TEXT = 7, 0.867, 32
SIZES: dict[str, dict[str, Any]] = {
    # 38 M parameters, two pictures of 256 tokens, 32 tokens of text in each prompt.
    "recorded": {
        "grid": 16,
        "batch": 2,
        "width": 256,
        "depth": 6,
        "heads": 8,
        "denoiser": (3, 512),
        "llm": (512, 6, 8, 1536),
    },
    # The same model on one picture of 1024 tokens, as at 512 x 512 pixels.
    "recorded-512": {
        **{"grid": 32, "batch": 1, "width": 256, "depth": 6, "heads": 8},
        **{"denoiser": (3, 512), "llm": (512, 6, 8, 1536)},
    },
    # For trying the harness itself.
    "tiny": {"grid": 4, "batch": 2, "width": 32, "depth": 1, "heads": 4, "denoiser": (1, 32), "llm": (48, 1, 4, 80)},
}
WAYS = {
    "authors": Way("authors"),
    "ours": ours(),
    "authors, recomputed": Way("authors", recomputes=True),
    "ours, recomputed": ours(recomputes=True),
    "ours, selective": ours(recomputes=True, recompute="selective"),
}


def config_of(size: str) -> dict[str, Any]:
    """config.json of a parity case of that size."""
    s = SIZES[size]
    hidden, layers, heads, inner = s["llm"]
    depth, width = s["denoiser"]
    side = min(s["grid"], 16)
    llm = {"vocab_size": 8192, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    llm |= {"num_key_value_heads": 2, "intermediate_size": inner, "max_position_embeddings": 4096, "hidden_act": "silu"}
    llm |= {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "use_sliding_window": False}
    mar: dict[str, Any] = {"img_size": 16 * side, "vae_stride": 16, "patch_size": 1, "mlp_ratio": 4.0}
    for part in ("encoder", "decoder"):
        mar |= {f"{part}_embed_dim": s["width"], f"{part}_depth": s["depth"], f"{part}_num_heads": s["heads"]}
    mar |= {"vae_embed_dim": 16, "mask_ratio_min": 0.7, "label_drop_prob": 0.1, "class_num": 10, "attn_dropout": 0.0}
    mar |= {"proj_dropout": 0.0, "buffer_size": 64, "diffloss_d": depth, "diffloss_w": width}
    mar |= {"num_sampling_steps": "100", "diffusion_batch_mul": REPEATS, "grad_checkpointing": False}
    return {
        **{"model": "harmon", "vae_scale": 0.2325, "grad_scale": 0.1, "grid": [s["grid"]] * 2, "batch": s["batch"]},
        **{"image_token_id": -200, "pad_token_id": 3, "llm": llm, "mar": mar, "vae": None},
        "loss_weights": {"recon": 1.0, "image2text": 1.0, "text2image": 1.0},
    }


def inputs_of(config: dict[str, Any]) -> dict[str, Tensor]:
    """inputs.safetensors of a parity case: a reconstruction of random latents."""
    draw = torch.Generator().manual_seed(SEED)
    batch, (rows, columns), channels = config["batch"], config["grid"], config["mar"]["vae_embed_dim"]
    tokens = rows * columns
    ids = torch.randint(10, config["llm"]["vocab_size"], (batch, TEXT), generator=draw)
    ids[:, 3] = config["image_token_id"]
    orders = torch.stack([torch.randperm(tokens, generator=draw) for _ in range(batch)])
    hidden = orders[:, : round(HIDDEN * tokens)]
    noised = REPEATS * batch * tokens
    return {
        "raw_latents": torch.randn(batch, channels, rows, columns, generator=draw),
        "recon.input_ids": ids,
        "recon.attention_mask": torch.ones(batch, TEXT, dtype=torch.uint8),
        "recon.orders": orders,
        "recon.mask": torch.zeros(batch, tokens).scatter_(1, hidden, 1.0),
        "recon.timesteps": torch.randint(1000, (noised,), generator=draw),
        "recon.noise": torch.randn(noised, channels, generator=draw),
    }


def write(size: str, folder: Path) -> None:
    config = config_of(size)
    write_case(folder, config, inputs_of(config), EagerHarmon(config).published_shapes())


def build(way: Way, work: Work) -> Step:
    if way.kind == "authors":
        return authors_step(
            work,
            lambda config: EagerHarmon(config, recompute=way.recomputes),
            lambda model, inputs: model(inputs, "recon"),
        )
    config, model, batch = _open(way, work)
    return our_step(way, work, config, model, batch.to(work.device))


def _open(way: Way, work: Work) -> tuple[Any, Any, Any]:
    """(configuration, reca_fast's model on the meta device, batch). Imported in here, so that the authors' step is
    measured without it.
    """
    from reca_fast.models.harmon.cases import RecordedCase
    from reca_fast.models.harmon.model import HarmonModel

    class WithoutVAE(HarmonModel):
        """The batch holds latents."""

        def fill_encoders(self, device: torch.device) -> None:
            pass

    options = {"model.weights": str(work.folder / WEIGHTS), "model.freeze_und": False}
    config, case = settings(work, {**options, **way.options}), RecordedCase.open(work.folder)
    assert case is not None
    return config, WithoutVAE(case.config, config.model), case.batch("recon", case.latents(case.inputs["raw_latents"]))
