"""The real 14B training step, at true shapes, on fake tensors: nothing is allocated, every operation is called."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu_stages.bagel import LAYERS, fill_fake, kept_activations, make_model, pack
from reca_fast.config import LossWeights, ModelConfig
from reca_fast.kernels import assume_gpu
from reca_fast.models import published_model
from reca_fast.models.bagel import BagelModel, sampling
from reca_fast.models.bagel.batch import BagelBatch
from reca_fast.models.bagel.collate import collate_prefixes, collate_targets
from reca_fast.models.bagel.config import BAGEL_7B_MOT
from reca_fast.models.bagel.editing import BagelEditing, source_of
from reca_fast.models.files import uniform
from reca_fast.objectives import weighted_loss
from reca_fast.plan.tracker import MemoryTracker
from reca_fast.plan.work import WorkLog

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def batch() -> BagelBatch:
    """Two pictures of 1024 x 1024 with prompts of 21 tokens: 4379 tokens each (facts of the public recipe)."""
    return pack(make_model(BAGEL_7B_MOT), pictures=2)


def test_a_picture_has_as_many_tokens_as_in_the_authors_pack(batch):
    assert batch.num_tokens == 2 * 4379
    assert batch.counts == {"reca": 2 * 4096, "t2i": 0, "i2t": 0}


@pytest.mark.parametrize("freeze_und", [True, False])
def test_the_step_runs_and_trains_just_what_it_should(batch, freeze_und):
    model = make_model(BAGEL_7B_MOT, freeze_und=freeze_und)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        fill_fake(model)
        velocities: list[torch.Tensor] = []
        model.module.llm2vae.register_forward_hook(lambda _, args, out: velocities.append(out))
        weighted_loss(model.loss_sums(model.encode(batch)), batch.counts, LossWeights()).backward()

    assert velocities[0].shape == (8192, 64) and velocities[0].dtype == torch.bfloat16
    trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    if freeze_und:
        assert sum(p.numel() for p in trained.values()) == 6_539_861_056
        assert all(".gen." in name or "und" not in name for name in trained)


def test_activations_that_one_picture_keeps():
    """19 GB for the backward pass without recomputation (README); with it, the inputs of the layers alone remain."""
    assert kept_activations(LAYERS, pictures=1) == pytest.approx(19e9, rel=0.03)


def test_flops_are_those_counted_from_the_authors_step(batch):
    """Needed arithmetic per picture: 190 TFLOP with a prompt of 40 tokens, within 5 % (no VAE, no recomputation)."""
    assert make_model(BAGEL_7B_MOT).flops(batch) / 2 == pytest.approx(190e12, rel=0.05)


def test_flops_are_those_of_the_step_itself(batch):
    """As torch counts them while the step runs, less the scores that attention's backward pass computes again."""
    model = make_model(BAGEL_7B_MOT)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        fill_fake(model, torch.float32)
        with FlopCounterMode(display=False) as counter:
            weighted_loss(model.loss_sums(model.encode(batch)), batch.counts, LossWeights()).backward()
    counts = counter.get_flop_counts()["Global"]
    again = counts[torch.ops.reca_fast.varlen_attention_cpu_backward] / 5
    needed = counter.get_total_flops() - again
    assert model.flops(batch) == pytest.approx(needed, rel=0.002)


@pytest.mark.exhaustive
@torch.no_grad()
def test_memory_and_work_of_an_edit_of_the_largest_picture(monkeypatch):
    """3.5 GiB beside the weights, where the VAE decodes, and 10,600 TFLOP in 49 steps (docs/models/bagel.md)."""
    model = published_model("BAGEL-7B-MoT", ModelConfig(precision="bf16"))
    assert isinstance(model, BagelModel)
    prefix = source_of(BAGEL_7B_MOT, torch.zeros(1024, 1024, 3, dtype=torch.uint8), 0), range(20)
    branches, drawing, shape = [prefix, (prefix[0], None), (None, prefix[1])], BagelEditing(), (64, 64)
    # Layouts are of real numbers, so they are made before tensors have none.
    prefixes = collate_prefixes(branches, BAGEL_7B_MOT, model.tokenizer)
    targets = collate_targets([shape] * 3, prefixes[2], prefixes[1], BAGEL_7B_MOT, model.tokenizer)
    monkeypatch.setattr(sampling, "collate_prefixes", lambda *_: prefixes)
    monkeypatch.setattr(sampling, "collate_targets", lambda *_: targets)
    assert prefixes[1] == [9022, 9000, 22]

    with FakeTensorMode(allow_non_fake_inputs=True), assume_gpu(), MemoryTracker() as tracker:
        model.fill_empty(uniform(torch.bfloat16, "cpu"))
        weights = tracker.now().total
        tracker.forget_peak()
        with model.autocast(keep_casts=True):
            with WorkLog(tracker.is_on_host) as before:
                known = sampling.encode_prefixes(model.module, model.tokenizer, model.encode, branches)
            target = sampling._target(model.module, model.tokenizer, shape, known, 3)
            with WorkLog(tracker.is_on_host) as step:
                velocities = sampling._velocity(model.module, target, torch.randn(3 * 4096, 64), 0.5)
                sampling._guide(velocities.chunk(3), drawing)
        decoding = tracker.peak().total - weights
        with model.encoders.autocast(model.dtype, model.device):
            model.encoders.vae.decode(torch.randn(1, 16, 128, 128))
        whole = tracker.peak().total - weights
    assert [decoding / 2**30, whole / 2**30] == pytest.approx([2.85, 3.47], abs=0.1)
    assert (before.work.flops + drawing.steps * step.work.flops) / 1e12 == pytest.approx(10_600, rel=0.01)
