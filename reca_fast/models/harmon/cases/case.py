"""A parity case of Harmon: what the authors' code was given and what it computed, recorded in a folder.

config.json holds the sizes of the model, inputs.safetensors one batch for each task with every random number of a step,
and weights.safetensors the weights. Samples are padded on the right there; here padding is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.files import stored_shapes
from reca_fast.models.files.folder import read_object
from reca_fast.models.recorded import expected_tensors, read_inputs, recorded_tensor
from reca_fast.sample import RECA, T2I
from reca_fast.schema import PositiveInt, from_dict

from ..batch import HarmonBatch
from ..config import HarmonConfig
from ..diffusion import kept_steps
from ..encoders import latent_tokens
from ..layout import Layout, Piece, Prompt, build_layout
from ..positions import Grid
from ..sampling import HarmonSampling, Prefix

TASKS = {"recon": RECA, "text2image": T2I, "image2text": ""}
"""What the authors call a task -> the task of its targets; "" where it has none."""
SEEN = ("recon", "image2text")
"""Those with a condition."""


@dataclass(frozen=True)
class _Run:
    """The settings of the recorded sampling, as config.json states them under `sample`."""

    num_iter: PositiveInt
    mode: str = "text2image"
    cfg: float = 1.0
    cfg_schedule: str = "constant"
    temperature: float = 1.0
    timestep_map: tuple[int, ...] | None = None


@dataclass(frozen=True)
class RecordedCase:
    """A case folder, read."""

    folder: Path
    config: HarmonConfig
    raw: dict[str, Any]  # what config.json holds
    inputs: dict[str, Tensor]  # inputs.safetensors, checked

    @classmethod
    def open(cls, folder: Path) -> "RecordedCase | None":
        """The case in a folder, or None when its config.json describes no Harmon.

        Raises:
            UserError: config.json, inputs.safetensors or weights.safetensors is missing or damaged.
        """
        path = folder / "config.json"
        raw = read_object(path)
        if not isinstance(raw.get("mar"), dict) or not isinstance(raw.get("llm"), dict):
            return None
        config = HarmonConfig.from_dict(raw, str(path), stored_shapes(folder / "weights.safetensors"))
        case = cls(folder, config, raw, read_inputs(folder))
        case._check()
        return case

    def _check(self) -> None:
        """Raises UserError for inputs that are no recorded batch."""
        path = self.folder / "inputs.safetensors"
        grid = self.raw.get("grid")
        whole = isinstance(grid, list) and len(grid) == 2 and all(isinstance(n, int) and n > 0 for n in grid)
        if not whole or not isinstance(self.raw.get("image_token_id", -200), int):
            raise UserError(f"{self.folder / 'config.json'} states no grid of rows and columns.")
        if not {"raw_latents", "pixel_values"} & self.inputs.keys():
            raise UserError(f"{path} holds neither raw_latents nor pixel_values.")
        samples = self._pictures(path)
        for task in self.tasks:
            ids = recorded_tensor(self.inputs, f"{task}.input_ids", (samples, None), path)
            for name, shape in self._shapes(task, tuple(ids.shape)).items():
                recorded_tensor(self.inputs, f"{task}.{name}", shape, path)
            real = ids[ids != self.image_token]
            if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < self.config.llm.vocab_size:
                raise UserError(f"{path}: {task}.input_ids holds ids beyond the vocabulary.")
            if task in SEEN and not ((ids == self.image_token).sum(1) == 1).all():
                raise UserError(f"{path}: not every row of {task}.input_ids has one {self.image_token}, its picture.")
        if self.sampling() is not None:
            tokens = self.grid[0] * self.grid[1]
            orders = recorded_tensor(self.inputs, "sample.orders", (samples, tokens), path)
            if not torch.equal(orders.sort(1).values, torch.arange(tokens).expand(samples, -1).to(orders.dtype)):
                raise UserError(f"{path}: sample.orders are no permutations of {tokens} tokens.")

    def _pictures(self, path: Path) -> int:
        """How many pictures there are. Raises UserError where they are not those of the grid."""
        (rows, columns), mar = self.grid, self.config.mar
        name, channels, side = "raw_latents", mar.vae_embed_dim, mar.patch_size
        if name not in self.inputs:
            name, channels, side = "pixel_values", 3, mar.stride
        return len(recorded_tensor(self.inputs, name, (None, channels, rows * side, columns * side), path))

    def _shapes(self, task: str, ids: tuple[int, ...]) -> dict[str, tuple[int | None, ...]]:
        """The shape of each tensor of a task, by name, where its ids have this one."""
        shapes: dict[str, tuple[int | None, ...]] = {"attention_mask": ids}
        if not TASKS[task]:
            return shapes | {"labels": ids}
        tokens = self.grid[0] * self.grid[1]
        drawn = ids[0] * tokens * self.config.mar.diffusion_batch_mul
        return shapes | {
            "mask": (ids[0], tokens),
            "timesteps": (drawn,),
            "noise": (drawn, self.config.mar.token_dim),
        }

    @property
    def tasks(self) -> list[str]:
        """The recorded tasks, as the authors call them."""
        return [task for task in TASKS if any(name.startswith(f"{task}.") for name in self.inputs)]

    @property
    def grid(self) -> Grid:
        """Rows and columns of every picture's tokens."""
        rows, columns = self.raw["grid"]
        return rows, columns

    @property
    def image_token(self) -> int:
        """What stands for a condition among the ids."""
        return int(self.raw.get("image_token_id", -200))

    def latents(self, raw: Tensor) -> Tensor:
        """Latents before scaling, [B, z, h, w] -> scaled tokens [B, L, C]."""
        scaled = self.config.vae.scale_factor * raw
        return torch.stack([latent_tokens(each, self.config.mar.patch_size) for each in scaled])

    def layout(self, task: str) -> Layout:
        """Where the rows of a task's recorded batch stand."""
        drawn, seen = TASKS[task], task in SEEN
        pieces = []
        for i, prompt in enumerate(self.prompts(task)):
            hidden = self.inputs[f"{task}.mask"][i].bool() if drawn else None
            pieces.append(
                Piece(
                    prompt=prompt,
                    condition=self.grid if seen else None,
                    target=self.grid if drawn else None,
                    same=bool(drawn) and seen,
                    hidden=hidden,
                    task=drawn or RECA,
                )
            )
        return build_layout(pieces, self.config.mar.buffer_size)

    def prompts(self, task: str) -> Iterator[Prompt]:
        """The prompt of each sample of a task, without padding.

        Raises:
            UserError: a label is not the token in its place, or stands where no answer can be.
        """
        labels = self.inputs.get(f"{task}.labels")
        for i, ids in enumerate(self.inputs[f"{task}.input_ids"]):
            real = self.inputs[f"{task}.attention_mask"][i].bool()
            kept = ids[real].tolist()
            at = kept.index(self.image_token) if task in SEEN and self.image_token in kept else -1
            before, after = (kept[:at], kept[at + 1 :]) if at >= 0 else ([], kept)
            said: list[tuple[int, int]] = []
            for place, label in enumerate([] if labels is None else labels[i][real].tolist()):
                if label < 0:
                    continue
                if place <= at or label != kept[place]:
                    raise UserError(f"{self.folder}: {task}.labels are not the tokens behind the condition.")
                start = place - at - 1
                said = (
                    [*said[:-1], (said[-1][0], start + 1)]
                    if said and said[-1][1] == start
                    else [*said, (start, start + 1)]
                )
            yield Prompt(tuple(before), tuple(after), tuple(said))

    def batch(self, task: str, latents: Tensor, *, hidden_only: bool = True) -> HarmonBatch:
        """The recorded batch of a task.

        Args:
            task: as the authors call it.
            latents: [B, L, C] in the dtype of the arithmetic.
            hidden_only: predict the noise of hidden tokens alone, as training does; else of all, in the order of the
                recorded rows.
        """
        layout, mar = self.layout(task), self.config.mar
        decoder, predicted = layout.decoder, layout.predicted
        timesteps, noise = torch.zeros(0, dtype=torch.int64), None
        if TASKS[task]:
            every = self.inputs[f"{task}.mask"].numel()
            if not hidden_only:
                tokens = torch.arange(every)
                size = self.grid[0] * self.grid[1]
                rows = tokens + (tokens // size + 1) * mar.buffer_size
                decoder, predicted = decoder._replace(rows=rows, tokens=tokens, latents=tokens), {TASKS[task]: every}
            tokens = decoder.tokens
            timesteps = self.inputs[f"{task}.timesteps"].view(-1, every)[:, tokens].flatten().long()
            noise = self.inputs[f"{task}.noise"].view(-1, every, mar.token_dim)[:, tokens].flatten(0, 1)
        return HarmonBatch(
            encoder=layout.encoder,
            language=layout.language,
            decoder=decoder,
            predicted=predicted,
            num_tokens=len(layout.language.positions),
            timesteps=timesteps,
            noise_seed=0,
            noise=None if noise is None else noise.to(latents.dtype),
            latents=latents.flatten(0, 1),
        )

    # Sampling

    def sampling(self) -> HarmonSampling | None:
        """How the recorded pictures were drawn; None where none was.

        Raises:
            UserError: config.json does not say how, or contradicts itself.
        """
        where, stated = self.folder / "config.json", self.config.mar.num_sampling_steps
        if not any(name.startswith("sample.") for name in self.inputs):
            return None
        run = from_dict(_Run, self.raw.get("sample"), f"sample of {where}")
        if run.cfg_schedule not in ("constant", "linear"):
            raise UserError(f"{where}: cfg_schedule must be constant or linear.")
        if run.timestep_map is not None and list(run.timestep_map) != kept_steps(stated):
            raise UserError(f"{where}: sample.timestep_map is not what mar.num_sampling_steps {stated!r} keeps.")
        schedule: Any = run.cfg_schedule
        return HarmonSampling(run.num_iter, run.cfg, schedule, run.temperature)

    def prefixes(self, latents: Tensor, number: int) -> tuple[Prefix, Prefix]:
        """What the picture of this number was drawn from, and what guidance compared with.

        Args:
            latents: [L, C], of the condition where there is one.
            number: of the picture.
        """
        if "sample.cond_ids" in self.inputs:
            cond = self.inputs["sample.cond_ids"].tolist()
            place = cond.index(self.image_token) if self.image_token in cond else 3
            after = cond[place + 1 :] if self.image_token in cond else cond[place:]
            prompt = Prompt(tuple(cond[:place]), tuple(after))
            unguided = Prefix(Prompt(tuple(self.inputs["sample.uncond_ids"].tolist()), ()))
            return Prefix(prompt, latents, self.grid), unguided
        ids, real = self.inputs["sample.input_ids"], self.inputs["sample.attention_mask"].bool()
        rows = [number, (number + len(self.inputs["sample.orders"])) % len(ids)]
        given, compared = (Prefix(Prompt(tuple(ids[row][real[row]].tolist()), ())) for row in rows)
        return given, compared

    # What the authors' code computed

    def expected(self) -> dict[str, Tensor]:
        """Every recorded tensor, by name; none if only inputs were recorded."""
        return expected_tensors(self.folder)

    def tolerance(self, name: str, dtype: torch.dtype) -> float:
        """Largest allowed difference, as a share of the largest entry of the recorded tensor.

        In fp32 it is the one that the cases state, which leaves room for another order of additions alone; in bf16 it
        leaves room for the rounding of that dtype, which 1000 steps of diffusion make much of.
        """
        if dtype is torch.bfloat16:
            if name.startswith("sample."):
                return 1.0
            return 0.2 if "grad" in name else 0.1
        return 1e-4
