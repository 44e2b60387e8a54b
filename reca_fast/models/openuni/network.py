"""OpenUni's network: the frozen language model with its queries, the connector, the projector, and SANA.

What the frozen encoders made of the pictures comes in the batch. Letters in shapes are those of `batch.py`; D is the
width of the language model.
"""

import torch
from torch import Tensor, nn

from reca_fast.models.parts.host_table import HostTable
from reca_fast.models.parts.qwen2 import Qwen2Decoder

from .batch import OpenUniBatch
from .config import ConnectorConfig, OpenUniConfig
from .connector import ConnectorLayer
from .sana import Sana


class Connector(nn.Module):
    """Its layers."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConnectorLayer(config) for _ in range(config.num_hidden_layers))


def _projector(config: OpenUniConfig) -> nn.Module:
    """One linear layer behind the connector, or before it, or both."""
    llm, inside, out = config.llm.hidden_size, config.connector.hidden_size, config.sana.caption_channels
    if config.projector == "proj_enc_proj":
        return nn.ModuleList([nn.Linear(llm, inside), nn.Linear(inside, out)])
    return nn.Linear(llm, out)


class OpenUni(nn.Module):
    """The network between the frozen encoders and the losses. The language model is frozen.

    The tokens of prompts come before the queries and see none of them, so nothing trained changes them: they go through
    the language model without a graph, inside the same calls of its layers.

    Args:
        config: sizes of the model.
        attention: attention backend, as `reca_fast.kernels.choose_backend` names it.
    """

    def __init__(self, config: OpenUniConfig, *, attention: str = "sdpa") -> None:
        super().__init__()
        self.config, self.attention = config, attention
        self.embed_tokens = HostTable(config.llm.vocab_size, config.llm.hidden_size)
        self.decoder = Qwen2Decoder(config.llm).requires_grad_(False)
        self.meta_queries = nn.Parameter(torch.empty(config.num_queries, config.llm.hidden_size))
        self.connector = Connector(config.connector)
        self.projector = _projector(config)
        self.sana = Sana(config.sana)

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, in the order in which they run."""
        return [*self.decoder.layers, *self.connector.layers, *self.sana.blocks]

    @torch.no_grad()
    def embed_prompts(self, batch: OpenUniBatch) -> Tensor:
        """The prompts before the first layer, [P, D]: embeddings of tokens, and pictures in their places.

        Raises:
            ValueError: the batch has pictures in its prompts that were not encoded.
        """
        weight = self.decoder.norm.weight
        rows: Tensor = self.embed_tokens(batch.prompt_ids, weight.device, weight.dtype)
        if not len(batch.picture_rows):
            return rows
        if batch.features is None:
            raise ValueError("the batch is not encoded; encode() comes first")
        return rows.index_copy(0, batch.picture_rows, batch.features.to(rows.dtype))

    def context(self, batch: OpenUniBatch) -> Tensor:
        """What SANA attends to, [M * Q, caption_channels]."""
        decoder, samples = self.decoder, len(batch.target_tasks)
        prompts = self.embed_prompts(batch)
        queries = self.meta_queries.to(prompts.dtype).repeat(samples, 1)
        hidden, _ = decoder(
            decoder.stream(queries, batch.query_positions),
            batch.query_view,
            self.attention,
            prefix=decoder.stream(prompts, batch.prompt_positions),
            prefix_view=batch.prompt_view,
        )
        kind, projector = self.config.projector, self.projector
        before, behind = projector if isinstance(projector, nn.ModuleList) else (projector, projector)
        if kind != "enc_proj":
            hidden = before(hidden)
        for layer in self.connector.layers:
            hidden = layer(hidden, batch.query_segments, self.attention)
        context: Tensor = hidden if kind == "proj_enc" else behind(hidden)
        return context

    def forward(self, batch: OpenUniBatch, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the velocity of every latent cell, [T, C].

        Args:
            batch: encoded, on this module's device.
            x_t: [T, C], noisy latent cells.
            timesteps: [M], from 1 to 1000, the time of each target.
        """
        velocity: Tensor = self.sana(x_t, self.context(batch), timesteps, batch.groups, self.attention)
        return velocity
