"""What every model must keep of `reca_fast.models.protocol.Model`. A new model joins by a line in `subjects.py`."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import reca_fast.models
from reca_fast.config import DataConfig, MemoryConfig, ModelConfig, ResizeConfig, SamplingConfig
from reca_fast.memory import apply_levers, fill_model
from reca_fast.models import Batch, Model, open_model, published_model
from reca_fast.models.files import stored_shapes, uniform
from reca_fast.models.parts.host_table import host_tables
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, T2I, TASKS, Encoded, Sample, Text, Turn
from reca_fast.verify.unchanged import changed_besides, compare_frozen, same_bits
from tests.models.subjects import SUBJECTS, Subject

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    return request.param


@pytest.fixture(autouse=True)
def registered(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that adding a model takes outside its folder."""
    monkeypatch.setitem(reca_fast.models.MODELS, subject.name, subject.line)


@pytest.fixture(scope="module")
def folder(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tiny checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    subject.write(folder)
    return folder


@pytest.fixture
def opened(subject: Subject, folder: Path) -> Callable[..., Model]:
    """opened(freeze_und=False, ...): the model with its weights, in fp32 unless a precision is given."""
    usual = {"precision": "fp32", "freeze_und": subject.freezes[0], **subject.model}

    def open_and_fill(recompute: Any = "none", **options: Any) -> Model:
        model = open_model(ModelConfig(path=str(folder), **usual | options))
        apply_levers(model.module, model.blocks(), MemoryConfig(recompute=recompute))
        fill_model(model, torch.device("cpu"))
        draw = torch.Generator().manual_seed(3)
        for parameter in model.module.parameters():  # fresh heads of zeros would hide everything behind them
            if parameter.requires_grad and not parameter.any():
                parameter.data.normal_(std=0.02, generator=draw)
        return model

    return open_and_fill


def picture(width: int, height: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def samples_of(model: Model, subject: Subject, *tasks: Sequence[str]) -> list[Sample]:
    """One sample per entry, planned by the model's inputs; every other one has no text."""
    inputs, made = model.inputs(subject.data), []
    for number, served in enumerate(tasks):
        text = None
        if I2T in served:
            text = inputs.converse((Turn("", f"no. {number}"),))
        elif number % 2 == 0:
            text = Text(tuple(inputs.tokenize(f"no. {number}")))
        plan = inputs.plan(served, (48, 40), text)
        sizes = (plan.condition, plan.target)
        condition, target = (None if size is None else picture(*size, seed=number) for size in sizes)
        made.append(Sample(f"sample {number}", tuple(served), condition, target, text))
    return made


def batch_of(model: Model, subject: Subject, *tasks: Sequence[str], number: int = 0) -> Any:
    samples = samples_of(model, subject, *(tasks or ([RECA], [RECA], [subject.second])))
    return model.inputs(subject.data).collate(samples, draw_of_pack(0, 0, number))


def losses(model: Model, batch: Any) -> dict[str, float]:
    return {task: total.item() for task, total in model.loss_sums(model.encode(batch)).items()}


class NoWaiting(TorchDispatchMode):
    """Refuses what reads a number from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for the device"
        assert func is not torch.ops.aten.nonzero.default, "the host waits for a size from the device"
        return func(*args, **(kwargs or {}))


class NothingKept(TorchDispatchMode):
    """Refuses arithmetic that keeps the narrow copies of its weights."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not torch.is_autocast_enabled("cpu") or not torch.is_autocast_cache_enabled()
        return func(*args, **(kwargs or {}))


# The data side


def test_counts_are_host_integers_and_tokens_are_those_planned(subject, opened) -> None:
    model = opened()
    batch: Batch = batch_of(model, subject)
    assert set(batch.counts) <= set(TASKS) and all(type(count) is int for count in batch.counts.values())
    trained = {RECA, subject.second}
    assert all((count > 0) == (task in trained) for task, count in batch.counts.items()) and trained <= set(
        batch.counts
    )
    inputs = model.inputs(subject.data)
    planned = [
        inputs.plan(s.tasks, (48, 40), s.text) for s in samples_of(model, subject, [RECA], [RECA], [subject.second])
    ]
    assert batch.num_tokens == sum(plan.num_tokens for plan in planned)


def test_every_draw_is_made_by_collate_and_keyed_by_the_pack(subject, opened) -> None:
    model = opened()
    first = losses(model, batch_of(model, subject))
    assert first == losses(model, batch_of(model, subject))
    assert (first != losses(model, batch_of(model, subject, number=1))) == subject.draws


def test_a_step_keeps_no_narrow_copies_of_its_weights(subject, opened) -> None:
    """They would take half the memory of the weights until its losses are there, in spite of all levers."""
    model = opened(precision="bf16")
    batch = model.encode(batch_of(model, subject))
    with NothingKept():
        model.loss_sums(batch)


def test_a_batch_can_be_stored_and_trained_again_without_the_encoders(subject, opened) -> None:
    """loss_sums draws nothing, touches no generator and needs no encoder for an encoded batch."""
    model = opened()
    batch, state = batch_of(model, subject), torch.get_rng_state()
    encoded = model.encode(batch.to("cpu"))
    first = {task: total.item() for task, total in model.loss_sums(encoded).items()}
    stored = copy.deepcopy(encoded)
    model.drop_encoders()
    assert losses(model, stored) == losses(model, encoded) == first  # encode() passes it through
    assert torch.equal(torch.get_rng_state(), state)
    assert encoded.counts == batch.counts and encoded.num_tokens == batch.num_tokens


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cached_picture_gives_the_losses_of_its_pixels_bit_for_bit(precision, subject, opened, folder) -> None:
    """Each picture is encoded by itself, by a model whose encoders alone have weights. Where it is used, none has."""
    model = opened(precision=precision)
    encoders = open_model(ModelConfig(path=str(folder), precision=precision))
    encoders.fill_encoders(torch.device("cpu"))
    samples = samples_of(model, subject, *[[RECA]] * 5, [subject.second])

    def cached(picture: Tensor | None, encode: Callable[[Tensor], dict[str, Tensor]]) -> Encoded | None:
        return None if picture is None else Encoded(picture.shape[1], picture.shape[0], encode(picture))

    stored = [
        Sample(
            *(s.key, s.tasks, None, None, s.text),
            encoded_condition=cached(s.condition, encoders.encode_condition),
            encoded_target=cached(s.target, encoders.encode_target),
        )
        for s in samples
    ]
    assert all(s.encoded_target.tensors and s.encoded_condition for s in stored[:5])
    collate = model.inputs(subject.data).collate
    wanted = losses(model, collate(samples, draw_of_pack(0, 0, 0)))
    model.drop_encoders()
    batch = collate(stored, draw_of_pack(0, 0, 0))
    assert losses(model, batch.to("cpu")) == wanted and len(wanted) == 2


def test_a_sample_may_serve_two_losses(subject, opened) -> None:
    if I2T not in subject.tasks:
        pytest.skip(f"{subject.name} learns no captions, which a sample of two losses takes")
    model = opened(freeze_und=subject.freezes[-1])
    both = batch_of(model, subject, [RECA, I2T])
    assert both.counts[RECA] > 0 and both.counts[I2T] > 0
    assert all(value > 0 for value in losses(model, both).values())


# The step


def test_the_host_never_waits_for_the_device(subject, opened) -> None:
    model = opened(attention="eager")
    encoded = model.encode(batch_of(model, subject))
    with NoWaiting():
        sum(model.loss_sums(encoded).values()).backward()


def test_bf16_arithmetic_trains_fp32_weights(subject, opened) -> None:
    exact, narrow = opened(), opened(precision="bf16")
    assert (exact.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    assert {p.dtype for p in narrow.module.parameters() if p.requires_grad} == {torch.float32}
    batch = batch_of(exact, subject)
    wanted, got = losses(exact, batch), losses(narrow, batch)
    assert got == pytest.approx(wanted, rel=0.02) and got != wanted
    sum(narrow.loss_sums(narrow.encode(batch)).values()).backward()
    assert all(p.grad.dtype == torch.float32 for p in narrow.module.parameters() if p.requires_grad)


@pytest.mark.parametrize("freeze_und", [True, False])
def test_every_trained_parameter_has_a_gradient_in_every_batch(freeze_und, subject, opened) -> None:
    if freeze_und not in subject.freezes:
        pytest.skip(f"{subject.name} cannot be trained with model.freeze_und={freeze_und}")
    kinds = [[task] for task in subject.tasks if task != I2T or not freeze_und]
    for kind in kinds:
        model = opened(freeze_und=freeze_und)
        sum(model.loss_sums(model.encode(batch_of(model, subject, kind))).values()).backward()
        without = [name for name, p in model.module.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, (kind, without)
        assert not any(p.grad is not None for p in model.module.parameters() if not p.requires_grad)


def test_blocks_are_the_module_s_own_and_take_the_levers(subject, opened) -> None:
    plain, recomputed = opened(), opened(recompute="blocks")
    inside = set(map(id, plain.module.modules()))
    assert plain.blocks() and all(id(block) in inside for block in plain.blocks())
    batch = batch_of(plain, subject)
    for model in (plain, recomputed):
        sum(model.loss_sums(model.encode(batch)).values()).backward()
    again = dict(recomputed.module.named_parameters())
    for name, parameter in plain.module.named_parameters():
        assert (parameter.grad is None) == (again[name].grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, again[name].grad), name


def test_weight_decay_is_said_of_every_trained_parameter(subject, opened) -> None:
    model = opened()
    said = {model.decays(name) for name, p in model.module.named_parameters() if p.requires_grad and p.ndim == 1}
    assert said == ({True, False} if subject.decays_vectors else {False})  # biases, and norms as the authors do it
    assert any(model.decays(name) for name, p in model.module.named_parameters() if p.ndim == 2)


def test_useful_arithmetic_grows_with_the_batch(subject, opened) -> None:
    model = opened()
    one, two = batch_of(model, subject, [RECA]), batch_of(model, subject, [RECA], [RECA])
    assert 0 < model.flops(one) < model.flops(two)


# Weights


def test_it_is_on_the_meta_device_until_it_is_filled_as_place_says(subject, folder) -> None:
    model = open_model(ModelConfig(path=str(folder), freeze_und=subject.freezes[0]))
    assert all(p.is_meta for p in model.module.parameters())
    model.fill(uniform(torch.bfloat16, "cpu"))
    placed = set(model.module.parameters()) - host_tables(model.module)
    assert {(p.dtype, p.device.type) for p in placed} == {(torch.bfloat16, "cpu")}
    assert all(path.is_file() for path in model.files()) and str(folder) in model.says_weights()


def test_it_is_built_at_its_published_size_without_any_file(subject) -> None:
    model = published_model(subject.published, ModelConfig(freeze_und=subject.freezes[0]))
    assert all(p.is_meta for p in model.module.parameters()) and model.blocks()
    sizes = DataConfig(target_resize=ResizeConfig(64, 64, 32), condition_resize=ResizeConfig(56, 56, 14))
    inputs = model.inputs(replace(sizes, condition_resize=subject.published_condition or sizes.condition_resize))
    plan = inputs.plan([RECA], (64, 64), Text((1, 2, 3)))
    assert plan.num_tokens > 3
    assert model.drawn_side == subject.drawn_side


def test_an_export_is_a_checkpoint_with_the_trained_weights(subject, folder, opened, tmp_path) -> None:
    model = opened()
    trained = {name: p.detach() + 1 for name, p in model.module.named_parameters() if p.requires_grad}
    model.export(tmp_path / "export", trained, None)
    again = open_model(ModelConfig(path=str(tmp_path / "export"), precision="fp32", freeze_und=subject.freezes[0]))
    fill_model(again, torch.device("cpu"))
    for name, parameter in again.module.named_parameters():
        if name.startswith(subject.discarded):
            continue
        expected = trained.get(name, model.module.get_parameter(name))
        assert torch.equal(parameter.detach(), expected.to(parameter.dtype)), name
    assert subject.name in type(again).check(tmp_path / "export").lower()


def test_what_training_leaves_alone_is_in_the_files_and_stays_in_an_export(subject, folder, opened, tmp_path) -> None:
    model = opened()
    trained = {name: p.detach() + 1 for name, p in model.module.named_parameters() if p.requires_grad}
    parts = model.frozen()
    for part in parts:
        assert part.file in model.files() and set(part.keys) <= stored_shapes(part.file).keys()
    assert sum(len(part.keys) for part in parts) >= sum(not p.requires_grad for p in model.module.parameters())
    model.export(tmp_path / "export", trained, None)
    again = open_model(ModelConfig(path=str(tmp_path / "export")))
    assert not any(verdict.differing or verdict.wider for verdict in compare_frozen(model, again))
    kept = sum(not name.startswith(subject.discarded) for name in trained)
    assert changed_besides(model, again) == (kept, kept)
    logits = model.understanding()
    assert logits.ndim == 2 and logits.isfinite().all() and logits.std() > 0
    assert same_bits(logits, again.understanding()) == (True in subject.freezes)


# Pictures


def test_a_picture_depends_on_its_own_condition_size_and_seed_alone(subject, opened) -> None:
    model = opened()
    conditions = samples_of(model, subject, [RECA], [RECA], [T2I] if T2I in subject.tasks else [RECA])
    sizes, seeds, sampling = [(32, 16), (16, 16), (16, 32)], [5, 6, 7], SamplingConfig(steps=subject.steps)
    together = model.sample(conditions, sizes, sampling, seeds)
    assert [(p.dtype, tuple(p.shape)) for p in together] == [(torch.uint8, (h, w, 3)) for w, h in sizes]
    for i in (2, 0, 1):
        (alone,) = model.sample(conditions[i : i + 1], sizes[i : i + 1], sampling, seeds[i : i + 1])
        assert torch.equal(alone, together[i])


def test_pictures_that_are_drawn_at_once_differ_by_rounding_and_take_fewer_passes(subject, opened) -> None:
    model = opened()
    texts = [[T2I] if T2I in subject.tasks else [RECA]] * 4
    conditions = samples_of(model, subject, [RECA], [RECA], [RECA], *texts)
    sizes, drawn, passes = [(32, 16), (16, 16), (32, 16), (32, 16), (32, 16), (16, 32), (32, 16)], {}, {}
    for together in (1, 2):
        calls: list[int] = []
        counting = model.blocks()[-1].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        sampling = SamplingConfig(steps=subject.steps, together=together)
        drawn[together], passes[together] = model.sample(conditions, sizes, sampling, range(7)), len(calls)
        counting.remove()
    assert [(p.dtype, tuple(p.shape)) for p in drawn[2]] == [(torch.uint8, (h, w, 3)) for w, h in sizes]
    for alone, beside in zip(drawn[1], drawn[2], strict=True):
        assert ((alone.int() - beside.int()).abs() > 1).float().mean() < 0.01
    assert (passes[2] < passes[1]) == subject.draws_together


# A whole run


@pytest.fixture
def run(subject, folder, pictures, reca_fast) -> Callable[..., list[dict[str, Any]]]:
    """run(out, *options): `reca-fast train` in this process; the lines of metrics."""

    def start(out: Path, *options: str) -> list[dict[str, Any]]:
        text = f"--config tiny-bagel --model.name= --model.path {folder} --data.source {pictures} --out {out}"
        text += " --device cpu --steps 4 --save_every 2 --sample_every 0 --data.tokens_per_pack 300 --optim.lr 1e-4"
        text += " --optim.warmup_steps 1 --optim.schedule constant --sampling.timestep_shift null"
        text += " --data.target_resize.max_size 32 --data.target_resize.min_size 16"
        text += " --data.condition_resize.max_size 56 --data.condition_resize.min_size 56"
        text += f" --model.freeze_und {str(subject.freezes[0]).lower()}"
        said = reca_fast("train", *text.split(), *subject.options, *options)
        assert said.code == 0, said
        return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]

    return start


@pytest.mark.slow
def test_it_trains_and_a_resumed_run_goes_on_bit_for_bit(run, tmp_path) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "halves", "--steps", "2")
    halves = run(tmp_path / "halves")
    assert [row["step"] for row in halves] == [1, 2, 3, 4]
    assert [(row["loss"], row["grad_norm"]) for row in halves] == [(row["loss"], row["grad_norm"]) for row in whole]


def test_two_processes_train_the_same(subject, folder, launch, run, reca_fast, tmp_path) -> None:
    """Each holds a shard of every parameter and trains on half of the packs; an export puts the shards together."""
    if subject.name == "bagel":
        pytest.skip("tests/train/test_distributed.py asks this and more of BAGEL")
    options = ["--model.path", str(folder), "--optim.schedule", "constant"]
    options += ["--model.freeze_und", str(subject.freezes[0]).lower(), *subject.options]
    register = f"import reca_fast.models; reca_fast.models.MODELS[{subject.name!r}] = {subject.line!r}"
    training = launch(tmp_path / "two", *options, processes=2, before=register)
    alone = run(tmp_path / "one", "--data.packs_per_step", "2")
    assert training.wait() == 0, training.said
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    assert [row["grad_norm"] for row in rows] == pytest.approx([row["grad_norm"] for row in alone], rel=1e-4)
    said = reca_fast("export", tmp_path / "two", tmp_path / "export")
    assert said.code == 0 and type(open_model(ModelConfig(path=str(folder)))).check(tmp_path / "export"), said


@pytest.mark.slow
def test_a_run_draws_grids_of_what_it_learned(subject, run, tmp_path) -> None:
    steps = str(subject.steps or "null")
    run(tmp_path / "run", "--steps", "1", "--sample_every", "1", "--sample_count", "2", "--sampling.steps", steps)
    assert (tmp_path / "run" / "samples" / "step-0000001.png").exists()
