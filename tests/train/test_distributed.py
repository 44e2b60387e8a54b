"""Several processes train what one process trains: sums over processes, shards, replicas, changes of their number."""

import math
import re
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

SAME = 1e-5  # relative; fp32 sums in another order
LONG = ["--data.packs_per_step", "4", "--data.tokens_per_pack", "200", "--optim.ema_decay", "0.5"]
JOINT = [
    *("--model.freeze_und", "false", "--data.text_dropout", "0.3"),
    *("--data.tasks.i2t", "3", "--loss.i2t", "0.5", "--data.tasks.t2i", "1", "--loss.t2i", "1"),
    *("--data.tokens_per_pack", "40"),
]


def assert_same(metrics: list[dict], others: list[dict]) -> None:
    assert [line["step"] for line in metrics] == [line["step"] for line in others]
    for line, other in zip(metrics, others, strict=True):
        for name in ("loss", "grad_norm", "lr", "images", "tokens"):
            assert math.isclose(line[name], other[name], rel_tol=SAME), (line["step"], name, line, other)


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
    """(run folder, metrics) of one process: four steps of four packs, with a grid at the end."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return out, train(out, *LONG, "--sample_every", "4", "--sample_count", "2", "--sampling.steps", "3")


def test_two_processes_train_the_same(alone, train, tmp_path):
    grid = ["--sample_every", "4", "--sample_count", "2", "--sampling.steps", "3"]
    assert_same(train(tmp_path, *LONG, *grid, processes=2), alone[1])
    totals = [
        re.findall(r"\d+ records used .* skipped", (out / "said.txt").read_text()) for out in (tmp_path, alone[0])
    ]
    assert totals[0] == totals[1] != []
    ours, theirs = (Image.open(out / "samples" / "step-0000004.png") for out in (tmp_path, alone[0]))
    assert ours.size == theirs.size
    difference = [abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)]
    assert max(difference) <= 1


def test_replicas_of_shards_train_the_same(alone, train, tmp_path):
    """HSDP: gradients are summed inside a replica and between replicas, never averaged."""
    assert_same(train(tmp_path, *LONG, "--parallel.replicate", "2", processes=4), alone[1])


def test_the_number_of_processes_may_change_on_resume(alone, train, tmp_path):
    """2 -> 1 -> 2, a step each time at least; the schedule is constant, so --steps may grow."""
    train(tmp_path, *LONG, "--steps", "2", processes=2)
    train(tmp_path, *LONG, "--steps", "3")
    assert_same(train(tmp_path, *LONG, processes=2), alone[1])


def test_processes_that_each_hold_all_weights_train_the_same(alone, train, tmp_path):
    """Block by block: gradients are summed over the processes, wherever they and the weights wait. The run goes on
    sharded, in the other order, from what they saved.
    """
    away = ["--memory.gradients", "host", "--memory.recompute", "blocks", "--memory.frozen_on", "host"]
    train(tmp_path, *LONG, "--steps", "3", "--memory.order", "layer", *away, processes=2)
    assert_same(train(tmp_path, *LONG, processes=2), alone[1])


TELL_KINDS = """
from reca_fast.models.bagel.model import BagelModel
loss_sums = BagelModel.loss_sums
def told(self, batch):
    print("pack with pictures", len(batch.latent_shapes) > 0, "labels", batch.labels is not None)
    return loss_sums(self, batch)
BagelModel.loss_sums = told
"""


@pytest.fixture(scope="module")
def joint_alone(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("joint") / "run", *JOINT)


def test_joint_training_on_packs_without_pictures(joint_alone, train, tmp_path):
    """Packs so small that some hold no target picture, some no caption: FSDP2 still finds every gradient."""
    assert_same(train(tmp_path, *JOINT, processes=2, before=TELL_KINDS), joint_alone)
    kinds = {line for line in (tmp_path / "said.txt").read_text().splitlines() if line.startswith("pack with")}
    assert {"pack with pictures False labels True", "pack with pictures True labels False"} <= kinds


def test_bf16_joint_training(joint_alone, train, tmp_path):
    """Frozen weights and shards on their way are bf16, gradients and master weights fp32: near to fp32."""
    narrow = train(tmp_path, *JOINT, "--model.precision", "bf16", processes=2)
    for line, other in zip(narrow, joint_alone, strict=True):
        assert math.isclose(line["loss"], other["loss"], rel_tol=5e-3)  # bf16 keeps 8 bits: 4e-3
        assert math.isclose(line["grad_norm"], other["grad_norm"], rel_tol=0.1)


KEEP_GRADIENTS = """
import os, torch
from reca_fast.optim import Update
finish, steps = Update.finish, []
def kept(self, losses):
    gradients = [p.grad for group in self.groups for p in group.parameters if p.grad is not None]
    whole = [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in gradients]
    steps.append([grad.float().clone() for grad in whole])
    if os.environ.get("RANK", "0") == "0":
        torch.save(steps, GRADIENTS)
    return finish(self, losses)
Update.finish = kept
"""


def test_the_shipped_combination_has_the_gradients_of_one_process(train, tmp_path):
    """bf16, recomputation and FSDP2, as the recipe `bagel` trains on several GPUs: every gradient is one
    process's to the rounding of bf16, and to the last bit that of shards without recomputation.
    """

    def gradients(name: str, *options: str, processes: int) -> tuple[list[dict], list[list[torch.Tensor]]]:
        saved = tmp_path / f"{name}.pt"
        before = KEEP_GRADIENTS.replace("GRADIENTS", repr(str(saved)))
        narrow = ("--model.precision", "bf16", "--steps", "1", *LONG[:4])
        metrics = train(tmp_path / name, *narrow, *options, processes=processes, before=before)
        return metrics, torch.load(saved, weights_only=True)

    metrics, shipped = gradients("shipped", "--memory.recompute", "blocks", processes=2)
    kept_metrics, kept = gradients("kept", processes=2)
    alone_metrics, alone = gradients("alone", "--memory.recompute", "blocks", processes=1)
    assert [line["loss"] for line in metrics] == [line["loss"] for line in kept_metrics]
    for line, other in zip(metrics, alone_metrics, strict=True):
        assert math.isclose(line["loss"], other["loss"], rel_tol=5e-3)
    for ours, same, theirs in zip(shipped, kept, alone, strict=True):
        assert len(ours) == len(theirs) > 20
        for mine, equal, one in zip(ours, same, theirs, strict=True):
            assert torch.equal(mine, equal)
            assert (mine - one).norm() <= 0.05 * one.norm()
            assert one.any() or not mine.any()


def one_sentence(training, code: int) -> str:
    """What the processes said together: one line on an error, no traceback, whoever it came from."""
    assert training.wait(60) == code, training.said
    assert "Traceback" not in training.said
    sentences = [line for line in training.said.splitlines() if line.startswith("reca-fast: ")]
    assert len(sentences) == 1, training.said
    return sentences[0]


def test_an_error_of_all_processes_is_said_once(launch, tmp_path):
    training = launch(tmp_path, "--data.packs_per_step", "3", processes=2)
    assert "packs_per_step=3 cannot be shared by 2 processes" in one_sentence(training, 2)
    assert [process.exitcode for process in training.processes] == [2, 2]


def test_a_mistyped_option_is_said_once(launch, tmp_path):
    assert "Did you mean 'steps'?" in one_sentence(launch(tmp_path, "--stepz", "3", processes=2), 2)


def test_an_error_of_one_process_ends_the_others(launch, tmp_path):
    code = """
import os
from reca_fast.data.loader import PackLoader
from reca_fast.errors import UserError
def broken(self):
    raise UserError("The pictures of lane 1 are gone.")
if os.environ["RANK"] == "1":
    PackLoader.__next__ = broken
"""
    training = launch(tmp_path, processes=2, before=code)
    assert one_sentence(training, 2) == "reca-fast: The pictures of lane 1 are gone."
    assert [process.exitcode for process in training.processes] == [2, 2]


def test_a_failed_save_of_one_process_fails_for_all(launch, tmp_path):
    code = """
import os, resource
if os.environ["RANK"] == "1":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""
    training = launch(tmp_path, processes=2, before=code)
    assert "step-0000002 could not be saved" in one_sentence(training, 2)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_signal_to_one_process_stops_all(launch, tmp_path):
    code = """
import os, signal
from reca_fast.optim import Update
finish, calls = Update.finish, 0
def counted(*args):
    global calls
    calls += 1
    if calls == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return finish(*args)
Update.finish = counted
"""
    stopped = launch(tmp_path, "--save_every", "0", processes=2, before=code)
    assert stopped.wait() == 0, stopped.said
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000002"]


def test_a_killed_process_does_not_hang_the_others(launch, tmp_path):
    code = """
import os, signal
from reca_fast.optim import Update
if os.environ["RANK"] == "1":
    Update.finish = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
"""
    training = launch(tmp_path, processes=2, before=code)
    assert "Another process is gone" in one_sentence(training, 2)
    assert training.processes[1].exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A checkpoint of 100 MB."""
    from reca_fast.models.bagel.tiny import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("large")
    write_tiny_checkpoint(folder, hidden_size=512, intermediate_size=1024, layers=6)
    return folder


SHARDED = """
import sys, torch
from pathlib import Path
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from reca_fast.checkpoints import CheckpointStore
from reca_fast.train.distributed import Processes

def tensors(mesh):
    "Rows that do not divide, fewer rows than processes, columns in shards, the same on all; and plain ones."
    whole = {{
        "rows": torch.arange(35.0).view(7, 5), "few": torch.arange(2.0), "columns": torch.arange(15.0).view(3, 5),
        "same": torch.arange(4.0), "narrow": torch.arange(6.0).bfloat16(), "none": torch.zeros(0, 3),
    }}
    plain = {{"number": torch.tensor(7.0), "text": torch.arange(3.0)}}
    if mesh is not None:
        kinds = {{"columns": Shard(1), "same": Replicate()}}
        first = [Replicate()] * (mesh.ndim - 1)
        for name, tensor in whole.items():
            whole[name] = distribute_tensor(tensor, mesh, [*first, kinds.get(name, Shard(0))])
    return {{"model": whole, "plain": plain}}

with Processes() as processes:
    processes.join("cpu", {replicate})
    store = CheckpointStore(Path("{folder}"), rank=processes.rank, gather=processes.gather)
    wanted = tensors(processes.mesh)
    if {saves}:
        store.save(1, wanted, {{}})
    else:
        found = {{section: {{n: t.clone().zero_() for n, t in part.items()}} for section, part in wanted.items()}}
        store.load(store.newest(), found)
        for section, part in wanted.items():
            for name, tensor in part.items():
                ours, theirs = (getattr(t, "to_local", lambda t=t: t)() for t in (tensor, found[section][name]))
                assert torch.equal(ours, theirs), name
        print("equal")
sys.exit(0)
"""


@pytest.mark.parametrize(("processes", "replicate"), [(1, 1), (3, 1), (4, 2)])
def test_any_number_of_processes_reads_what_any_other_wrote(processes, replicate, launch, tmp_path):
    code = SHARDED.format(folder=tmp_path / "all", replicate=replicate, saves=True)
    writing = launch(tmp_path, processes=processes, before=code)
    assert writing.wait() == 0, writing.said
    folder = tmp_path / "all" / "step-0000001"
    shards = sorted(path.name for path in folder.glob("shard-*"))
    assert shards == [f"shard-{rank:05d}.safetensors" for rank in range(processes // replicate)]
    assert sum(path.stat().st_size for path in folder.glob("shard-*")) < 1500 * len(shards)  # nothing is written twice
    for readers, copies in ((1, 1), (2, 1), (4, 2)):
        code = SHARDED.format(folder=tmp_path / "all", replicate=copies, saves=False)
        reading = launch(tmp_path, processes=readers, before=code)
        assert reading.wait() == 0, reading.said
        assert reading.said.count("equal") == readers


MEMORY = """
import gc, sys, torch
from pathlib import Path
from reca_fast.config import ModelConfig
from reca_fast.models import open_model
from reca_fast.models.bagel.weights import fill_bagel
from reca_fast.models.files import uniform
from reca_fast.train.distributed import Processes
from reca_fast.memory import shard

def mb(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) / 1024

with Processes() as processes:
    processes.join("cpu")
    model = open_model(ModelConfig(path="{folder}", precision="fp32"))
    if processes.mesh is not None:
        shard(model.module, model.blocks(), processes.mesh, model.dtype)
    before = mb("RssAnon"), mb("VmRSS")
    fill_bagel(model.module, Path("{folder}") / "ema.safetensors", uniform(torch.float32, "cpu"))
    print("grown", mb("RssAnon") - before[0], mb("VmRSS") - before[1])
sys.exit(0)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_loading_takes_the_memory_of_a_shard(processes, large, launch, tmp_path):
    """Copies are made of this process's part of the trained half only; the rest is the file's own pages."""
    file = (large / "ema.safetensors").stat().st_size / 2**20
    assert file > 100
    training = launch(tmp_path, processes=processes, before=MEMORY.format(folder=large))
    assert training.wait() == 0, training.said
    grown = [line.split()[1:] for line in training.said.splitlines() if line.startswith("grown")]
    assert len(grown) == processes
    for anonymous, resident in grown:
        assert float(anonymous) < 0.5 * file / processes + 12  # allocator slack
        assert float(resident) < 1.2 * file


def test_gradients_are_summed_not_averaged():
    """The loss is divided by the global token count already."""
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule

    from reca_fast.memory import shard

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        shard(module, [module[0]], init_device_mesh("cpu", (1,), mesh_dim_names=("shard",)), torch.float32)
        for unit in (module, module[0]):
            assert isinstance(unit, FSDPModule)
            assert unit._get_fsdp_state()._fsdp_param_group.gradient_divide_factor == 1.0
    finally:
        torch.distributed.destroy_process_group()
