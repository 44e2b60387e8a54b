"""The project's own training step on tensors without numbers: what it holds, multiplies and moves."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.config import DataConfig, RunConfig
from reca_fast.data.inputs import Inputs
from reca_fast.data.loader import Pack
from reca_fast.data.streams import tasks_in_turn
from reca_fast.errors import UserError
from reca_fast.kernels import assume_gpu
from reca_fast.memory.place import training_place
from reca_fast.models import Model
from reca_fast.sample import I2T, TASKS, Encoded, Sample, Text
from reca_fast.train.assemble import assemble
from reca_fast.train.distributed import Processes
from reca_fast.train.state import Run, trained
from reca_fast.train.step import train_step

from .alike import alike_once
from .tracker import MemoryTracker, Usage
from .typical import typical_batch
from .work import Work, WorkLog

PROMPT = Text(tuple(range(21)))
"""As long as the templates are on average."""
FEWEST_PACKS, LONGEST_TURN = 2, 4
"""More packs of one process than the fewest, and one turn of all tasks (`data.mix`) beyond them, are not run but
reckoned: each turn more adds what that one added. Of longer turns, each pack adds what the third one added.
"""


@dataclass(frozen=True)
class Simulated:
    """One step of one process, after the first."""

    device: Usage  # at the peak
    host: Usage  # at its peak
    work: Work
    images: int  # of this process
    tokens: int  # of this process
    useful_flops: float  # by the model's own count: without recomputation, encoders' convolutions and the like
    exchanged: float = 0.0  # bytes that this process sends to others


class Alone(Processes):
    """A process that stands for itself alone, on the CPU."""

    def __init__(self) -> None:
        self.world, self.rank, self.local_rank = 1, 0, 0
        self.device = torch.device("cpu")


def simulate(config: RunConfig, model: Model, packs: int, gpus: int = 1) -> Simulated:
    """One step of training as a GPU would take it: two steps are run on fake tensors, and the second is counted.

    What is not run but reckoned: packs of one process beyond the third, each of which adds what the third added (with
    `data.mix=pack`, turns of all tasks beyond the second); and several processes that share the weights (FSDP2), see
    `shared_out`.

    Args:
        config: of the run. `memory.compile` has no effect: it changes how operations are launched and hardly what is
            kept.
        model: on the meta device; used up.
        packs: of this process in a step.
        gpus: processes that train together.

    Raises:
        UserError: no picture of the size that is asked for fits into a pack, or a lever cannot be pulled.
    """
    config = replace(config, device="cpu", memory=replace(config.memory, compile=False))
    sharded = gpus > 1 and config.memory.order == "pack"
    # FSDP hands the blocks their weights in the dtype of the arithmetic, so no copies are made under autocast.
    run = (
        replace(config, memory=replace(config.memory, trained="bf16"))
        if sharded and model.dtype.itemsize == 2
        else config
    )
    spare = deepcopy(model)  # on the meta device, for its sizes
    turn = len(tasks_in_turn(config.data)) if config.data.mix == "pack" else 1
    turn = turn if turn <= LONGEST_TURN else 1
    few = FEWEST_PACKS + (packs - FEWEST_PACKS) % turn
    if packs > few + turn:
        more = (packs - few) // turn - 1
        step = further(step_on_fakes(run, deepcopy(model), few), step_on_fakes(run, model, few + turn), more)
    else:
        step = step_on_fakes(run, model, packs)
    if sharded:
        return shared_out(step, spare, config, gpus, packs)
    if gpus > 1:  # each holds all weights, and their gradients are summed
        trains = sum(p.numel() for p in trained(spare.module).values())
        return replace(step, exchanged=2.0 * 4 * trains)
    return step


def step_on_fakes(config: RunConfig, model: Model, packs: int, *, on_gpu: bool = True) -> Simulated:
    """What `simulate` runs; `on_gpu` False: with the operations of a CPU, to compare with a run there."""
    ready = make_packs(config, model, packs)
    useful = sum(model.flops(pack.batch) for pack in ready)
    gpu = assume_gpu() if on_gpu else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), gpu, MemoryTracker() as tracker:
        with _shortened(model, tracker) as encodings:
            with tracker.making_as("weights"):
                run = assemble(config, Alone(), model, empty=True)
            _assign(tracker, run)
            tracker.forget_peak()
            train_step(run, ready)
            with WorkLog(tracker.is_on_host) as log:
                train_step(run, ready)
        work = sum((encodings[_kind(pack.batch)].work for pack in ready), log.work)
        images, tokens = sum(len(pack.keys) for pack in ready), sum(pack.num_tokens for pack in ready)
        return Simulated(tracker.peak(), tracker.peak(host=True), work, images, tokens, useful)


def further(two: Simulated, three: Simulated, more: int) -> Simulated:
    """A step of more packs than `three`: `more` times what `three` has beyond `two` is added to it."""

    def grown(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> dict[Any, Any]:
        return {key: b[key] + more * (b[key] - a.get(key, 0)) for key in b}

    def line(a: Any, b: Any) -> Any:
        return b + more * (b - a)

    return Simulated(
        Usage(grown(two.device.by_category, three.device.by_category)),
        Usage(grown(two.host.by_category, three.host.by_category)),
        Work(
            Counter(grown(two.work.launches, three.work.launches)),
            line(two.work.to_device, three.work.to_device),
            line(two.work.to_host, three.work.to_host),
        ),
        line(two.images, three.images),
        line(two.tokens, three.tokens),
        line(two.useful_flops, three.useful_flops),
    )


def shared_out(step: Simulated, model: Model, config: RunConfig, gpus: int, packs: int) -> Simulated:
    """What one of several processes holds under FSDP2, and the bytes that it sends: arithmetic on top of a step that
    one process took in the dtype of the arithmetic.

    Weights, gradients and states are divided by the processes that share them. Two blocks, and what belongs to none,
    are there whole at once; and the gradients of two blocks in fp32, on their way to their owners.

    Args:
        model: on the meta device.
        packs: of each process.
    """
    shards, narrow = gpus // config.parallel.replicate, model.dtype.itemsize
    module, blocks = model.module, model.blocks()
    inside = [sum(p.numel() for p in block.parameters()) for block in blocks]
    trains_inside = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks]
    whole = sum(p.numel() for p in module.parameters())
    trains = sum(p.numel() for p in trained(module).values())
    wide = 4 if config.memory.trained == "fp32" else 2
    held = dict(step.device.by_category)
    held["weights"] += int((wide * trains + narrow * (whole - trains)) / shards) - narrow * whole
    held["gradients"] = int(wide * trains / shards)
    held["optimizer"] = int(held["optimizer"] / shards)
    held["workspace"] += narrow * (2 * max(inside) + whole - sum(inside)) + 2 * 4 * max(trains_inside)
    sent = (shards - 1) / shards * packs * (2 * narrow * whole + 4 * trains)
    if config.parallel.replicate > 1:
        sent += 2 * 4 * trains / shards
    return replace(step, device=Usage(held), exchanged=sent)


def _assign(tracker: MemoryTracker, run: Run) -> None:
    """Tell the tracker what is a gradient and what an optimizer's state."""
    for tensors in run.update.state().values():
        tracker.assign(tensors.values(), "optimizer")
    if run.average is not None:
        tracker.assign(run.average.average.values(), "optimizer")
    for parameter in trained(run.model.module).values():
        parameter.register_post_accumulate_grad_hook(lambda p: tracker.assign([p.grad], "gradients"))


Kind = tuple[int, tuple[str, ...]]
"""Tokens and tasks of a batch: packs of a kind hold the same pictures, whatever was drawn for them."""


def _kind(batch: Any) -> Kind:
    return batch.num_tokens, tuple(task for task, count in batch.counts.items() if count)


@contextmanager
def _shortened(model: Model, tracker: MemoryTracker) -> Iterator[dict[Kind, WorkLog]]:
    """Inside, the model's encoders run once for each kind of pack and of picture, and their work is in the log of that
    kind. The batches' useful operations are not counted, which reads numbers.
    """
    logs: dict[Kind, WorkLog] = {}
    encode, encoded, known = model.encode, dict[Kind, Any](), dict[Any, Any]()

    def once(batch: Any) -> Any:
        kind = _kind(batch)
        if kind not in encoded:
            log = logs[kind] = WorkLog(tracker.is_on_host)
            with log, alike_once(log, known):
                encoded[kind] = encode(batch)
        return encoded[kind]

    model.encode = once  # type: ignore[method-assign]
    model.flops = lambda batch: 0.0  # type: ignore[method-assign]
    try:
        yield logs
    finally:
        del model.encode, model.flops


def make_packs(config: RunConfig, model: Model, packs: int) -> list[Pack[Any]]:
    """Packs filled with square pictures of the largest size that the configuration trains on, with the tasks mixed as
    `data.mix` and `data.serve` say; with `data.cache`, of what the encoders would have made of them. No cache is read.

    Args:
        model: on the meta device, and left as it is.

    Raises:
        UserError: not one picture fits.
    """
    data, inputs = config.data, model.inputs(config.data)
    tasks = [task for task in TASKS if getattr(data.tasks, task) > 0]
    joined = [tuple(tasks)] if data.serve == "all" else [(task,) for task in tasks]
    kinds = {each: _sample(each, data, inputs) for each in joined}
    if data.cache:
        kinds = {each: (_encoded(sample, model), tokens) for each, (sample, tokens) in kinds.items()}
    made = []
    for number in range(packs):
        turn = tasks_in_turn(data)[number % len(tasks_in_turn(data))] if data.mix == "pack" else None
        samples, tokens = _filled({k: v for k, v in kinds.items() if turn is None or k == (turn,)}, data)
        keys = tuple(sample.key for sample in samples)
        batch = typical_batch(partial(inputs.collate, samples), model.flops, number)
        made.append(Pack(0, number, batch, keys, tokens))
    return made


def _sample(tasks: tuple[str, ...], data: DataConfig, inputs: Inputs) -> tuple[Sample, int]:
    """A sample that serves these tasks, and its tokens."""
    side = data.target_resize.max_size
    text = replace(PROMPT, said=((0, len(PROMPT.ids)),)) if I2T in tasks else PROMPT
    plan = inputs.plan(tasks, (side, side), text)
    if plan.num_tokens > data.tokens_per_pack:
        raise UserError(
            f"A picture of {side} x {side} takes {plan.num_tokens} tokens and data.tokens_per_pack is "
            f"{data.tokens_per_pack}; raise it, or lower data.target_resize.max_size."
        )
    condition, target = (None if size is None else _grey(size) for size in (plan.condition, plan.target))
    return Sample("picture", tasks, condition, target, text), plan.num_tokens


def _filled(kinds: Mapping[tuple[str, ...], tuple[Sample, int]], data: DataConfig) -> tuple[list[Sample], int]:
    """As many samples as fill a pack, of several kinds in the ratio of `data.tasks`, and their tokens."""
    weights = {tasks: sum(getattr(data.tasks, task) for task in tasks) for tasks in kinds}
    counts, tokens = dict.fromkeys(kinds, 0), 0
    samples: list[Sample] = []
    while True:
        tasks = min(kinds, key=lambda each: (counts[each] + 1) / weights[each])
        sample, more = kinds[tasks]
        if tokens + more > data.tokens_per_pack:
            return samples, tokens
        samples.append(replace(sample, key=f"picture {len(samples)}"))
        counts[tasks] += 1
        tokens += more


def _encoded(sample: Sample, model: Model) -> Sample:
    """The sample as a cache holds it, by the model's own encoders, without numbers."""
    cpu = torch.device("cpu")
    encoders = deepcopy(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        encoders.fill_empty(training_place(model.dtype, cpu))

        def shapes(picture: Tensor | None, encode: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {} if picture is None else dict(encode(picture))

        condition = shapes(sample.condition, encoders.encode_condition)
        target = shapes(sample.target, encoders.encode_target)

    def stored(picture: Tensor | None, made: dict[str, Tensor]) -> Encoded | None:
        if picture is None:
            return None
        tensors = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in made.items()}
        return Encoded(picture.shape[1], picture.shape[0], tensors)

    return replace(
        sample,
        condition=None,
        target=None,
        encoded_condition=stored(sample.condition, condition),
        encoded_target=stored(sample.target, target),
    )


def _grey(size: tuple[int, int]) -> Tensor:
    width, height = size
    return torch.zeros(height, width, 3, dtype=torch.uint8)
