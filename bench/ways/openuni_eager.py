"""OpenUni's training step as its authors take it, composed of the public classes of transformers and diffusers: padded
prompts, the whole sequence of the frozen language model inside autograd, every picture encoded again.

It is the baseline of `bench/step.py --model openuni`. It reads the tensors of a parity case and the public checkpoints'
names, so that recorded cases tell whether it is right (`tests/bench/test_ways.py`).
"""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = [  # a part of a name in the public checkpoints, and in transformers
    ("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding.", "vision_tower.embeddings.patch_embeddings.projection."),
    ("vision_model.encoder.layers.", "vision_tower.encoder.layer."),
    (".attn.proj.", ".attention.projection_layer."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
    ("mlp1.0.", "multi_modal_projector.layer_norm."),
    ("mlp1.1.", "multi_modal_projector.linear_1."),
    ("mlp1.3.", "multi_modal_projector.linear_2."),
    ("language_model.model.", "language_model."),
]


class ConnectorLayer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer_norm1(x)
        heads = (self.self_attn[f"{n}_proj"](h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in "qkv")
        x = x + self.self_attn["out_proj"](F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x)), approximate="tanh"))


class Connector(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        shape = (sizes[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads", "layer_norm_eps"))
        width, inner, heads, eps = shape
        self.layers = nn.ModuleList(ConnectorLayer(width, inner, heads, eps) for _ in range(sizes["num_hidden_layers"]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class EagerOpenUni(nn.Module):
    """Args: `config`: config.json of a parity case."""

    def __init__(self, config: dict[str, Any]) -> None:
        from diffusers import AutoencoderDC, SanaTransformer2DModel
        from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, Qwen2Config

        super().__init__()
        self.config = config
        vit, same = config["vit"], ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        vision = InternVLVisionConfig(
            **{key: vit[key] for key in same},
            image_size=[vit["image_size"]] * 2,
            patch_size=[vit["patch_size"]] * 2,
            attention_bias=vit["qkv_bias"],
            use_mean_pooling=True,  # which leaves the final norm out
            layer_norm_eps=vit["layer_norm_eps"],
        )
        llm = {key: value for key, value in config["llm"].items() if key not in ("rope_scaling", "model_type")}
        lmm = InternVLConfig(
            vision_config=vision,
            text_config=Qwen2Config(**llm),
            image_token_id=config["special_tokens"]["<IMG_CONTEXT>"],
            image_seq_length=config["lmm"]["num_image_token"],
            downsample_ratio=config["lmm"]["downsample_ratio"],
            tie_word_embeddings=False,
        )
        self.lmm = InternVLModel(lmm).requires_grad_(False)
        vae: Any = AutoencoderDC(**config["vae"])
        self.vae = vae.requires_grad_(False)
        self.transformer: Any = SanaTransformer2DModel(**config["sana"])
        self.connector = Connector(config["connector"])
        width = config["connector"]["hidden_size"]
        self.projector = nn.Linear(width, config["sana"]["caption_channels"])
        self.meta_queries = nn.Parameter(torch.empty(config["num_queries"], width))
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def seen(self, pixels: Tensor) -> Tensor:
        """The understanding encoder's vectors [B, tokens, H] of pictures in [-1, 1]."""
        side = self.config["vit_input_size"]
        pixels = F.interpolate(((pixels + 1) / 2 - self.mean) / self.std, size=(side, side), mode="bilinear")
        features = self.lmm.get_image_features(pixel_values=pixels)
        return getattr(features, "pooler_output", features)

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latent * self.vae.config.scaling_factor

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of a parity case's inputs."""
        pixels, ids, noise = inputs.get("pixel_values"), inputs["input_ids"], inputs["noise"]
        embedded = self.lmm.get_input_embeddings()(ids)
        if pixels is None:
            latents = inputs["image_latents"]
        else:
            embedded[ids == self.config["special_tokens"]["<IMG_CONTEXT>"]] = self.seen(pixels).flatten(0, 1)
            latents = self.latents(pixels)
        queries = self.meta_queries.expand(len(ids), -1, -1)
        mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"].new_ones(queries.shape[:2])], 1).long()
        states = self.lmm.language_model(
            inputs_embeds=torch.cat([embedded, queries], 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state[:, -queries.shape[1] :]
        context = self.projector(self.connector(states))
        sigma = inputs["sigmas"].view(-1, 1, 1, 1)
        noisy = (1 - sigma) * latents + sigma * noise
        predicted = self.transformer(noisy, encoder_hidden_states=context, timestep=inputs["timesteps"]).sample
        return (predicted - (noise - latents)).square().mean((1, 2, 3)).mean()

    def published_shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor of a checkpoint under the authors' names."""
        shapes: dict[str, torch.Size] = {}
        for name, x in self.state_dict().items():
            for published, native in reversed(NAMES) if name.startswith("lmm.") else ():
                name = name.replace(native, published)
            fused = re.sub(r"\.attention\.[qkv]_proj\.", ".attn.qkv.", name)
            shapes[fused] = torch.Size((x.shape[0] * (1 if fused == name else 3), *x.shape[1:]))
        embedding = shapes["lmm.language_model.model.embed_tokens.weight"]
        return shapes | {"lmm.language_model.lm_head.weight": embedding}

    def load(self, weights: dict[str, Tensor]) -> "EagerOpenUni":
        """Take the weights of a checkpoint under the authors' names; the head, which nothing reads, is left out."""
        self.load_state_dict(dict(entry for name, x in weights.items() for entry in _native(name, x)))
        return self


def _native(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """One tensor under the names of transformers: the three projections of the ViT's attention lie apart there."""
    if name == "lmm.language_model.lm_head.weight":
        return []
    for published, native in NAMES if name.startswith("lmm.") else ():
        name = name.replace(published, native)
    if ".attn.qkv." not in name or not name.startswith("lmm."):
        return [(name, tensor)]
    split = zip("qkv", tensor.chunk(3), strict=True)
    return [(name.replace(".attn.qkv.", f".attention.{part}_proj."), x) for part, x in split]
