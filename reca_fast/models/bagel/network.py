"""BAGEL's network: the decoder, in which an understanding and a generation expert share the attention, with the
embeddings before it and the heads behind it.

It reads what the two frozen encoders (`encoders.py`) made of the pictures; they are no part of it. Letters in shapes
are those of `batch.py`, and D is the width of the language model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reca_fast.kernels import template_concat, to_device
from reca_fast.models.parts.host_table import HostTable
from reca_fast.models.parts.position import sincos_table
from reca_fast.models.parts.rms_norm import RMSNorm
from reca_fast.models.parts.rotary import rotary_table
from reca_fast.models.parts.timestep import TimestepEmbedder

from .batch import BagelBatch
from .config import BagelConfig
from .connector import Connector
from .layers import AFTER_ATTENTION, AttentionPlan, KeyValue, MoTLayer, Stream
from .padding import padded


@dataclass(frozen=True)
class Prediction:
    """What the network says about a batch."""

    velocity: Tensor  # [G of targets, C]
    # [U, D], the rows of the understanding stream after their final norm. Where no label needs them it is None, or has
    # no rows ([0, D]) if the understanding side is trained.
    und: Tensor | None


class Bagel(nn.Module):
    """The network between the frozen encoders and the losses.

    Args:
        config: sizes of the model.
        freeze_und: train the generation side alone. The understanding expert, the connector and the token embedding get
            requires_grad=False, no gradient flows through them, and what predicts text is left out (see `unread`).
        attention: attention backend, as `reca_fast.kernels.choose_backend` names it.
        whole: have also what nothing reads of a frozen understanding side, for whoever compares everything.
    """

    def __init__(
        self, config: BagelConfig, *, freeze_und: bool = True, attention: str = "sdpa", whole: bool = False
    ) -> None:
        super().__init__()
        llm = config.llm
        self.config, self.attention = config, attention
        table = HostTable if freeze_und else nn.Embedding
        self.embed_tokens = table(llm.vocab_size, llm.hidden_size)
        self.layers = nn.ModuleList(MoTLayer(llm) for _ in range(llm.num_hidden_layers))
        self.norm = RMSNorm(llm.hidden_size, llm.rms_norm_eps)
        self.norm_gen = RMSNorm(llm.hidden_size, llm.rms_norm_eps)
        self.lm_head = nn.Linear(llm.hidden_size, llm.vocab_size, bias=False)
        self.connector = Connector(config.vit.hidden_size, llm.hidden_size)
        self.time_embedder = TimestepEmbedder(llm.hidden_size)
        self.vae2llm = nn.Linear(config.patch_latent_dim, llm.hidden_size)
        self.llm2vae = nn.Linear(llm.hidden_size, config.patch_latent_dim)
        # The position tables follow from a formula. The authors compute them anew and ignore those in the file.
        self.latent_pos_embed: Tensor
        self.vit_pos_embed: Tensor
        self.fill_tables("meta")
        self.set_trainable(freeze_und)
        self.unread: nn.Module | None = None
        """Empty parts that a checkpoint has and this module lacks, because nothing would read them."""
        if freeze_und and not whole:
            self._leave_out_what_nothing_reads()

    def fill_tables(self, device: torch.device | str) -> None:
        """Compute the two fixed position tables, of the latents and of the ViT's patches, fp32 on `device`."""
        glue, width = self.config.glue, self.config.llm.hidden_size
        sides = {"latent_pos_embed": glue.max_latent_size, "vit_pos_embed": glue.vit_max_num_patch_per_side}
        with torch.device(device):  # on the meta device the formula costs nothing
            for name, side in sides.items():
                self.register_buffer(name, sincos_table(side, width), persistent=False)

    def set_trainable(self, freeze_und: bool) -> None:
        """Decide which parameters are trained: all, or without those of the understanding side."""
        self.freeze_und = freeze_und
        self.requires_grad_(True)
        if freeze_und:
            for part in (self.embed_tokens, self.norm, self.lm_head, self.connector):
                part.requires_grad_(False)
            for layer in self.layers:
                layer.und.requires_grad_(False)

    def _leave_out_what_nothing_reads(self) -> None:
        """Move into `unread`, under the same names, what neither the losses of a frozen understanding side nor sampling
        read: what turns its rows into predictions, and what comes after the last layer's keys and values.
        """
        last = len(self.layers) - 1
        names = ["norm", "lm_head", *(f"layers.{last}.und.{part}" for part in AFTER_ATTENTION)]
        unread = nn.Module()
        for name in names:
            path, _, leaf = name.rpartition(".")
            owner = self.get_submodule(path)
            place = unread
            for step in path.split(".") if path else ():
                if step not in place._modules:
                    place.add_module(step, nn.Module())
                place = place.get_submodule(step)
            place.add_module(leaf, owner.get_submodule(leaf))
            delattr(owner, leaf)
        object.__setattr__(self, "unread", unread)  # not a part of this module

    def embed_understanding(self, batch: BagelBatch) -> Tensor:
        """The rows of the understanding stream before the first layer, [U, D]: embeddings of texts and markers, and the
        conditions' features after the connector.

        Raises:
            ValueError: the batch has conditions whose features were not computed.
        """
        device, dtype, features = self.vit_pos_embed.device, self.connector.fc1.weight.dtype, batch.features
        if isinstance(self.embed_tokens, HostTable):
            embedding = self.embed_tokens(batch.text_ids, device, dtype)
            ids = torch.arange(len(embedding), device=device)
        else:
            embedding, ids = self.embed_tokens.weight, to_device(batch.text_ids, device)
        if features is None:
            if len(batch.vit_rows):
                raise ValueError("the batch is not encoded; encode() comes first")
            features = embedding.new_zeros(0, self.config.vit.hidden_size)  # the connector takes part (see MoTLayer)
        rows: Tensor = template_concat(
            token_ids=ids,
            embedding=embedding,
            token_rows=batch.text_rows,
            visual=self.connector(features),
            visual_rows=batch.vit_rows,
            visual_position_ids=batch.vit_position_ids,
            visual_position_embedding=self.vit_pos_embed,
            dtype=dtype,
        )
        return rows

    def embed_latents(self, batch: BagelBatch, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """The rows of the generation stream before the first layer, [G, D].

        Args:
            x_t: [G of targets, C], noisy latent tokens.
            timesteps: [M], the time of each target. Conditions that are latents have no noise, and the time 0.

        Raises:
            ValueError: the batch has such conditions, and they were not encoded.
        """
        if batch.clean is not None:
            if batch.condition_latents is None:
                raise ValueError("the batch is not encoded; encode() comes first")
            x_t = torch.cat((x_t, batch.condition_latents.to(x_t.dtype))).index_select(0, batch.clean.token_order)
            timesteps = torch.cat((timesteps, timesteps.new_zeros(batch.clean.pictures)))
            timesteps = timesteps.index_select(0, batch.clean.picture_order)
        time = self.time_embedder(timesteps)
        if not torch.is_autocast_enabled(x_t.device.type):  # autocast casts x_t by itself
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
        keep: bool = False,
    ) -> tuple[Tensor | None, Tensor | None, list[KeyValue]]:
        """Run the decoder's layers.

        Args:
            und: [U, D], the understanding stream; None where a batch has no such rows to compute.
            gen: [G, D], the generation stream; None in the pass of sampling over conditions and prompts.
            plan: which rows attend to which. Rows that it counts as padding are added here, and cut off behind.
            und_positions, gen_positions: int64 [U] and [G], positions in the rotary embedding.
            past: for each layer, keys and values of rows that went through the layers before.
            need_und: whether anybody reads the understanding stream behind the last layer.
            keep: return the keys and values of the rows of both streams.

        Returns:
            Both streams before their final norms, and, where `gen` is None, for each layer the keys and values of the
            understanding rows, or of all with `keep`. See `MoTLayer.forward` for what is None.
        """
        wide = torch.promote_types(self.norm_gen.weight.dtype, torch.float32)
        head_dim, theta = self.config.llm.head_dim, self.config.llm.rope_theta
        padding = plan.und_padding, plan.gen_padding
        num_und, num_gen = (0 if x is None else len(x) for x in (und, gen))
        und, gen = (None if x is None else padded(x, rows) for x, rows in zip((und, gen), padding, strict=True))
        und_rope, gen_rope = (
            () if positions is None else rotary_table(padded(positions, rows), head_dim, theta, wide)
            for positions, rows in zip((und_positions, gen_positions), padding, strict=True)
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
                *((True,) if keep else ()),
            )
            if und_kv is not None:
                kept.append(und_kv)
        return None if und is None else und[:num_und], None if gen is None else gen[:num_gen], kept

    def forward(self, batch: BagelBatch, x_t: Tensor, timesteps: Tensor) -> Prediction:
        """Predict the velocity of every latent token and, if the batch has labels, the understanding rows for them.

        Args:
            batch: encoded, on this module's device.
            x_t: [G of targets, C], noisy latent tokens; none in a batch without targets.
            timesteps: [M] in (0, 1), the time of each target.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_und):
            und: Tensor | None = self.embed_understanding(batch)
        gen: Tensor | None = self.embed_latents(batch, x_t, timesteps)
        need_und = batch.label_rows is not None and not self.freeze_und
        und, gen, _ = self.decode(und, gen, batch.plan, batch.und_positions, batch.gen_positions, need_und=need_und)
        if batch.clean is not None:
            assert gen is not None, "there are rows of conditions"
            gen = gen.index_select(0, batch.clean.target_rows)
        gen = self.norm_gen(gen)
        if und is not None:
            und = self.norm(und)
        return Prediction(self.llm2vae(gen), und)
