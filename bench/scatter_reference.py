"""BAGEL's RECA training step in the plain "scatter" style: the baseline of the benchmark and an oracle for tests.

One packed sequence carries the tokens of both experts. Every parameterised operation gathers the rows of its expert by
index, works on them, and assigns the result back into a zero-filled buffer: 17 gathers, 21 assignments and 8 zero fills
per decoder layer (11 in the block-mask variant of this style, which pads q, k and v as well; here attention is dense in
each sample). Element-wise work is left unfused, freezing the understanding expert is done by detaching its rows while
its weights keep `requires_grad`, and the timestep MLP runs once per latent token. Nothing here is meant to be fast; it
is meant to be an honest picture of that style and to be easy to check against the formulas.

Only torch is needed. Parameter names are those of the public checkpoint, so `load_state_dict` takes it strictly.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

AttentionKernel = Literal["generic", "fused"]
Config = dict[str, Any]
TIME_FEATURES = 256


def sincos_table(side: int, width: int) -> Tensor:
    """Fixed position table of a side x side grid, one row per cell; the column index fills the first half of a row."""
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    cell = torch.arange(side * side)
    column, row = (cell % side)[:, None] * omega, (cell // side)[:, None] * omega
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1).float()


def patch_latents(padded: Tensor, shapes: Tensor, patch: int) -> Tensor:
    """Crop each image's own area out of the batch-padded latents and flatten its patches (channel fastest)."""
    tokens = []
    for latent, (rows, cols) in zip(padded, shapes.tolist(), strict=True):
        area = latent[:, : rows * patch, : cols * patch].reshape(-1, rows, patch, cols, patch)
        tokens.append(area.permute(1, 3, 2, 4, 0).reshape(rows * cols, -1))
    return torch.cat(tokens)


class RMSNorm(nn.Module):
    """Root-mean-square norm as separate operations, statistics in (at least) float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """(u, v) -> (-v, u) for the two halves of the last axis."""
    u, v = x.chunk(2, dim=-1)
    return torch.cat([-v, u], dim=-1)


class GatedMLP(nn.Module):
    """SwiGLU block without biases."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Pack:
    """What every decoder layer needs to know about the packed sequence."""

    def __init__(self, inputs: dict[str, Tensor], llm: Config, dtype: torch.dtype, kernel: AttentionKernel):
        head_dim = llm["hidden_size"] // llm["num_attention_heads"]
        self.und = torch.cat([inputs["packed_text_indexes"], inputs["packed_vit_token_indexes"]])
        self.gen = inputs["packed_vae_token_indexes"]
        self.lens: list[int] = inputs["sample_lens"].tolist()
        wide = torch.promote_types(dtype, torch.float32)
        frequency = llm["rope_theta"] ** (-torch.arange(0, head_dim, 2, dtype=wide) / head_dim)
        angle = inputs["packed_position_ids"][:, None].to(wide) * frequency
        angle = torch.cat([angle, angle], dim=-1)[:, None]  # head axis
        self.cos, self.sin = angle.cos().to(dtype), angle.sin().to(dtype)
        # On the CPU torch takes the generic (map-storing) kernel for a mask without a head axis, the fused one with it.
        axes = (None, None) if kernel == "fused" else (None,)
        self.masks = [
            torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))[axes]
            for allowed in (inputs[f"attention_allowed.{n}"] for n in range(len(self.lens)))
        ]


class MoTAttention(nn.Module):
    """Self-attention with one set of projections and head norms per expert; keys and values meet in one sequence."""

    def __init__(self, llm: Config):
        super().__init__()
        width, self.heads, self.kv_heads = llm["hidden_size"], llm["num_attention_heads"], llm["num_key_value_heads"]
        self.head_dim = width // self.heads
        for suffix in ("", "_moe_gen"):
            for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                self.add_module(f"{name}_proj{suffix}", nn.Linear(width, heads * self.head_dim))
            self.add_module(f"o_proj{suffix}", nn.Linear(width, width, bias=False))
            self.add_module(f"q_norm{suffix}", RMSNorm(self.head_dim, llm["rms_norm_eps"]))
            self.add_module(f"k_norm{suffix}", RMSNorm(self.head_dim, llm["rms_norm_eps"]))

    def head_norm(self, x: Tensor, name: str, pack: Pack, freeze_und: bool) -> Tensor:
        """Norm over each head, per expert."""
        out = torch.zeros_like(x)
        out[pack.und] = self.get_submodule(name)(x[pack.und])
        if freeze_und:
            out[pack.und] = out[pack.und].detach()
        out[pack.gen] = self.get_submodule(f"{name}_moe_gen")(x[pack.gen])
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pack: Pack) -> Tensor:
        """Dense masked attention, one sample after the other, keys and values repeated to all query heads."""
        repeats = self.heads // self.kv_heads
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        parts = []
        samples = zip(q.split(pack.lens), k.split(pack.lens), v.split(pack.lens), pack.masks, strict=True)
        for *qkv, mask in samples:
            q_one, k_one, v_one = (part.transpose(0, 1)[None] for part in qkv)
            parts.append(F.scaled_dot_product_attention(q_one, k_one, v_one, mask)[0].transpose(0, 1))
        return torch.cat(parts)

    def forward(self, x: Tensor, pack: Pack, freeze_und: bool) -> Tensor:
        count, und, gen = x.shape[0], pack.und, pack.gen
        q, out = x.new_zeros(count, self.heads * self.head_dim), x.new_zeros(x.shape)
        k, v = (x.new_zeros(count, self.kv_heads * self.head_dim) for _ in range(2))
        x_und, x_gen = x[und], x[gen]
        q[und], q[gen] = self.q_proj(x_und), self.q_proj_moe_gen(x_gen)
        k[und], k[gen] = self.k_proj(x_und), self.k_proj_moe_gen(x_gen)
        v[und], v[gen] = self.v_proj(x_und), self.v_proj_moe_gen(x_gen)
        q, k, v = (part.view(count, -1, self.head_dim) for part in (q, k, v))
        if freeze_und:
            v[und] = v[und].detach()
        q, k = self.head_norm(q, "q_norm", pack, freeze_und), self.head_norm(k, "k_norm", pack, freeze_und)
        q = q * pack.cos + rotate_half(q) * pack.sin
        k = k * pack.cos + rotate_half(k) * pack.sin
        mixed = self.attend(q, k, v, pack).reshape(count, -1)
        out[und], out[gen] = self.o_proj(mixed[und]), self.o_proj_moe_gen(mixed[gen])
        if freeze_und:
            out[und] = out[und].detach()
        return out


class MoTLayer(nn.Module):
    """Pre-norm decoder layer whose norms, projections and MLP exist once per expert."""

    def __init__(self, llm: Config):
        super().__init__()
        width, eps = llm["hidden_size"], llm["rms_norm_eps"]
        self.self_attn = MoTAttention(llm)
        for suffix in ("", "_moe_gen"):
            self.add_module(f"mlp{suffix}", GatedMLP(width, llm["intermediate_size"]))
            self.add_module(f"input_layernorm{suffix}", RMSNorm(width, eps))
            self.add_module(f"post_attention_layernorm{suffix}", RMSNorm(width, eps))

    def forward(self, x: Tensor, pack: Pack, freeze_und: bool) -> Tensor:
        und, gen = pack.und, pack.gen
        h = torch.zeros_like(x)
        h[und], h[gen] = self.input_layernorm(x[und]), self.input_layernorm_moe_gen(x[gen])
        x = x + self.self_attn(h, pack, freeze_und)
        h = torch.zeros_like(x)
        h[und] = self.mlp(self.post_attention_layernorm(x[und]))
        if freeze_und:
            h[und] = h[und].detach()
        h[gen] = self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(x[gen]))
        return x + h


class VitLayer(nn.Module):
    """SigLIP block: pre-LN attention inside each image, then a tanh-GELU MLP."""

    def __init__(self, vit: Config):
        super().__init__()
        width, self.heads = vit["hidden_size"], vit["num_attention_heads"]
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in ("k", "v", "q", "out")})
        self.layer_norm1 = nn.LayerNorm(width, eps=vit["layer_norm_eps"])
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, vit["intermediate_size"]), "fc2": nn.Linear(vit["intermediate_size"], width)}
        )
        self.layer_norm2 = nn.LayerNorm(width, eps=vit["layer_norm_eps"])

    def forward(self, x: Tensor, lens: list[int]) -> Tensor:
        h = self.layer_norm1(x)
        q, k, v = (self.self_attn[f"{n}_proj"](h).view(len(x), self.heads, -1).split(lens) for n in ("q", "k", "v"))
        images = []
        for q_one, k_one, v_one in zip(q, k, v, strict=True):
            scores = q_one.transpose(0, 1) @ k_one.permute(1, 2, 0) * q_one.shape[-1] ** -0.5
            images.append((scores.softmax(-1) @ v_one.transpose(0, 1)).transpose(0, 1).flatten(1))
        x = x + self.self_attn["out_proj"](torch.cat(images))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x)), approximate="tanh"))


class Vit(nn.Module):
    """SigLIP vision tower on packed patches, cut after the selected layer, final norm included."""

    def __init__(self, vit: Config, layers: int, side: int):
        super().__init__()
        width = vit["hidden_size"]
        self.embeddings = nn.ModuleDict(
            {
                "patch_embedding": nn.Linear(vit["num_channels"] * vit["patch_size"] ** 2, width),
                "position_embedding": nn.Embedding(side * side, width),
            }
        )
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(VitLayer(vit) for _ in range(layers))})
        self.post_layernorm = nn.LayerNorm(width, eps=vit["layer_norm_eps"])

    def forward(self, patches: Tensor, ids: Tensor, lens: list[int]) -> Tensor:
        x = self.embeddings["patch_embedding"](patches) + self.embeddings["position_embedding"](ids)
        for layer in self.encoder["layers"]:
            x = layer(x, lens)
        return self.post_layernorm(x)


class Table(nn.Module):
    """Fixed sin/cos positions; a parameter that is never trained, as in the checkpoint."""

    def __init__(self, side: int, width: int):
        super().__init__()
        self.pos_embed = nn.Parameter(sincos_table(side, width), requires_grad=False)


class TimeEmbedder(nn.Module):
    """Timestep features (cosines first), then a two-layer MLP, for every latent token on its own."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = TIME_FEATURES // 2
        angle = t[:, None] * 10000.0 ** (-torch.arange(half, dtype=t.dtype) / half)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class ScatterBagel(nn.Module):
    """The whole training model (without the VAE). `config` holds the dicts of a parity case's config.json."""

    def __init__(
        self, config: Config, *, freeze_und: bool = True, kernel: AttentionKernel = "fused", checkpointing: bool = False
    ):
        super().__init__()
        llm, vit, bagel = (config[f"{name}_config"] for name in ("llm", "vit", "bagel"))
        width, side = llm["hidden_size"], bagel["vit_max_num_patch_per_side"]
        self.config, self.freeze_und, self.kernel, self.checkpointing = config, freeze_und, kernel, checkpointing
        channels = config["vae_config"]["z_channels"] * bagel["latent_patch_size"] ** 2

        decoder = nn.Module()
        decoder.embed_tokens = nn.Embedding(llm["vocab_size"], width)
        decoder.layers = nn.ModuleList(MoTLayer(llm) for _ in range(llm["num_hidden_layers"]))
        decoder.norm, decoder.norm_moe_gen = (RMSNorm(width, llm["rms_norm_eps"]) for _ in range(2))
        head = nn.Linear(width, llm["vocab_size"], bias=False)
        self.language_model = nn.ModuleDict({"model": decoder, "lm_head": head})
        self.time_embedder = TimeEmbedder(width)
        self.vae2llm, self.llm2vae = nn.Linear(channels, width), nn.Linear(width, channels)
        self.latent_pos_embed = Table(bagel["max_latent_size"], width)
        vit_layers = vit["num_hidden_layers"] + 1 + bagel["vit_select_layer"]
        self.vit_model = nn.ModuleDict({"vision_model": Vit(vit, vit_layers, side)})
        self.connector = nn.ModuleDict({"fc1": nn.Linear(vit["hidden_size"], width), "fc2": nn.Linear(width, width)})
        self.vit_pos_embed = Table(side, width)
        self.vit_model.requires_grad_(False)
        self.connector.requires_grad_(not freeze_und)

    def embed(self, inputs: dict[str, Tensor], x_t: Tensor, t: Tensor, trace: dict[str, Tensor]) -> Tensor:
        """Write text, picture and latent rows into one zero-filled sequence."""
        text = self.language_model["model"].embed_tokens(inputs["packed_text_ids"])
        lens = inputs["vit_token_seqlens"].tolist()
        vit = self.vit_model["vision_model"](inputs["packed_vit_tokens"], inputs["packed_vit_position_ids"], lens)
        picture = self.connector["fc2"](F.gelu(self.connector["fc1"](vit), approximate="tanh"))
        picture = picture + self.vit_pos_embed.pos_embed[inputs["packed_vit_position_ids"]]
        time = self.time_embedder(t)
        latent = self.vae2llm(x_t) + time + self.latent_pos_embed.pos_embed[inputs["packed_latent_position_ids"]]

        x = text.new_zeros(int(inputs["sample_lens"].sum()), text.shape[-1])
        x[inputs["packed_text_indexes"]] = text
        x[inputs["packed_vit_token_indexes"]] = picture
        x[inputs["packed_vae_token_indexes"]] = latent
        trace |= {"vit_out": vit, "timestep_embed": time}
        return x

    def decode(self, x: Tensor, pack: Pack, trace: dict[str, Tensor]) -> Tensor:
        """All decoder layers and the final norms."""
        und, gen, decoder = pack.und, pack.gen, self.language_model["model"]
        if self.freeze_und:
            x[und] = x[und].detach()
        trace["llm_input"] = x
        for number, layer in enumerate(decoder.layers):
            if self.checkpointing:
                x = checkpoint(layer, x, pack, self.freeze_und, use_reentrant=False)
            else:
                x = layer(x, pack, self.freeze_und)
            if number == 0:
                trace["layer0_out"] = x
        out = torch.zeros_like(x)
        out[und] = decoder.norm(x[und])
        if self.freeze_und:
            out[und] = out[und].detach()
        out[gen] = decoder.norm_moe_gen(x[gen])
        return out

    def forward(
        self, inputs: dict[str, Tensor], *, with_ce: bool = False, trace: dict[str, Tensor] | None = None
    ) -> Tensor:
        """The scalar loss of a pack; `trace` receives the intermediates under the names of the parity cases."""
        trace = {} if trace is None else trace
        bagel, dtype = self.config["bagel_config"], self.vae2llm.weight.dtype
        clean = patch_latents(
            inputs["padded_latent"], inputs["patchified_vae_latent_shapes"], bagel["latent_patch_size"]
        )
        noise, shift = inputs["noise"], bagel["timestep_shift"]
        t = torch.sigmoid(inputs["packed_timesteps"])
        t = shift * t / (1 + (shift - 1) * t)
        x_t = (1 - t[:, None]) * clean + t[:, None] * noise

        pack = Pack(inputs, self.config["llm_config"], dtype, self.kernel)
        hidden = self.decode(self.embed(inputs, x_t, t, trace), pack, trace)
        velocity = self.llm2vae(hidden[inputs["mse_loss_indexes"]])
        error = (velocity - (noise - clean)[t > 0]) ** 2
        per_token = error.mean(-1)
        mse = per_token.sum() / len(per_token)
        trace |= {"t_after_shift": t, "x_t": x_t, "last_hidden": hidden, "last_hidden_gen": hidden[pack.gen]}
        trace |= {"velocity_pred": velocity, "mse_elementwise": error, "mse_per_token": per_token, "mse": mse}
        if not with_ce:
            return mse
        logits = self.language_model["lm_head"](hidden[inputs["ce_loss_indexes"]])
        ce_per_token = F.cross_entropy(logits, inputs["packed_label_ids"], reduction="none")
        trace |= {"ce_per_token": ce_per_token, "ce": ce_per_token.sum() / len(ce_per_token)}
        return mse + trace["ce"]
