"""An edit by BAGEL as its definition says it: float64, one dense mask, no cache, everything anew at every time.

It is written from the formulas and reads a checkpoint folder by itself; nothing of this project takes part. Letters in
shapes: S rows of the sequence, D the width of the language model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.kl_vae import PlainVAE

MOST_PIXELS = 14 * 14 * 9 * 1024


def authors_size(size: tuple[int, int], longest: int, shortest: int, stride: int) -> tuple[int, int]:
    """Width and height to which the authors resize a picture."""

    def times(sides: Sequence[int], factor: float) -> tuple[int, int]:
        width, height = (max(stride, round(round(side * factor) / stride) * stride) for side in sides)
        return width, height

    new = times(size, max(min(longest / max(size), 1.0), shortest / min(size)))
    if new[0] * new[1] > MOST_PIXELS:
        new = times(new, MOST_PIXELS / (new[0] * new[1]))
    return times(new, longest / max(new)) if max(new) > longest else new


def sincos(side: int, width: int) -> Tensor:
    """Position table [side * side, width]: sines and cosines of the column, then of the row."""
    waves = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    parts = [f(place[:, None] * waves) for place in (column, row) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1)


class Settings(NamedTuple):
    """How to draw, as the authors name it, but for `evaluations`, which is one less than their number of times."""

    evaluations: int = 49
    timestep_shift: float = 3.0
    cfg_text_scale: float = 4.0
    cfg_img_scale: float = 2.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    cfg_renorm_type: Literal["global", "channel", "text_channel"] = "text_channel"
    cfg_renorm_min: float = 0.0


@dataclass
class Rows:
    """A sequence under construction."""

    rows: list[Tensor] = field(default_factory=list)  # [n, D] each
    of_latents: list[bool] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    splits: list[tuple[int, bool]] = field(default_factory=list)  # length, and whether it is causal
    following: int = 0

    def add(self, rows: Tensor, of_latents: Sequence[bool], *, causal: bool) -> None:
        length = len(rows)
        self.rows.append(rows)
        self.of_latents += of_latents
        self.positions += [self.following + (number if causal else 0) for number in range(length)]
        self.splits.append((length, causal))
        self.following += length if causal else 1

    def mask(self) -> Tensor:
        """bool [S, S]: a row sees what lies before its split, and of the split what its kind allows."""
        total, start = len(self.positions), 0
        sees = torch.zeros(total, total, dtype=torch.bool)
        for length, causal in self.splits:
            stop, own = start + length, torch.ones(length, length, dtype=torch.bool)
            sees[start:stop, :start] = True
            sees[start:stop, start:stop] = own.tril() if causal else own
            start = stop
        return sees


class BagelEditor:
    """The model of a checkpoint folder.

    Args:
        markers: ids of start and end of a text, start and end of a picture.
    """

    def __init__(self, folder: Path, markers: tuple[int, int, int, int]) -> None:
        self.llm, self.vit, glue = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("llm_config", "vit_config", "config")
        )
        self.glue, vae = glue["bagel_config"], glue["vae_config"]
        self.w: Mapping[str, Tensor] = {k: v.double() for k, v in load_file(folder / "ema.safetensors").items()}
        tensors = {k: v.double() for k, v in load_file(folder / "ae.safetensors").items()}
        self.vae = PlainVAE(tensors, len(vae["ch_mult"]), vae["num_res_blocks"], vae["norm_groups"])
        self.scale, self.shift, self.z = vae["scale_factor"], vae["shift_factor"], vae["z_channels"]
        self.cell, self.markers = 2 ** (len(vae["ch_mult"]) - 1), markers
        self.square = self.glue["latent_patch_size"]
        self.stride = self.cell * self.square

    # Pictures

    def resized(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture for the VAE, which is resized once more for the ViT."""
        largest, patch = self.stride * self.glue["max_latent_size"], self.vit["patch_size"]
        side = self.glue["vit_max_num_patch_per_side"]
        image = Image.fromarray(picture)
        image = image.resize(authors_size(image.size, largest, largest // 2, self.stride), Image.Resampling.BICUBIC)
        size = authors_size(image.size, patch * side, patch * min(16, side), patch)
        return np.array(image), np.array(image.resize(size, Image.Resampling.BICUBIC))

    def latents(self, picture: np.ndarray, normal: Tensor) -> Tensor:
        """Latents [z, h, w] of uint8 [H, W, 3], drawn from their distribution with `normal`."""
        mean, logvar = self.vae.encode(_signed(picture).permute(2, 0, 1)).chunk(2)
        return self.scale * (mean + (logvar / 2).exp() * normal.double() - self.shift)

    def tokens(self, latents: Tensor) -> Tensor:
        """[rows * columns, square * square * z] of latents [z, h, w]."""
        p, (h, w) = self.square, latents.shape[1:]
        cells = [
            latents[:, y : y + p, x : x + p].permute(1, 2, 0).flatten() for y in range(0, h, p) for x in range(0, w, p)
        ]
        return torch.stack(cells)

    def pixels(self, tokens: Tensor, rows: int, columns: int) -> np.ndarray:
        p = self.square
        latents = torch.empty(self.z, rows * p, columns * p, dtype=torch.float64)
        for number, token in enumerate(tokens):
            y, x = number // columns * p, number % columns * p
            latents[:, y : y + p, x : x + p] = token.view(p, p, self.z).permute(2, 0, 1)
        picture = self.vae.decode(latents / self.scale + self.shift)
        return (((picture / 2 + 0.5).clamp(0, 1)) * 255).to(torch.uint8).permute(1, 2, 0).numpy()

    # Rows of the sequence

    def seen(self, picture: np.ndarray) -> Tensor:
        """What the language model gets of uint8 [H, W, 3] by way of the ViT, [patches, D]."""
        p, side, name = self.vit["patch_size"], self.glue["vit_max_num_patch_per_side"], "vit_model.vision_model"
        rows, columns = picture.shape[0] // p, picture.shape[1] // p
        signed = _signed(picture)
        x = torch.stack(
            [signed[r * p : (r + 1) * p, c * p : (c + 1) * p].flatten() for r in range(rows) for c in range(columns)]
        )
        places = _places(rows, columns, side)
        x = self._linear(f"{name}.embeddings.patch_embedding", x)
        x = x + self.w[f"{name}.embeddings.position_embedding.weight"][places]
        heads, width = self.vit["num_attention_heads"], self.vit["hidden_size"]
        for number in range(self.vit["num_hidden_layers"] + 1 + self.glue["vit_select_layer"]):
            layer = f"{name}.encoder.layers.{number}"
            normed = self._layer_norm(f"{layer}.layer_norm1", x)
            q, k, v = (
                self._linear(f"{layer}.self_attn.{kind}_proj", normed).view(-1, heads, width // heads) for kind in "qkv"
            )
            everything = torch.ones(len(x), len(x), dtype=torch.bool)
            x = x + self._linear(f"{layer}.self_attn.out_proj", _attend(q, k, v, everything))
            inner = self._linear(f"{layer}.mlp.fc1", self._layer_norm(f"{layer}.layer_norm2", x))
            x = x + self._linear(f"{layer}.mlp.fc2", F.gelu(inner, approximate="tanh"))
        x = self._layer_norm(f"{name}.post_layernorm", x)
        x = self._linear("connector.fc2", F.gelu(self._linear("connector.fc1", x), approximate="tanh"))
        return x + sincos(side, self.llm["hidden_size"])[places]

    def at_time(self, tokens: Tensor, rows: int, columns: int, t: float) -> Tensor:
        """Latent tokens as rows, [rows * columns, D]."""
        half = 128
        angles = t * 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
        time = self._linear("time_embedder.mlp.0", torch.cat((angles.cos(), angles.sin())))
        time = self._linear("time_embedder.mlp.2", F.silu(time))
        side = self.glue["max_latent_size"]
        table = sincos(side, self.llm["hidden_size"])[_places(rows, columns, side)]
        return self._linear("vae2llm", tokens) + time + table

    def words(self, *ids: int) -> Tensor:
        return self.w["language_model.model.embed_tokens.weight"][list(ids)]

    # The language model

    def hidden(self, sequence: Rows) -> Tensor:
        """Behind the last layer and the final norm of each row's expert, [S, D]."""
        x, latent = torch.cat(sequence.rows), torch.tensor(sequence.of_latents)
        mask, heads, groups = sequence.mask(), self.llm["num_attention_heads"], self.llm["num_key_value_heads"]
        head = self.llm["hidden_size"] // heads
        turn = self.llm["rope_theta"] ** -(torch.arange(head // 2, dtype=torch.float64) / (head // 2))
        angles = torch.tensor(sequence.positions)[:, None, None] * turn

        def rotated(y: Tensor) -> Tensor:
            first, second = y.chunk(2, dim=-1)
            return torch.cat(
                (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1
            )

        for number in range(self.llm["num_hidden_layers"]):
            layer = f"language_model.model.layers.{number}"
            normed = self._rms(f"{layer}.input_layernorm", x, latent)
            q, k, v = (
                self._expert(f"{layer}.self_attn.{kind}_proj", normed, latent).view(len(x), -1, head) for kind in "qkv"
            )
            q = rotated(self._rms(f"{layer}.self_attn.q_norm", q, latent))
            k = rotated(self._rms(f"{layer}.self_attn.k_norm", k, latent))
            k, v = (y.repeat_interleave(heads // groups, dim=1) for y in (k, v))
            x = x + self._expert(f"{layer}.self_attn.o_proj", _attend(q, k, v, mask), latent)
            normed = self._rms(f"{layer}.post_attention_layernorm", x, latent)
            gate, up = (self._expert(f"{layer}.mlp.{kind}_proj", normed, latent) for kind in ("gate", "up"))
            x = x + self._expert(f"{layer}.mlp.down_proj", F.silu(gate) * up, latent)
        return self._rms("language_model.model.norm", x, latent)

    def _expert(self, name: str, x: Tensor, latent: Tensor) -> Tensor:
        """A linear layer, of which rows of latents have weights of their own."""
        own = name.replace(".mlp.", ".mlp_moe_gen.") if ".mlp." in name else f"{name}_moe_gen"
        return torch.where(latent[:, None], self._linear(own, x), self._linear(name, x))

    def _rms(self, name: str, x: Tensor, latent: Tensor) -> Tensor:
        normed = x / (x.square().mean(-1, keepdim=True) + self.llm["rms_norm_eps"]).sqrt()
        is_latent = latent.view(-1, *[1] * (x.dim() - 1))
        return normed * torch.where(is_latent, self.w[f"{name}_moe_gen.weight"], self.w[f"{name}.weight"])

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        away = x - x.mean(-1, keepdim=True)
        normed = away / (away.square().mean(-1, keepdim=True) + self.vit["layer_norm_eps"]).sqrt()
        return normed * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    # An edit

    def velocity(
        self,
        source: tuple[np.ndarray, Tensor] | None,
        ids: Sequence[int] | None,
        x: Tensor,
        grid: tuple[int, int],
        t: float,
    ) -> Tensor:
        """The velocity of latent tokens x of (rows, columns) = grid at time t.

        Args:
            source: what the ViT sees of the picture, and its latent tokens; None leaves the picture out.
            ids: of the instruction; None leaves it out.
        """
        bos, eos, start, end = self.markers
        sequence = Rows()
        if source is not None:
            for rows, of_latents in ((self.at_time(source[1], *grid, 0.0), True), (self.seen(source[0]), False)):
                rows = torch.cat((self.words(start), rows, self.words(end)))
                sequence.add(rows, [False, *[of_latents] * (len(rows) - 2), False], causal=False)
        if ids is not None:
            sequence.add(self.words(bos, *ids, eos), [False] * (len(ids) + 2), causal=True)
        rows = torch.cat((self.words(start), self.at_time(x, *grid, t), self.words(end)))
        sequence.add(rows, [False, *[True] * len(x), False], causal=False)
        return self._linear("llm2vae", self.hidden(sequence)[-len(x) - 1 : -1])

    def guided(
        self,
        source: tuple[np.ndarray, Tensor],
        ids: Sequence[int],
        x: Tensor,
        grid: tuple[int, int],
        t: float,
        s: Settings,
    ) -> Tensor:
        v = self.velocity(source, ids, x, grid, t)
        if not s.cfg_interval[0] < t <= s.cfg_interval[1] or s.cfg_text_scale <= 1:
            return v

        def shortened(long: Tensor, dim: int | None) -> Tensor:
            ratio = v.norm(dim=dim, keepdim=True) / (long.norm(dim=dim, keepdim=True) + 1e-8)
            return long * ratio.clamp(s.cfg_renorm_min, 1.0)

        without_text = self.velocity(source, None, x, grid, t)
        out = without_text + s.cfg_text_scale * (v - without_text)
        if s.cfg_renorm_type == "text_channel":
            out = shortened(out, -1)
        if s.cfg_img_scale > 1:
            without_picture = self.velocity(None, ids, x, grid, t)
            out = without_picture + s.cfg_img_scale * (out - without_picture)
        if s.cfg_renorm_type == "text_channel":
            return out
        return shortened(out, -1 if s.cfg_renorm_type == "channel" else None)

    def edit(
        self, picture: np.ndarray, ids: Sequence[int], settings: Settings, noise: Tensor, normal: Tensor
    ) -> tuple[list[Tensor], Tensor, np.ndarray]:
        """The velocities of all steps, the latent tokens that they lead to, and the picture, uint8 [H, W, 3].

        Args:
            picture: uint8 [H, W, 3], of any size.
            noise: [rows * columns, C], where drawing starts from.
            normal: [z, h, w], the draw from the distribution of the picture's latents.
        """
        for_vae, for_vit = self.resized(picture)
        source = for_vit, self.tokens(self.latents(for_vae, normal))
        grid = for_vae.shape[0] // self.stride, for_vae.shape[1] // self.stride
        even = [1 - number / settings.evaluations for number in range(settings.evaluations + 1)]
        times = [settings.timestep_shift * t / (1 + (settings.timestep_shift - 1) * t) for t in even]
        x, velocities = noise.double(), []
        for t, following in pairwise(times):
            velocities.append(self.guided(source, ids, x, grid, t, settings))
            x = x - velocities[-1] * (t - following)
        return velocities, x, self.pixels(x, *grid)


def _signed(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).double() / 127.5 - 1


def _places(rows: int, columns: int, side: int) -> Tensor:
    return torch.tensor([row * side + column for row in range(rows) for column in range(columns)])


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Rows [S, heads * width] of q, k and v [S, heads, width]."""
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
