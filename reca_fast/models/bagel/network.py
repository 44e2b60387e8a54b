"""BAGEL's decoder, in which an understanding and a generation expert share the attention, and what feeds it.

It reads the outputs of the two frozen encoders (`encoders.py`), which are no part of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reca_fast.kernels import template_concat
from reca_fast.models.parts.position import sincos_table
from reca_fast.models.parts.rotary import rotary_table
from reca_fast.models.parts.timestep import TimestepEmbedder

from .batch import BagelBatch
from .config import BagelConfig
from .connector import Connector
from .layers import AttentionPlan, KeyValue, MoTLayer, RMSNorm, Stream


@dataclass(frozen=True)
class Prediction:
    """What the model says about a batch; `und` is None (when trained: has no rows) when nothing reads it."""

    velocity: Tensor  # [G, latent dim]
    und: Tensor | None  # [U, D] after the final norm


class Bagel(nn.Module):
    """The network between the frozen encoders and the losses.

    Args:
        config: architecture.
        freeze_und: train the generation side alone; the understanding expert, the connector, the token embedding
             and the head get requires_grad=False, and no gradient flows through them.
        attention: backend name from `reca_fast.kernels.choose_backend`.
    """

    def __init__(self, config: BagelConfig, *, freeze_und: bool = True, attention: str = "sdpa") -> None:
        super().__init__()
        llm = config.llm
        self.config, self.attention = config, attention
        self.embed_tokens = nn.Embedding(llm.vocab_size, llm.hidden_size)
        self.layers = nn.ModuleList(MoTLayer(llm) for _ in range(llm.num_hidden_layers))
        self.norm = RMSNorm(llm.hidden_size, llm.rms_norm_eps)
        self.norm_gen = RMSNorm(llm.hidden_size, llm.rms_norm_eps)
        self.lm_head = nn.Linear(llm.hidden_size, llm.vocab_size, bias=False)
        self.connector = Connector(config.vit.hidden_size, llm.hidden_size)
        self.time_embedder = TimestepEmbedder(llm.hidden_size)
        self.vae2llm = nn.Linear(config.patch_latent_dim, llm.hidden_size)
        self.llm2vae = nn.Linear(llm.hidden_size, config.patch_latent_dim)
        # The tables are formulas: recomputed as the authors' loader does, never trusted from a file.
        self.latent_pos_embed: Tensor
        self.vit_pos_embed: Tensor
        self.fill_tables("meta")
        self.set_trainable(freeze_und)

    def fill_tables(self, device: torch.device | str) -> None:
        """Compute the two fixed sin/cos position tables on `device` (fp32)."""
        glue, width = self.config.glue, self.config.llm.hidden_size
        sides = {"latent_pos_embed": glue.max_latent_size, "vit_pos_embed": glue.vit_max_num_patch_per_side}
        with torch.device(device):  # on the meta device the formula costs nothing
            for name, side in sides.items():
                self.register_buffer(name, sincos_table(side, width), persistent=False)

    def set_trainable(self, freeze_und: bool) -> None:
        """Decide which parameters are trained."""
        self.freeze_und = freeze_und
        self.requires_grad_(True)
        if freeze_und:
            for part in (self.embed_tokens, self.norm, self.lm_head, self.connector):
                part.requires_grad_(False)
            for layer in self.layers:
                layer.und.requires_grad_(False)

    def embed_understanding(self, batch: BagelBatch) -> Tensor:
        """Embeddings of the texts and, through the connector, ViT features of the conditions, in stream order [U, D].

        Raises:
            ValueError: the batch holds pictures whose features were not computed.
        """
        embedding, features = self.embed_tokens.weight, batch.features
        if features is None:
            if len(batch.vit_rows):
                raise ValueError("the batch is not encoded; encode() comes first")
            features = embedding.new_zeros(0, self.config.vit.hidden_size)  # the connector takes part (see MoTLayer)
        rows: Tensor = template_concat(
            token_ids=batch.text_ids,
            embedding=embedding,
            token_rows=batch.text_rows,
            visual=self.connector(features),
            visual_rows=batch.vit_rows,
            visual_position_ids=batch.vit_position_ids,
            visual_position_embedding=self.vit_pos_embed,
            dtype=embedding.dtype,
        )
        return rows

    def embed_latents(self, batch: BagelBatch, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latent tokens x_t [G, C] at times [number of target pictures] -> [G, D]."""
        time = self.time_embedder(timesteps)
        if not torch.is_autocast_enabled(x_t.device.type):  # which casts by itself, and has made x_t narrow already
            x_t = x_t.to(self.vae2llm.weight.dtype)
        rows: Tensor = template_concat(
            latents=self.vae2llm(x_t),
            latent_position_ids=batch.latent_position_ids,
            latent_position_embedding=self.latent_pos_embed,
            timestep_embedding=time,
            latent_cu_seqlens=batch.latent_cu_seqlens,
        )
        return rows

    def decode(
        self,
        und: Tensor | None,
        gen: Tensor | None,
        plan: AttentionPlan,
        und_positions: Tensor | None,
        gen_positions: Tensor | None,
        *,
        past: list[KeyValue] | None = None,
        need_und: bool = True,
    ) -> tuple[Tensor | None, Tensor | None, list[KeyValue]]:
        """The decoder layers; returns both streams before the final norms and, of a prefix pass, keys and values of
        `und` per layer.
        """
        wide = torch.promote_types(self.norm_gen.weight.dtype, torch.float32)
        head_dim, theta = self.config.llm.head_dim, self.config.llm.rope_theta
        und_rope, gen_rope = (
            () if positions is None else rotary_table(positions, head_dim, theta, wide)
            for positions in (und_positions, gen_positions)
        )
        kept: list[KeyValue] = []
        for number, layer in enumerate(self.layers):
            und, gen, und_kv = layer(
                None if und is None else Stream(und, *und_rope),
                None if gen is None else Stream(gen, *gen_rope),
                plan,
                self.attention,
                None if past is None else past[number],
                self.freeze_und,
                need_und or number + 1 < len(self.layers),
            )
            if und_kv is not None:
                kept.append(und_kv)
        return und, gen, kept

    def forward(self, batch: BagelBatch, x_t: Tensor, timesteps: Tensor) -> Prediction:
        """Velocity of every latent token and, when the batch has labels, the understanding rows.

        Args:
            batch: a packed batch on this module's device.
            x_t: [G, C] noisy latents; G is 0 in a batch without target pictures.
            timesteps: [number of target pictures] in (0, 1).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_und):
            und: Tensor | None = self.embed_understanding(batch)
        gen: Tensor | None = self.embed_latents(batch, x_t, timesteps)
        need_und = batch.label_rows is not None
        und, gen, _ = self.decode(und, gen, batch.plan, batch.und_positions, batch.gen_positions, need_und=need_und)
        gen = self.norm_gen(gen)
        if und is not None:
            und = self.norm(und)
        return Prediction(self.llm2vae(gen), und)
