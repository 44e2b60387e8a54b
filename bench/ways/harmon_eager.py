"""Harmon's training step as its authors take it, in eager torch: padded batches, the whole sequence through the
language model, every image token through the denoiser, whether it is hidden or not.

It is the baseline of `bench/step.py --model harmon`. It reads the tensors of a parity case and has the public
checkpoints' names, so that recorded cases tell whether it is right (`tests/bench/test_ways.py`). Letters in shapes: B
samples, L image tokens, S slots of the language model, D and H widths of the image side and of the language model.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PLACEHOLDER = -200
STEPS, REPEATS = 1000, 4


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TimeEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        rates = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        angles = t[:, None].float() * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


class ResBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, -1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class Denoiser(nn.Module):
    def __init__(self, channels: int, condition: int, width: int, depth: int, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.time_embed = TimeEmbed(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        x = self.input_proj(x)
        y = self.time_embed(t) + self.cond_embed(z)
        for block in self.res_blocks:
            x = checkpoint(block, x, y, use_reentrant=False) if self.recompute else block(x, y)
        return self.final_layer(x, y)


class DiffusionLoss(nn.Module):
    def __init__(self, net: Denoiser) -> None:
        super().__init__()
        self.net = net
        ratio = [math.cos((i / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(STEPS + 1)]
        beta = torch.tensor([min(1 - ratio[i + 1] / ratio[i], 0.999) for i in range(STEPS)], dtype=torch.float64)
        kept = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        low = (beta * (1 - before) / (1 - kept)).clone()
        low[0] = low[1]
        self.tables = {
            "x0": kept.sqrt(),
            "noise": (1 - kept).sqrt(),
            "from_x": (1 / kept).sqrt(),
            "from_noise": (1 / kept - 1).sqrt(),
            "c1": beta * before.sqrt() / (1 - kept),
            "c2": (1 - before) * (1 - beta).sqrt() / (1 - kept),
            "low": low.log(),
            "high": beta.log(),
        }

    def forward(self, x0: Tensor, z: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The mean loss of the hidden rows, of x0 [N, C], z [N, D], mask [N], all N rows computed."""
        at = {name: table[t].float()[:, None] for name, table in self.tables.items()}
        x_t = at["x0"] * x0 + at["noise"] * noise
        predicted, v = self.net(x_t, t, z).chunk(2, -1)
        mse = (noise - predicted).square().mean(-1)
        guess = predicted.detach()
        mean = at["c1"] * x0 + at["c2"] * x_t
        found = at["c1"] * (at["from_x"] * x_t - at["from_noise"] * guess) + at["c2"] * x_t
        log_variance = (v + 1) / 2 * at["high"] + (1 - v) / 2 * at["low"]
        gap = (mean - found).square() * (-log_variance).exp()
        kl = 0.5 * (log_variance - at["low"] - 1 + (at["low"] - log_variance).exp() + gap)
        first = -discretised_log_likelihood(x0, found, 0.5 * log_variance)
        bound = torch.where(t == 0, first.mean(-1), kl.mean(-1)) / math.log(2)
        return ((mse + bound) * mask).sum() / mask.sum()


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    def normal(a: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))

    narrow = (-log_scale).exp()
    above, below = normal(narrow * (x - mean + 1 / 255)), normal(narrow * (x - mean - 1 / 255))
    inside = (above - below).clamp(min=1e-12).log()
    ends = torch.where(x > 0.999, (1 - below).clamp(min=1e-12).log(), inside)
    return torch.where(x < -0.999, above.clamp(min=1e-12).log(), ends)


class Mar(nn.Module):
    def __init__(self, sizes: dict[str, Any], recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.native = sizes["img_size"] // sizes["vae_stride"] // sizes["patch_size"]
        self.buffers_ = sizes["buffer_size"]
        inner, outer = sizes["encoder_embed_dim"], sizes["decoder_embed_dim"]
        channels = sizes["vae_embed_dim"] * sizes["patch_size"] ** 2
        places = self.buffers_ + self.native**2
        self.fake_latent = nn.Parameter(torch.empty(1, inner))
        self.class_emb = nn.Embedding(sizes["class_num"], inner)
        self.z_proj, self.z_proj_ln = nn.Linear(channels, inner), nn.LayerNorm(inner, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, places, inner))
        blocks = (Block(inner, sizes["encoder_num_heads"], sizes["mlp_ratio"]) for _ in range(sizes["encoder_depth"]))
        self.encoder_blocks, self.encoder_norm = nn.ModuleList(blocks), nn.LayerNorm(inner, eps=1e-6)
        self.decoder_embed = nn.Linear(inner, outer)
        self.mask_token = nn.Parameter(torch.empty(1, 1, outer))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, places, outer))
        blocks = (Block(outer, sizes["decoder_num_heads"], sizes["mlp_ratio"]) for _ in range(sizes["decoder_depth"]))
        self.decoder_blocks, self.decoder_norm = nn.ModuleList(blocks), nn.LayerNorm(outer, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, self.native**2, outer))
        self.diffloss = DiffusionLoss(Denoiser(channels, outer, sizes["diffloss_w"], sizes["diffloss_d"], recompute))

    def positions(self, table: Tensor, grid: tuple[int, int], kept: int) -> Tensor:
        if grid == (self.native, self.native):
            return table
        picture = table[:, kept:].reshape(1, self.native, self.native, -1).permute(0, 3, 1, 2)
        picture = F.interpolate(picture, size=grid, mode="bilinear").flatten(2).transpose(1, 2)
        return torch.cat([table[:, :kept], picture], 1)

    def run(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x

    def encode(self, x: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, buffers + visible, D] of tokens [B, L, C], of which those with mask 1 are hidden."""
        h = torch.cat([self.fake_latent.expand(x.shape[0], self.buffers_, -1), self.z_proj(x)], 1)
        h = self.z_proj_ln(h + self.positions(self.encoder_pos_embed_learned, grid, self.buffers_))
        visible = torch.cat([torch.zeros(x.shape[0], self.buffers_), mask], 1) == 0
        h = h[visible].view(x.shape[0], -1, h.shape[-1])
        return self.encoder_norm(self.run(self.encoder_blocks, h))

    def decode(self, e: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """z [B, L, Dd] of all image tokens."""
        e = self.decoder_embed(e)
        visible = torch.cat([torch.zeros(e.shape[0], self.buffers_), mask], 1) == 0
        h = self.mask_token.repeat(*visible.shape, 1).to(e.dtype).clone()
        h[visible] = e.flatten(0, 1)
        h = h + self.positions(self.decoder_pos_embed_learned, grid, self.buffers_)
        h = self.decoder_norm(self.run(self.decoder_blocks, h))
        return h[:, self.buffers_ :] + self.positions(self.diffusion_pos_embed_learned, grid, 0)


class ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


class EagerHarmon(nn.Module):
    """Args: `config`: config.json of a parity case; `recompute`: every block's activations, as the authors do."""

    def __init__(self, config: dict[str, Any], *, recompute: bool = True) -> None:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        super().__init__()
        self.config, self.grid = config, tuple(config["grid"])
        llm = Qwen2Config(**config["llm"], use_cache=False)
        self.llm = Qwen2ForCausalLM(llm)
        if recompute:
            self.llm.gradient_checkpointing_enable({"use_reentrant": False})
        self.mar = Mar(config["mar"], recompute)
        width, hidden = config["mar"]["encoder_embed_dim"], llm.hidden_size
        self.proj_in = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.proj_out = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def into_llm(self, e: Tensor) -> Tensor:
        u = self.proj_in(e)
        return torch.cat([u[:, self.mar.buffers_ :], u[:, : self.mar.buffers_]], 1)

    def condition(self, x: Tensor) -> Tensor:
        full = self.into_llm(self.mar.encode(x, torch.zeros(x.shape[:2]), self.grid))
        return ScaleGradient.apply(full, self.config["grad_scale"])

    def hidden_states(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        return self.llm.model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).last_hidden_state

    def forward(self, inputs: dict[str, Tensor], run: str) -> Tensor:
        """The loss of `run`, which is recon, text2image or image2text, of a parity case's inputs."""
        x = inputs["raw_latents"].flatten(2).transpose(1, 2) * self.config["vae_scale"]
        ids, mask = inputs[f"{run}.input_ids"], inputs[f"{run}.attention_mask"]
        embed = self.llm.model.embed_tokens
        if run != "text2image":
            c = self.condition(x)
            prefix = torch.cat([embed(ids[:, :3]), c, embed(ids[:, 4:])], 1)
            mask = torch.cat([mask[:, :3], mask.new_ones(c.shape[:2]), mask[:, 4:]], 1)
        else:
            prefix = embed(ids)
        if run == "image2text":
            return self.said(self.hidden_states(prefix, mask), inputs["image2text.labels"], c.shape[1])
        hidden = inputs[f"{run}.mask"]
        e = self.mar.encode(x, hidden, self.grid)
        u = self.into_llm(e)
        mask = torch.cat([mask, mask.new_ones(u.shape[:2])], 1)
        states = self.hidden_states(torch.cat([prefix, u], 1), mask)[:, -u.shape[1] :]
        states = torch.cat([states[:, -self.mar.buffers_ :], states[:, : -self.mar.buffers_]], 1)
        z = self.mar.decode(e + self.proj_out(states), hidden, self.grid)
        rows = (x.flatten(0, 1), z.flatten(0, 1), hidden.flatten())
        tiled = (row.repeat(REPEATS, *[1] * (row.dim() - 1)) for row in rows)
        return self.mar.diffloss(*tiled, inputs[f"{run}.timesteps"], inputs[f"{run}.noise"])

    def said(self, states: Tensor, labels: Tensor, slots: int) -> Tensor:
        ignored = labels.new_full((len(labels), slots), -100)
        labels = torch.cat([labels[:, :3], ignored, labels[:, 4:]], 1)[:, 1:]
        learned = labels >= 0
        return F.cross_entropy(self.llm.lm_head(states[:, :-1][learned]).float(), labels[learned])

    def published_shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor of a checkpoint, by name; the tied head is left out."""
        return {name: x.shape for name, x in self.state_dict().items() if name != "llm.lm_head.weight"}

    def load(self, weights: dict[str, Tensor]) -> "EagerHarmon":
        """Take the weights of a checkpoint; the head is the embedding where the file has none."""
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("vae.")}
        if self.config["llm"]["tie_word_embeddings"]:
            weights["llm.lm_head.weight"] = weights["llm.model.embed_tokens.weight"]
        self.load_state_dict(weights)
        self.llm.tie_weights()
        return self
