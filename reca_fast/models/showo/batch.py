"""The batch of one pack: the rows of all samples, sorted as the attention wants them, and what is learnt of them.

Letters in shapes: S rows; G codes of conditions; C codes of targets; F vectors of CLIP; W their width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from reca_fast.kernels import to_device
from reca_fast.sample import I2T, T2I, TASKS

from .layout import AttentionPlan, Span, build_plan
from .rows import GIVEN, TARGET, TEXT, VECTORS, Spans

CODES, VECTORS_SEEN, VECTORS_UNDERSTOOD = "codes", "seen", "understood"
"""What a cache calls the codes of a picture, and CLIP's vectors of a condition: as a reconstruction shows it to CLIP,
and as CLIP's own processor does.
"""


@dataclass(frozen=True)
class Learnt:
    """The rows of one task that have a loss, and the token ids that they are to predict.

    The first ones predict the codes `code_index` of the targets, the others the ids `ids`.
    """

    rows: Tensor  # int64 [codes + ids]: sorted rows
    code_index: Tensor  # int64 [codes]: numbers of target codes
    ids: Tensor  # int64 [ids]

    def to(self, device: torch.device | str) -> "Learnt":
        return Learnt(*(to_device(getattr(self, f.name), device) for f in fields(self)))

    def labels(self, codes: Tensor, first_code: int) -> Tensor:
        """int64 [rows]: the ids to be predicted, for the codes [C] of the targets."""
        return torch.cat((codes.index_select(0, self.code_index) + first_code, self.ids))


@dataclass(frozen=True)
class ShowoBatch:
    """One pack. Of its pictures it holds either the pixels or what the frozen encoders made of them."""

    plan: AttentionPlan
    positions: Tensor  # int64 [S]: position in the rotary embedding
    text_ids: Tensor  # int64 [text rows]: token ids of texts and marks
    text_rows: Tensor  # int64 [text rows]: sorted row of each
    given_rows: Tensor  # int64 [G]: sorted rows of the conditions' codes
    target_rows: Tensor  # int64 [C]: sorted rows of the targets' codes
    vector_rows: Tensor  # int64 [F]: sorted rows of CLIP's vectors
    learnt: dict[str, Learnt]  # task -> its losses; {} in a batch of sampling
    masked: Tensor  # int64: numbers of the target codes that the model does not see
    detached: Tensor | None  # bool [S]: rows whose embedding gets no gradient; None for none
    counts: dict[str, int]  # task -> number of rows in `learnt`
    conditions: tuple[Tensor, ...] = field(default=(), repr=False)  # uint8 [H, W, 3] each
    understood: tuple[bool, ...] = ()  # for each condition, whether CLIP's own processor reads it (i2t)
    targets: tuple[Tensor, ...] = field(default=(), repr=False)  # uint8 [H, W, 3] each
    given: Tensor | None = None  # int64 [G]: codes of the conditions
    codes: Tensor | None = None  # int64 [C]: codes of the targets
    vectors: Tensor | None = None  # fp32 [F, W]: what CLIP made of the conditions

    @property
    def num_tokens(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device | str) -> "ShowoBatch":
        """The batch with every tensor on `device`. The host does not wait for the copies."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                moved[f.name] = to_device(value, device)
        moved["plan"] = self.plan.to(device)
        moved["learnt"] = {task: learnt.to(device) for task, learnt in self.learnt.items()}
        for name in ("conditions", "targets"):
            moved[name] = tuple(to_device(image, device) for image in getattr(self, name))
        return replace(self, **moved)


def make_batch(
    samples: Sequence[Spans],
    *,
    masks: Sequence[Tensor] = (),
    tasks: Sequence[str] = (),
    detached: Sequence[bool] = (),
    pictures: Mapping[str, Any] | None = None,
) -> ShowoBatch:
    """Sort the rows of a pack's samples.

    Args:
        samples: the rows of each sample.
        masks: for each target a bool tensor over its codes: which of them the model does not see.
        tasks: for each target the task that it is drawn for; () where no loss is taken. In `t2i` the marks around the
            codes are predicted as well, as the authors have it.
        detached: for each sample, whether its embeddings get no gradient; () for none.
        pictures: the fields of the batch that hold pictures, or what was made of them.
    """
    plan, order = build_plan([[Span(mode, sum(p.length for p in pieces)) for mode, pieces in s] for s in samples])
    sorted_row = torch.empty_like(order)
    sorted_row[order] = torch.arange(len(order))

    positions: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {kind: [] for kind in (TEXT, GIVEN, TARGET, VECTORS)}
    ids: list[int] = []
    said_rows: list[int] = []
    said_ids: list[int] = []
    cut: list[Tensor] = []
    start = 0
    for number, spans in enumerate(samples):
        position, first_row = 0, start
        for piece in (piece for _, pieces in spans for piece in pieces):
            position = position if piece.position is None else piece.position
            positions.append(torch.arange(position, position + piece.length))
            rows[piece.kind].append(torch.arange(start, start + piece.length))
            ids += piece.ids
            for first, stop in piece.said:  # the row before a token predicts it
                said_rows += range(start + first - 1, start + stop - 1)
                said_ids += piece.ids[first:stop]
            start, position = start + piece.length, position + piece.length
        cut.append(torch.full((start - first_row,), number < len(detached) and detached[number]))

    text_ids, text_rows = torch.tensor(ids, dtype=torch.int64), _joined(rows[TEXT])
    id_of_row = torch.empty_like(order)
    id_of_row[text_rows] = text_ids
    learnt = _drawn(rows[TARGET], masks, tasks, id_of_row)
    if said_rows:
        learnt[I2T] = Learnt(torch.tensor(said_rows), _joined([]), torch.tensor(said_ids))
    return ShowoBatch(
        plan=plan,
        positions=_joined(positions)[order],
        text_ids=text_ids,
        text_rows=sorted_row[text_rows],
        given_rows=sorted_row[_joined(rows[GIVEN])],
        target_rows=sorted_row[_joined(rows[TARGET])],
        vector_rows=sorted_row[_joined(rows[VECTORS])],
        learnt={task: replace(each, rows=sorted_row[each.rows]) for task, each in learnt.items()},
        masked=torch.cat([*masks]).nonzero()[:, 0] if masks else _joined([]),
        detached=torch.cat(cut)[order] if any(detached) else None,
        counts={task: len(learnt[task].rows) for task in TASKS if task in learnt},
        **(pictures or {}),
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([*parts]) if parts else torch.zeros(0, dtype=torch.int64)


def _drawn(
    targets: Sequence[Tensor], masks: Sequence[Tensor], tasks: Sequence[str], id_of_row: Tensor
) -> dict[str, Learnt]:
    """The losses of the targets, whose rows are still numbered as they stand in the samples."""
    if not tasks:
        return {}
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}  # rows of codes, their numbers, rows of marks
    first = 0
    for rows, mask, task in zip(targets, masks, tasks, strict=True):
        hidden = mask.nonzero()[:, 0]
        marks = torch.stack((rows[0] - 1, rows[-1] + 1)) if task == T2I else rows[:0]
        parts.setdefault(task, []).append((rows[hidden], first + hidden, marks))
        first += len(rows)
    learnt = {}
    for task, found in parts.items():
        codes, index, marks = (torch.cat(each) for each in zip(*found, strict=True))
        learnt[task] = Learnt(torch.cat((codes, marks)), index, id_of_row[marks])
    return learnt
