"""What a run saves and when: at its last step in any case, no wider than it trains, never in place of what it has."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.checkpoints.shards import write_shards
from reca_fast.config import MemoryConfig, ModelConfig, OptimConfig, RunConfig
from reca_fast.errors import UserError
from reca_fast.models import published_model
from reca_fast.train.assemble import assemble
from reca_fast.train.distributed import Processes
from reca_fast.train.state import tensors_of
from tests.train.short_run import course, running

pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.slow]


def test_the_last_step_is_saved_whatever_save_every_is_and_a_full_disk_costs_no_earlier_one(
    configured, begun, tmp_path, monkeypatch
):
    """Three steps, saved every two: the disk is full at the third, has room again, and the same command goes on."""
    config = configured(tmp_path / "run", False)
    config.save_every, config.sample_every = 2, 0

    def full(path, *args, **more):
        if "0000003" in str(path):
            path.write_bytes(b"some of it")
            raise OSError(28, "No space left on device")
        return write_shards(path, *args, **more)

    monkeypatch.setattr("reca_fast.checkpoints.store.write_shards", full)
    with pytest.raises(UserError, match=r"step-0000003 could not be saved .*No space.* last whole one is .*0000002"):
        running.train(config)
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-0000002"]
    monkeypatch.setattr("reca_fast.checkpoints.store.write_shards", write_shards)
    running.train(config)
    assert sorted(path.name for path in folder.iterdir()) == ["step-0000002", "step-0000003"]
    assert course(tmp_path / "run")[3] == begun(False)[1][3]


def test_a_checkpoint_of_the_lean_recipe_has_27_gigabytes():
    """BAGEL in bf16 with moments in 8 bits, as it would lie on the disk: 13.1 + 13.1 GB and the moments' scales."""
    memory, optim = MemoryConfig(trained="bf16", recompute="blocks"), OptimConfig(kind="adamw8bit")
    config = RunConfig(model=ModelConfig(precision="bf16"), memory=memory, optim=optim)
    processes, model = Processes(), published_model("BAGEL-7B-MoT", config.model)
    processes.join("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        sections = tensors_of(assemble(config, processes, model, empty=True))
        bytes_ = sum(tensor.nbytes for section in sections.values() for tensor in section.values())
    assert 26e9 < bytes_ < 27e9
