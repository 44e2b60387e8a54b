"""What processes that share a model tell each other, and how little of it each of them holds."""

from dataclasses import replace

import pytest
import torch

from bench.sparse_checkpoint import write_sparse_checkpoint
from reca_fast.models.bagel.config import BAGEL_7B_MOT, LLMConfig
from tests.places import ROOT

GRADIENTS = """
import sys, torch
from pathlib import Path
from torch.utils._python_dispatch import TorchDispatchMode
from reca_fast.config import MemoryConfig, ModelConfig, ParallelConfig
from reca_fast.memory import apply_levers, fill_model
from reca_fast.models import open_model
from reca_fast.train.distributed import Processes
from reca_fast.train.passes import PackMajor
sys.path.insert(0, {root!r})
from tests.memory.steps import batch_of

class Collectives(TorchDispatchMode):
    "Counts what the processes tell each other."
    def __init__(self):
        super().__init__()
        self.names = []
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.namespace == "c10d":
            self.names.append(str(operation))
        return operation(*args, **(kwargs or {{}}))

def step(processes, options, packs=2):
    "The gradients of a step of packs, and how often the processes told each other something."
    model = open_model(ModelConfig({folder!r}, precision={precision!r}))
    place = MemoryConfig(recompute="blocks"), processes.mesh
    apply_levers(model.module, model.blocks(), place[0], mesh=place[1], parallel=options, compute_dtype=model.dtype)
    fill_model(model, processes.device)
    with torch.no_grad():  # the tiny head of zeros would hide everything behind it
        model.module.get_parameter("llm2vae.weight").fill_(0.02)
    batches = [batch_of(model) for _ in range(packs)]
    passes = PackMajor(model, None, processes.device, options)
    with Collectives() as collectives:
        passes.gradients(batches, lambda parts: sum(parts.values()) / (processes.rank + 1))
    made = [sum(kind in name for name in collectives.names) for kind in ("reduce_scatter", "allreduce", "allgather")]
    assert sum(made) == len(collectives.names), collectives.names
    trained = {{name: p for name, p in model.module.named_parameters() if p.requires_grad}}
    return {{name: p.grad.full_tensor() for name, p in trained.items()}}, made

with Processes() as processes:
    processes.join("cpu", {replicate})
    units = 3  # two blocks, and what belongs to none
    wanted, made = step(processes, ParallelConfig())
    replicated = {replicate} > 1
    assert made == [2 * units, units * replicated, 2 * (2 * 2 + 1)], made
    assert len(wanted) > 20 and all(gradient.any() for name, gradient in wanted.items()) 
    for options, reduced, gathered, near in (
        (ParallelConfig(sync="step"), units, 10, 1e-5),
        (ParallelConfig(reshard=False), 2 * units, 2 * units, 0),
        (ParallelConfig(reduce="bf16"), 2 * units, 10, 2e-2),
        (ParallelConfig(reduce="bf16", sync="step", reshard=False), units, 2 * units, 2e-2),
    ):
        found, made = step(processes, options)
        assert made == [reduced, units * replicated, gathered], (options, made)
        for name, gradient in found.items():
            assert gradient.dtype == torch.float32
            error = (gradient - wanted[name]).norm() / wanted[name].norm()
            assert error <= near, (options, name, error)
        differs = any(not torch.equal(gradient, wanted[name]) for name, gradient in found.items())
        assert differs == (options.reduce == "bf16") or near == 1e-5
    print("equal")
sys.exit(0)
"""


@pytest.mark.parametrize(("processes", "replicate"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.exhaustive)])
def test_when_and_how_gradients_are_summed_changes_no_gradient(processes, replicate, tiny_folder, launch, tmp_path):
    """Two packs in a step: collectives are counted, and every gradient is that of the plain way."""
    code = GRADIENTS.format(root=str(ROOT), folder=str(tiny_folder), replicate=replicate, precision="fp32")
    training = launch(tmp_path, processes=processes, before=code)
    assert training.wait() == 0, training.said
    assert training.said.count("equal") == processes


SHARES = """
import re, sys, threading, time, torch
from pathlib import Path
from reca_fast.checkpoints import CheckpointStore
from reca_fast.checkpoints.shards import local_part
from reca_fast.config import ModelConfig, RunConfig
from reca_fast.models import open_model
from reca_fast.train.assemble import assemble
from reca_fast.train.distributed import Processes

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

with Processes() as processes:
    processes.join("cpu")
    config = RunConfig(model=ModelConfig({folder!r}, precision="fp32"))
    processes.gather(0)
    before = peak = anonymous()
    threading.Thread(target=watch, daemon=True).start()
    run = assemble(config, processes, open_model(config.model))
    loaded = peak - before
    store = CheckpointStore(Path({out!r}), rank=processes.rank, gather=processes.gather)
    tensors = {{"model": {{n: p for n, p in run.model.module.named_parameters() if p.requires_grad}}}}
    tensors |= run.update.state()
    parts = [local_part(tensor)[0] for section in tensors.values() for tensor in section.values()]
    kept = sum(part.nbytes for part in parts)
    store.save(1, tensors, {{}})
    saved = peak - before
    store.load(store.newest(), tensors)
    line = f"share {{kept / 2**20}} loaded {{loaded}} saved {{saved}} resumed {{peak - before}}\\n"
    sys.stdout.write(line)  # at once: four processes write into one pipe
    sys.stdout.flush()
sys.exit(0)
"""


def test_no_process_ever_holds_the_whole_model(launch, tmp_path):
    """Opening, saving and resuming on four processes: each stays at its quarter of weights and moments."""
    llm = LLMConfig(768, 2560, 10, 12, 4, 1024)
    write_sparse_checkpoint(tmp_path / "base", dtype=torch.float32, config=replace(BAGEL_7B_MOT, llm=llm))
    weights = (tmp_path / "base" / "ema.safetensors").stat().st_size / 2**20
    assert weights > 300
    code = SHARES.format(folder=str(tmp_path / "base"), out=str(tmp_path / "out"))
    training = launch(tmp_path, processes=4, before=code)
    assert training.wait() == 0, training.said
    lines = [line.split() for line in training.said.splitlines() if line.startswith("share")]
    assert len(lines) == 4
    for line in lines:
        share, *peaks = map(float, line[1::2])
        assert share > 75  # a quarter of weights and moments in fp32: the whole would be four times that
        assert max(peaks) < 1.25 * share + 50, line
