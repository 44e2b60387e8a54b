"""Random tiny (or not so tiny) BAGEL settings, weights and packed sequences under the parity cases' names.

Serves the case writer and the benchmark. Sizes are height x width in pixels.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.scatter_reference import Config, ScatterBagel

CAUSAL, FULL, NOISE = 0, 1, 2
PATCH = 14

DEFAULTS: Config = {
    "llm_config": {
        "hidden_size": 48,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "qk_norm": True,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "layer_module": "Qwen2MoTDecoderLayer",
    },
    "vit_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": PATCH,
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-06,
        "attention_dropout": 0.0,
    },
    "vae_config": {
        "resolution": 64,
        "in_channels": 3,
        "downsample": 8,
        "ch": 128,
        "out_ch": 3,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "z_channels": 4,
        "scale_factor": 0.3611,
        "shift_factor": 0.1159,
    },
    "bagel_config": {
        "latent_patch_size": 2,
        "max_latent_size": 8,
        "vit_max_num_patch_per_side": 5,
        "connector_act": "gelu_pytorch_tanh",
        "interpolate_pos": False,
        "timestep_shift": 1.0,
        "vit_select_layer": -2,
    },
}


@dataclass
class Sample:
    """One picture with its prompt: number of prompt ids and the two resized sizes in pixels."""

    text: int
    vit_hw: tuple[int, int]
    vae_hw: tuple[int, int]
    text_dropped: bool = False


def build_config(
    llm: Config | None = None, vit: Config | None = None, bagel: Config | None = None, vae: Config | None = None
) -> Config:
    """The default tiny settings with the given entries replaced; the last four vocabulary ids become the markers."""
    config = deepcopy(DEFAULTS)
    for name, changes in (("llm", llm), ("vit", vit), ("bagel", bagel), ("vae", vae)):
        unknown = set(changes or {}) - set(config[f"{name}_config"])
        if unknown:
            raise ValueError(f"{name} has no setting {', '.join(sorted(unknown))}")
        config[f"{name}_config"] |= changes or {}
    config["vit_config"]["image_size"] = PATCH * config["bagel_config"]["vit_max_num_patch_per_side"]
    last = config["llm_config"]["vocab_size"]
    names = ("bos_token_id", "eos_token_id", "start_of_image", "end_of_image")
    config["special_token_ids"] = {name: last - 4 + n for n, name in enumerate(names)}
    return config


def random_weights(model: ScatterBagel, seed: int) -> dict[str, Tensor]:
    """Random weights that keep activations near unit size; biases and norm weights vary, so none can be skipped."""
    rng = torch.Generator().manual_seed(seed)
    weights = {}
    for name, old in sorted(model.state_dict().items()):
        if name.endswith("pos_embed.pos_embed"):
            weights[name] = old.clone()
            continue
        noise = torch.randn(old.shape, generator=rng)
        if old.ndim == 1:
            is_norm = "norm" in name and name.endswith("weight")
            weights[name] = 1 + 0.15 * noise if is_norm else 0.1 * noise
        elif "embed_tokens" in name or "position_embedding" in name:
            weights[name] = 0.5 * noise
        else:
            weights[name] = 0.9 * noise / old.shape[1] ** 0.5
    return weights


def allowed_mask(lens: list[int], modes: list[int]) -> Tensor:
    """Who may attend whom in one sample: causal, both ways in full and noise splits; noise is seen from inside only."""
    split = torch.repeat_interleave(torch.arange(len(lens)), torch.tensor(lens))
    mode = torch.tensor(modes)[split]
    order = torch.arange(len(split))
    same = split[:, None] == split
    earlier = order[:, None] >= order
    return (earlier | (same & (mode != CAUSAL))) & (same | (mode != NOISE))


def patch_grid(hw: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of patches in a picture."""
    if any(side < stride or side % stride for side in hw):
        raise ValueError(f"a picture of {hw[0]}x{hw[1]} pixels is not a whole number of {stride}-pixel patches")
    return hw[0] // stride, hw[1] // stride


def grid_ids(rows: int, cols: int, side: int) -> Tensor:
    """Cell numbers of a rows x cols grid in the corner of a side x side table."""
    if max(rows, cols) > side:
        raise ValueError(f"a {rows}x{cols} patch grid does not fit the {side}x{side} position table")
    return (torch.arange(rows)[:, None] * side + torch.arange(cols)).flatten()


class Packer:
    """Collects the packed tensors of one sequence, sample by sample."""

    def __init__(self, config: Config, rng: torch.Generator, joint: bool):
        self.config, self.rng, self.joint, self.length = config, rng, joint, 0
        self.lists: dict[str, list[Any]] = {}
        self.latents: list[Tensor] = []

    def add(self, name: str, values: Any) -> None:
        self.lists.setdefault(name, []).extend(values)

    def text(self, *ids: int) -> None:
        """Text-stream tokens, markers included."""
        self.add("packed_text_ids", ids)
        self.add("packed_text_indexes", self.take(len(ids)))

    def take(self, count: int) -> range:
        start, self.length = self.length, self.length + count
        return range(start, self.length)

    def sample(self, sample: Sample, prompt: list[int]) -> None:
        """The three splits of one sample: ViT picture, prompt (unless dropped), noisy latents."""
        marks, bagel, start = self.config["special_token_ids"], self.config["bagel_config"], self.length
        rows, cols = patch_grid(sample.vit_hw, PATCH)
        self.text(marks["start_of_image"])
        self.add("packed_vit_token_indexes", self.take(rows * cols))
        self.text(marks["end_of_image"])
        self.add("packed_vit_position_ids", grid_ids(rows, cols, bagel["vit_max_num_patch_per_side"]).tolist())
        self.add("vit_token_seqlens", [rows * cols])
        lens, modes, positions = [rows * cols + 2], [FULL], [0] * (rows * cols + 2)

        if not sample.text_dropped:
            if self.joint:  # the start marker and every prompt id predict their successor
                self.add("ce_loss_indexes", range(self.length, self.length + len(prompt) + 1))
                self.add("packed_label_ids", [*prompt, marks["eos_token_id"]])
            self.text(marks["bos_token_id"], *prompt, marks["eos_token_id"])
            lens, modes = [*lens, len(prompt) + 2], [*modes, CAUSAL]
            positions += range(1, len(prompt) + 3)

        stride = self.config["vae_config"]["downsample"] * bagel["latent_patch_size"]
        rows, cols = patch_grid(sample.vae_hw, stride)
        self.text(marks["start_of_image"])
        noisy = self.take(rows * cols)
        self.text(marks["end_of_image"])
        for name in ("packed_vae_token_indexes", "mse_loss_indexes"):
            self.add(name, noisy)
        self.add("packed_latent_position_ids", grid_ids(rows, cols, bagel["max_latent_size"]).tolist())
        self.add("packed_timesteps", [torch.randn((), generator=self.rng).item()] * len(noisy))
        self.add("patchified_vae_latent_shapes", [[rows, cols]])
        lens, modes = [*lens, len(noisy) + 2], [*modes, NOISE]
        positions += [positions[-1] + 1] * (len(noisy) + 2)

        self.add("packed_position_ids", positions)
        self.add("split_lens", lens)
        self.add("attn_modes", modes)
        self.add("attention_allowed", [allowed_mask(lens, modes)])
        self.add("sample_lens", [self.length - start])

    def tensors(self) -> dict[str, Tensor]:
        """All inputs of the forward pass, with random pixels, latents and noise."""
        masks = self.lists.pop("attention_allowed")
        out = {name: torch.tensor(values) for name, values in self.lists.items()}
        out |= {f"attention_allowed.{n}": mask for n, mask in enumerate(masks)}
        shapes, patch = out["patchified_vae_latent_shapes"], self.config["bagel_config"]["latent_patch_size"]
        channels = self.config["vae_config"]["z_channels"]
        height, width = (int(size) * patch for size in shapes.amax(0))
        pixels = torch.rand(len(out["packed_vit_position_ids"]), 3 * PATCH**2, generator=self.rng)
        out["packed_vit_tokens"] = pixels * 2 - 1
        # Random everywhere, the padding included: whoever forgets to crop it gets other numbers.
        out["padded_latent"] = torch.randn(len(shapes), channels, height, width, generator=self.rng)
        out["noise"] = torch.randn(len(out["mse_loss_indexes"]), channels * patch**2, generator=self.rng)
        return out


def pack_inputs(config: Config, samples: list[Sample], seed: int, joint: bool = False) -> dict[str, Tensor]:
    """Pack samples into one sequence; extends `config` by the facts that a case's config.json records."""
    rng = torch.Generator().manual_seed(seed)
    packer = Packer(config, rng, joint)
    words = config["llm_config"]["vocab_size"] - 4
    config["samples"] = []
    for sample in samples:
        prompt = torch.randint(words, (sample.text,), generator=rng).tolist()
        packer.sample(sample, prompt)
        facts = {"kind": "reca", "text_ids": [prompt], "text_dropped": sample.text_dropped}
        config["samples"].append(facts | {"vit_hw": list(sample.vit_hw), "vae_hw": list(sample.vae_hw)})
    config["sequence_length"] = packer.length
    config["attn_mode_codes"] = {"causal": CAUSAL, "full": FULL, "noise": NOISE}
    return packer.tensors()
