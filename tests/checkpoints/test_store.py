"""Checkpoints on disk: whole or named as damaged, readable by any number of processes, and nothing in them can run."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reca_fast.checkpoints import CheckpointStore, SavedWeights, fault
from reca_fast.checkpoints.checksums import CHECKSUMS_FILE, checksum
from reca_fast.checkpoints.shards import Damaged, Misfit, ShardFiles, write_shards
from reca_fast.errors import UserError

SHARD = "shard-00000.safetensors"


def tensors(value: float = 1.0) -> dict:
    return {"model": {"weight": torch.full((6, 5), float(value))}, "step": {"weight": torch.tensor(float(value))}}


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    """A store with steps 1 and 2."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (1, 2):
        store.save(step, tensors(step), {"step": step})
    return store


def test_what_is_saved_comes_back(store):
    for step, path in store.named():
        found = tensors(0)
        store.load(path, found)
        assert torch.equal(found["model"]["weight"], torch.full((6, 5), float(step)))
        assert found["step"]["weight"].item() == step
        assert json.loads((path / "run_state.json").read_text())["step"] == step


def test_a_shard_is_a_plain_safetensors_file(store):
    file = load_file(store.folder / "step-0000002" / SHARD)
    assert file["model.weight"].shape == (6, 5) and file["step.weight"].item() == 2


def test_checksums_are_those_of_xxhsum(store):
    """One line a file, `checksum  name`: `xxhsum --check` reads it."""
    folder = store.folder / "step-0000002"
    lines = (folder / CHECKSUMS_FILE).read_text().splitlines()
    assert lines == [f"{checksum(folder / name)}  {name}" for name in ("run_state.json", SHARD)]
    (folder / "empty").write_bytes(b"")
    assert checksum(folder / "empty") == "99aa06d3014798d86001c324468d497f"


def test_keep_removes_the_oldest(store):
    store.save(3, tensors(3), {})
    assert [step for step, _ in store.whole()] == [2, 3]


def test_a_damaged_later_one_does_not_take_the_place_of_what_is_saved(store):
    """Step 3 was damaged and the run went on from step 1: step 2 is what it can be resumed from now."""
    store.save(3, tensors(3), {})
    file = store.folder / "step-0000003" / SHARD
    file.write_bytes(flipped(file.read_bytes(), -3))
    store.keep = 1
    store.save(2, tensors(2), {})
    assert store.newest() == store.folder / "step-0000002"


def test_a_failed_save_keeps_what_was_there(store, monkeypatch):
    def no_space(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reca_fast.checkpoints.store.write_shards", no_space)
    with pytest.raises(
        UserError, match=r"step-0000003 could not be saved .*No space left.* whole one is .*step-0000002"
    ):
        store.save(3, tensors(3), {})
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-0000001", "step-0000002"]


@pytest.mark.parametrize("section", ["model", "step"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_inf_and_nan_are_never_saved(section, value, store):
    """The advice names the newest checkpoint that is whole, by its contents too."""
    file = store.folder / "step-0000002" / SHARD
    file.write_bytes(flipped(file.read_bytes(), -3))
    broken = tensors(3)
    broken[section]["weight"].view(-1)[-1] = value
    with pytest.raises(UserError, match=r"Step 3: .*inf or NaN.*Nothing of it was saved; resume from .*step-0000001"):
        store.save(3, broken, {})
    assert [step for step, _ in store.named()] == [1, 2]


def test_inf_that_was_saved_by_others_is_not_loaded(store, monkeypatch):
    monkeypatch.setattr("reca_fast.checkpoints.store.all_finite", lambda tensors: True)
    path = store.save(3, tensors(float("inf")), {})
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"step-0000003 cannot be loaded \(it holds inf or NaN\)"):
        store.load(path, tensors())
    with pytest.raises(UserError, match="holds inf or NaN"):
        SavedWeights(path, "model")["weight"]


def flipped(data: bytes, place: int, mask: int = 1) -> bytes:
    changed = bytearray(data)
    changed[place] ^= mask
    return bytes(changed)


DAMAGE = {
    "shard cut": lambda folder: os.truncate(folder / SHARD, 200),
    "shard gone": lambda folder: (folder / SHARD).unlink(),
    "shard a folder": lambda folder: ((folder / SHARD).unlink(), (folder / SHARD).mkdir()),
    "shard of the step before": lambda folder: shutil.copy(folder.parent / "step-0000001" / SHARD, folder),
    "state of the step before": lambda folder: shutil.copy(folder.parent / "step-0000001" / "run_state.json", folder),
    "state cut": lambda folder: (folder / "run_state.json").write_text('{"step": 6, '),
    "state gone": lambda folder: (folder / "run_state.json").unlink(),
    "state a list": lambda folder: (folder / "run_state.json").write_text("[]"),
    "state deep": lambda folder: (folder / "run_state.json").write_text("[" * 100_000),
    "state a number": lambda folder: (folder / "run_state.json").write_text("1" * 10_000),
    "files a list": lambda folder: (folder / "run_state.json").write_text('{"files": [1]}'),
    "files elsewhere": lambda folder: (folder / "run_state.json").write_text('{"files": {"../../x": 1}}'),
    "no files": lambda folder: (folder / "run_state.json").write_text('{"files": {}}'),
    "checksums gone": lambda folder: (folder / CHECKSUMS_FILE).unlink(),
    "checksums empty": lambda folder: (folder / CHECKSUMS_FILE).write_text(""),
    "checksums no text": lambda folder: (folder / CHECKSUMS_FILE).write_bytes(b"\xff" * 100),
    "nothing there": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("name", ["step-0000002", ".step-0000003.partial", ".step-0000003.removed"])
@pytest.mark.parametrize("is_link", [True, False])
def test_a_file_or_a_link_to_nowhere_is_not_in_the_way_of_a_save(name, is_link, store):
    store.save(3, tensors(3), {})
    path = store.folder / name
    shutil.rmtree(path, ignore_errors=True)
    path.symlink_to("nowhere") if is_link else path.write_text("")
    store.sweep()
    for step in (2, 3):
        store.save(step, tensors(step), {"step": step})
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-0000002", "step-0000003"]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_left_aside_by_name(damage, store):
    damage(store.folder / "step-0000002")
    told: list[str] = []
    assert store.newest(tell=told.append) == store.folder / "step-0000001"
    assert len(told) == 1 and "step-0000002 is damaged (" in told[0] and told[0].endswith(" and left aside.")


def test_no_changed_byte_goes_unseen(store):
    """Any byte of any file, to any other value; cut anywhere; anything added."""
    folder, chance = store.folder / "step-0000002", random.Random(0)
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        for place in {0, 7, 8, len(data) - 1, *(chance.randrange(len(data)) for _ in range(40))}:
            for changed in (flipped(data, place, chance.randrange(1, 256)), data[:place], data + data[:place] + b"\n"):
                file.write_bytes(changed)
                assert fault(folder), (file.name, place, changed)
        file.write_bytes(data)
    assert not fault(folder)


def test_checksums_can_be_left_out(store):
    """Then a flipped bit of a weight is taken for a weight, and everything else is still looked at."""
    file = store.folder / "step-0000002" / SHARD
    data = file.read_bytes()
    file.write_bytes(flipped(data, -1))
    assert store.newest(verify=False) == file.parent
    assert store.newest() == store.folder / "step-0000001"
    chance, refused = random.Random(0), 0
    for place in (chance.randrange(8 + int.from_bytes(data[:8], "little")) for _ in range(150)):
        file.write_bytes(flipped(data, place, 1 << chance.randrange(8)))
        try:
            store.load(file.parent, tensors())
        except UserError as error:
            assert "step-0000002 cannot be loaded (" in str(error)
            refused += 1
    assert refused > 100  # the others changed a space, say


def test_checksums_cost_little(tmp_path):
    """1 GB/s at the least of a file in memory: processor time, and some tries, for others may be at work here."""
    (tmp_path / "file").write_bytes(os.urandom(1 << 27))
    for _ in range(30):
        began = time.thread_time()
        checksum(tmp_path / "file")
        if (1 << 27) / (time.thread_time() - began) > 1e9:
            return
    pytest.fail("slower than 1 GB/s")


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"model": {"weight": torch.zeros(6, 4)}, "step": {"weight": torch.zeros(())}}, r"\[6, 5\] there and \[6, 4\]"),
        ({"model": {"weight": torch.zeros(6, 5)}}, "it holds step.weight, which has no place here"),
        ({**tensors(), "average": {"weight": torch.zeros(6, 5)}}, "it holds no average.weight"),
        ({**tensors(), "model": {"weight": torch.zeros(6, 5).bfloat16()}}, "float32 there and torch.bfloat16 here"),
    ],
)
def test_other_tensors_than_the_saved_ones_are_refused(wanted, says, store):
    with pytest.raises(UserError, match=rf"step-0000002 cannot be loaded \(.*{says}.* same trained part"):
        store.load(store.folder / "step-0000002", wanted)


def header_of(file: Path) -> tuple[dict, bytes]:
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


@pytest.mark.parametrize(
    "places",
    [
        '{"w": [[0], [1000000000000]]}',
        '{"w": [[0, 0], [4]]}',
        '{"w": [[-1], [4]]}',
        '{"w": [[1], [4]]}',
        '{"w": [[true], [4]]}',
        '{"w": [[0.0], [4]]}',
        '{"w": 1}',
        "{}",
        "[]",
        "1e999",
        "[" * 100_000,
    ],
)
def test_places_that_do_not_fit_are_damage(places, tmp_path):
    """Nothing is allocated for what a header only claims."""
    write_shards(tmp_path / SHARD, {"w": torch.ones(4)})
    header, rest = header_of(tmp_path / SHARD)
    header["__metadata__"]["places"] = places
    text = json.dumps(header).encode()
    (tmp_path / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + rest)
    with pytest.raises(Damaged), ShardFiles([tmp_path / SHARD]) as files:
        files.read("w")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8]
)
def test_every_kind_of_number_and_of_shape(dtype, tmp_path, monkeypatch):
    """In its own dtype, in pieces that are smaller than a row: what a save takes beside the tensors."""
    monkeypatch.setattr("reca_fast.checkpoints.shards.WRITE_BYTES", 2 * dtype.itemsize)
    saved = {
        "none": torch.zeros(0, 3, dtype=dtype),
        "one": torch.tensor(2.5).to(dtype),
        "strided": torch.arange(24.0).view(3, 4, 2).transpose(0, 1).to(dtype),
    }
    write_shards(tmp_path / SHARD, saved)
    stored = load_file(tmp_path / SHARD)
    assert {name: (x.dtype, x.shape) for name, x in stored.items()} == {n: (dtype, x.shape) for n, x in saved.items()}
    with ShardFiles([tmp_path / SHARD]) as files:
        for name, tensor in saved.items():
            assert torch.equal(files.read(name), tensor) and files.read(name).dtype == dtype
        with pytest.raises(Misfit):
            files.read_into("other", torch.zeros(1))


PEAK = """
import resource, sys, torch
from pathlib import Path
from reca_fast.checkpoints import CheckpointStore, SavedWeights

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

numbers = 64 << 20
tensors = {
    "model": {"w": torch.ones(numbers, dtype=torch.bfloat16)},  # 128 MB
    "mean": {"w": torch.ones(numbers, dtype=torch.uint8)},  # 64 MB
    "square": {"w": torch.ones(numbers // 2)},  # 128 MB
}
store, before = CheckpointStore(Path(sys.argv[1])), peak()
path = store.save(1, tensors, {})
print("save", peak() - before)
before = anonymous()
store.load(store.newest(), tensors)
print("load", anonymous() - before)
for section in tensors:
    for weight in SavedWeights(path, section).values():
        print("export", anonymous() - before)
print("file", (path / "shard-00000.safetensors").stat().st_size / 2**20 - 320)
"""


@pytest.mark.slow
def test_saving_and_loading_make_no_copy_of_it_all(tmp_path):
    """MB beyond the 320 MB of the tensors themselves, of any dtype: a buffer, and nothing at all when exporting."""
    run = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "run"], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    grown = [(name, float(number)) for name, number in map(str.split, run.stdout.splitlines())]
    assert [name for name, _ in grown] == ["save", "load", "export", "export", "export", "file"]
    limits = {"save": 60, "load": 20, "export": 20, "file": 1}
    assert all(number < limits[name] for name, number in grown), grown


class Proof:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", SHARD, "run_state.json", CHECKSUMS_FILE])
def test_a_planted_pickle_does_nothing(name, whole_run, arguments, reca_fast, tmp_path):
    """In whatever file of a checkpoint it lies, on resume and on export."""
    run, proof = Path(shutil.copytree(whole_run, tmp_path / "run")), tmp_path / "proof"
    planted = run / "checkpoints" / "step-0000002" / name
    planted.write_bytes(pickle.dumps(Proof(proof)))
    before = sorted(path.name for path in planted.parent.iterdir())
    said = [
        reca_fast("train", *arguments(run)),
        reca_fast("export", run, tmp_path / "out"),
        reca_fast("export", planted.parent, tmp_path / "out2"),
    ]
    assert not proof.exists()
    assert sorted(path.name for path in planted.parent.iterdir()) == before
    if name == "__0_0.distcp":  # a stray file that nothing looks at
        assert [call.code for call in said] == [0, 0, 0]
    else:
        for call in said:
            assert "step-0000002" in call.sentence, said
        assert (name == ".metadata") == ("opening it could run code" in said[0].err)
    pickle.loads(planted.read_bytes())
    assert proof.exists(), "the proof is one"


@pytest.fixture(scope="module")
def whole_run(train, tmp_path_factory) -> Path:
    """A run folder with one checkpoint, of step 2; not to be written to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out, "--steps", "2")
    return out
