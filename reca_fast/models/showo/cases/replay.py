"""A parity case computed again: its rows go through `ShowoModel.loss_sums`, packed as in training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.config import Attention, ModelConfig
from reca_fast.errors import UserError
from reca_fast.models.files import open_weights, uniform
from reca_fast.models.parts.clip_vision import bilinear
from reca_fast.models.parts.magvit import codes_of
from reca_fast.sample import I2T, RECA, T2I

from ..batch import ShowoBatch, make_batch
from ..collate import masked_codes
from ..encoders import ShowoEncoders
from ..names import NETWORK_NAMES
from ..rows import Spans
from ..weights import weights_file
from .case import CLIP, MAGVIT, TARGETS, RecordedCase
from .drawn import replay_drawing
from .recorded_rows import spans_of

TASKS = {"t2i": T2I, "lm": I2T, "mmu": I2T, "recon": RECA}
"""Kind of recorded rows -> the task that they are rows of; the authors' texts alone (lm) are no task of training here,
and are learnt like the texts of i2t.
"""
Build = Callable[..., Any]
"""Makes the model to be replayed: `ShowoModel`, which opens cases and is therefore not imported here."""


@dataclass(frozen=True)
class ShowoCase:
    """A recorded case and the model that replays it, as `reca_fast.models.protocol.Case` wants them."""

    recorded: RecordedCase
    build: Build

    def replay(self, *, attention: Attention, dtype: torch.dtype, weights: Path | None) -> Iterator[tuple[str, Tensor]]:
        """Compute every recorded tensor, on the CPU, under the names that `expected` gives them."""
        model = self._model(attention, dtype, weights)
        replayed = _Replay(self.recorded, model, dtype)
        yield from replayed.pictures()
        yield from replayed.predictions()
        yield from replayed.objectives()
        if self.recorded.settings.gen is not None and "gen_input_ids" in self.recorded.inputs:
            yield from replay_drawing(self.recorded, model)

    def _model(self, attention: Attention, dtype: torch.dtype, weights: Path | None) -> Any:
        """The model with the case's weights, or those of another file or folder."""
        case = self.recorded
        path = case.folder / "weights.safetensors" if weights is None else weights
        path = (weights_file(path) if path.is_dir() else path).absolute()
        if not path.exists():
            raise UserError(f"{path} is missing; name a file of weights or a checkpoint folder.")
        options = ModelConfig(weights=str(path), attention=attention, freeze_und=False)
        model = self.build(case.config, options, None, case.encoders(path))
        model.dtype = dtype
        model.encoders = ShowoEncoders(model.encoders.config, clip_sees=model.clip_sees, dtype=dtype)
        model.fill(uniform(dtype, "cpu"))
        with open_weights(path) as stored:
            model.encoders.fill_from(stored, "cpu", magvit=MAGVIT, clip=CLIP)
        return model

    def expected(self) -> dict[str, Tensor]:
        return self.recorded.expected()

    def tolerance(self, name: str, dtype: torch.dtype) -> float:
        return self.recorded.tolerance(name, dtype)


class _Replay:
    """The parts of a replay; what the frozen encoders make of the recorded pictures is kept between them."""

    def __init__(self, case: RecordedCase, model: Any, dtype: torch.dtype) -> None:
        self.case, self.model, self.dtype = case, model, dtype
        self.codes: dict[str, Tensor] = {  # kind of rows -> codes [B, N] of their targets or, in mmu, of what they see
            kind: case.inputs[f"codes_{kind}"] for kind in TASKS if f"codes_{kind}" in case.inputs
        }
        self.given = torch.zeros(0, dtype=torch.int64)  # codes of the conditions of recon rows
        self.vectors: dict[str, Tensor] = {}  # kind of rows -> CLIP's vectors [B, patches, W]

    # Pictures

    @torch.no_grad()
    def pictures(self) -> Iterator[tuple[str, Tensor]]:
        """What the frozen encoders make of the recorded pixels."""
        yield from self._seen_by_clip()
        yield from self._codes_of_pictures()

    def _seen_by_clip(self) -> Iterator[tuple[str, Tensor]]:
        inputs, encoders = self.case.inputs, self.model.encoders
        if encoders.clip is None:
            return
        pixels = {"mmu": inputs["clip_pixels_mmu"]} if "clip_pixels_mmu" in inputs else {}
        if "pixels_recon" in inputs:
            side = encoders.clip.config.image_size
            pixels["recon"] = bilinear(inputs["pixels_recon"], (side, side))
            yield "clip_pixels_recon", pixels["recon"]
        for kind, seen in pixels.items():
            self.vectors[kind] = encoders.seen(seen)
            yield f"clip_feats_{kind}", self.vectors[kind]
        if "recon" in self.vectors:
            yield "clip_projected_recon", self.model.module.mm_projector(self.vectors["recon"])

    def _codes_of_pictures(self) -> Iterator[tuple[str, Tensor]]:
        inputs, magvit = self.case.inputs, self.model.encoders.magvit
        if magvit is None:
            return
        pixels = {kind: inputs[f"pixels_{kind}"] for kind in ("recon", "t2i", "mmu") if f"pixels_{kind}" in inputs}
        if "recon" in pixels and not self.model.clip_sees:
            pixels["recon_cond"] = self._condition(pixels["recon"])
            yield "pixels_recon_cond", pixels["recon_cond"]
        for kind, shown in pixels.items():
            z = torch.cat([magvit.z(picture[None]) for picture in shown])
            codes = codes_of(z).flatten(1)
            yield f"vq_z_{kind}", z[:1] if kind == "t2i" else z  # of t2i the first picture alone was recorded
            yield f"vq_codes_{kind}", codes
            if kind == "recon_cond":
                self.given = codes
            else:
                self.codes[kind] = codes
            if kind == "recon":
                cells = z.shape[-2:]
                yield "vq_decoded_recon", torch.cat([magvit.decode(each.view(1, *cells)) for each in codes])

    def _condition(self, pixels: Tensor) -> Tensor:
        """The condition of a reconstruction out of its target: fewer pixels and, where they are blurred, as many
        again.
        """
        settings, (height, width) = self.case.settings, pixels.shape[-2:]
        small = bilinear(pixels, (height // settings.down_scale, width // settings.down_scale))
        return bilinear(small, (height, width)) if settings.resize_back else small

    # Rows

    def batch(self, *kinds: str) -> ShowoBatch:
        """The recorded rows of these kinds as one pack."""
        case, count, found = self.case, self.case.config.num_vq_tokens, [k for k in kinds if self.case.rows(k)]
        samples: list[Spans] = []
        masks: list[Tensor] = []
        tasks: list[str] = []
        detached: list[bool] = []
        for kind in found:
            labels = case.inputs.get(f"{kind}_labels") if kind in ("lm", "mmu") else None
            for number, ids in enumerate(case.rows(kind)):
                label = None if labels is None else labels[number]
                samples.append(spans_of(kind, ids, label, case.config, count))
                if kind in TARGETS:
                    if kind not in self.codes:
                        raise UserError(f"{case.folder} lacks codes_{kind}, or a tokenizer that makes them of pixels.")
                    ratio, order = (case.inputs[f"{kind}_mask_{name}"][number] for name in ("u", "rand"))
                    masks.append(masked_codes(ratio, order, case.settings.min_masking_rate))
                    tasks.append(TASKS[kind])
                detached.append(kind == "recon" and self.model.clip_sees)

        def joined(parts: Sequence[Tensor]) -> Tensor | None:
            return torch.cat(list(parts)) if parts else None

        given = {"recon": self.given, "mmu": self.codes.get("mmu", self.given[:0])}
        pictures = {
            "codes": joined([self.codes[kind].flatten() for kind in found if kind in TARGETS]),
            "given": joined([given[kind].flatten() for kind in found if kind in given and not self.model.clip_sees]),
            "vectors": joined([self.vectors[kind].flatten(0, 1) for kind in found if kind in self.vectors]),
        }
        return make_batch(samples, masks=masks, tasks=tasks, detached=detached, pictures=pictures)

    @torch.no_grad()
    def _logits(self, batch: ShowoBatch, wanted: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of sorted rows."""
        out: Tensor = self.model.module.lm_head(self.model.module(batch, self._seen(batch), wanted))
        return out

    def _seen(self, batch: ShowoBatch) -> Tensor:
        codes = batch.text_ids[:0] if batch.codes is None else batch.codes
        return codes.index_fill(0, batch.masked, self.case.config.codebook_size)

    def predictions(self) -> Iterator[tuple[str, Tensor]]:
        """Logits at those rows of each kind for which they were recorded."""
        for kind in TARGETS:
            if rows := self.case.rows(kind):
                batch = self.batch(kind)
                logits = self._logits(batch, batch.target_rows)
                yield f"{kind}_logits_image", logits.unflatten(0, (len(rows), -1))
        if rows := self.case.rows("mmu"):
            batch = self.batch("mmu")
            yield "mmu_logits_supervised", self._logits(batch, batch.learnt[I2T].rows)
        if rows := self.case.rows("lm"):
            batch = self.batch("lm")
            lengths = torch.tensor([sum(p.length for _, ps in s for p in ps) for s in self._spans("lm")])
            first = (lengths.cumsum(0) - lengths)[:, None] + torch.arange(8)
            yield "lm_logits_first8", self._logits(batch, first.flatten()).unflatten(0, (len(rows), 8))

    def _spans(self, kind: str) -> list[Spans]:
        labels = self.case.inputs[f"{kind}_labels"]
        count = self.case.config.num_vq_tokens
        return [spans_of(kind, *row, self.case.config, count) for row in zip(self.case.rows(kind), labels, strict=True)]

    # Losses and gradients

    def objectives(self) -> Iterator[tuple[str, Tensor]]:
        """The loss of each kind of rows, and every objective with its gradients."""
        module, kinds = self.model.module, [kind for kind in TASKS if self.case.rows(kind)]
        yield from ((f"scalar/losses.{kind}", self._means(kind)[kind].detach()) for kind in kinds)
        for name, stops, coefficients in self._recorded_objectives():
            module.stops_gradient = stops
            module.zero_grad()
            chosen = {kind: value for kind, value in coefficients.items() if kind in kinds}
            # mmu and lm are one task here, so they are learnt in packs of their own.
            packs = [[kind for kind in chosen if kind != "lm"], [kind for kind in chosen if kind == "lm"]]
            means: dict[str, Tensor] = {}
            for pack in filter(None, packs):
                part = self._means(*pack)
                torch.stack([chosen[kind] * mean for kind, mean in part.items()]).sum().backward()
                means |= part
            total = sum(chosen[kind] * mean.detach().double() for kind, mean in means.items())
            yield f"scalar/objectives.{name}.loss", torch.as_tensor(total)
            found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
            yield f"scalar/objectives.{name}.grad_norm", torch.nn.utils.get_total_norm(list(found.values()))
            yield from ((f"grad.{name}.{NETWORK_NAMES.key(n)}", grad.clone()) for n, grad in found.items())
        module.stops_gradient = True

    def _means(self, *kinds: str) -> dict[str, Tensor]:
        """The mean loss of each of these kinds of rows, which are one pack and serve tasks of their own."""
        batch = self.batch(*kinds)
        sums = self.model.loss_sums(batch)
        return {kind: sums[TASKS[kind]] / batch.counts[TASKS[kind]] for kind in kinds}

    def _recorded_objectives(self) -> Iterator[tuple[str, bool, dict[str, float]]]:
        """Name, whether the gradient stops before the rows of a reconstruction, and the coefficient of each kind."""
        for name, objective in self.case.settings.objectives.items():
            coefficients = {kind: getattr(objective, f"{kind}_coeff") for kind in ("recon", "mmu", "t2i", "lm")}
            chosen = {kind: value for kind, value in coefficients.items() if value}
            yield name, self.model.clip_sees, chosen
            if self.model.clip_sees and "recon" in chosen:
                yield f"{name}_fullgrad", False, chosen
