"""Damaged files of every kind end in success or one sentence: no traceback, no hang, whatever the damage.

RECA_FAST_MUTATIONS=1000 in the environment tries as many of each kind instead of the few that `make test` has time for
(`make test-all` takes 25).
"""

import io
import json
import os
import random
import re
import shutil
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

COUNT = int(os.environ.get("RECA_FAST_MUTATIONS", 6))
SECONDS = 10.0

# How files are damaged: bits flipped, ends cut, values replaced by what does not belong there

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        3,
        7,
        65,
        1.5,
        -0.0,
        1e308,
        10**9,
        2**31,
        2**62,
        2**63,
        -(2**63),
        10**30,
        10**400,
    ),
    *("", "x", "8", "null", "\u0000", "../..", "\ud800", "y" * 10_000),
    *([], {}, [[]], [None], [1, 2], {"a": 1}, [[[[[[[[[[1]]]]]]]]]], float("nan"), float("inf")),
]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def splice(data: bytes, rng: random.Random) -> bytes:
    """A piece of the file, or of noise, in another place of it."""
    start, place = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice((1, 4, 64))] if rng.random() < 0.5 else rng.randbytes(rng.choice((1, 8)))
    return data[:place] + piece + data[place + rng.choice((0, len(piece))) :]


def change_json(data: bytes, rng: random.Random) -> bytes:
    """One or two values replaced, keys removed or added, or the whole nested deep."""
    value = json.loads(data)
    if rng.random() < 0.02:
        depth = rng.choice((40, 60, 5000))
        return b'{"a":' * depth + data + b"}" * depth
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(value))
        if not places:
            break
        owner, key = rng.choice(places)
        if isinstance(owner, dict) and rng.random() < 0.2:
            del owner[key]
        elif isinstance(owner[key], int | float) and rng.random() < 0.3:
            owner[key] = rng.choice((-owner[key], owner[key] * 1000, owner[key] + 1, str(owner[key]), [owner[key]]))
        else:
            owner[key] = rng.choice(VALUES)
    text = json.dumps(value)
    if rng.random() < 0.02 and text.startswith("{"):
        text = '{"x": 1, "x": 2, ' + text[1:]
    return text.encode("utf-8", "surrogatepass")


def change_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header: its length stays true, its tensors may not."""
    (length,) = struct.unpack("<Q", data[:8])
    header = change_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def change_yaml(data: bytes, rng: random.Random) -> bytes:
    """A line's value replaced, a line removed, doubled, indented otherwise or made something else."""
    lines = data.decode().split("\n")
    place = rng.randrange(len(lines))
    name = lines[place].partition(":")[0]
    texts = ["~", "yes", "-1", "0", "1e400", "x", "1:2", "[", "{}", "*a", "", "9" * 40, "[1, [2]]", "!!set {a}"]
    lines[place] = rng.choice(
        (
            *(f"{name}: {text}" for text in texts),
            *("", lines[place] + "\n" + lines[place], "  " + lines[place], lines[place].lstrip(), "- " * 400),
            *("? [a]", "---", "\t" + lines[place], f"{name}: {'[' * 300}", f"{name}: {{class_path: antigravity}}"),
        )
    )
    return "\n".join(lines).encode()


MUTATORS: dict[str, tuple[Callable[[bytes, random.Random], bytes], ...]] = {
    "json": (flip_bits, cut, splice, change_json, change_json, change_json, change_json),
    "jsonl": (flip_bits, cut, splice),
    "yaml": (flip_bits, cut, splice, change_yaml, change_yaml, change_yaml),
    "safetensors": (flip_bits, cut, splice, change_header, change_header),
    "bytes": (flip_bits, cut, splice),
}


def mutated(data: bytes, kind: str, seed: object) -> bytes:
    """The damaged copy number `seed` of a file of that kind, always the same one."""
    rng = random.Random(f"{kind} {seed}")
    return rng.choice(MUTATORS[kind])(data, rng)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    own = [(value, key) for key in keys]
    return own + [place for key in keys for place in _places(value[key])]


# What is said of them


def try_all(reca_fast, path: Path, kind: str, *commands: list[object], out: Path | None = None) -> None:
    """Run the commands, until one refuses, on COUNT damaged copies in the place of `path`.

    With `out`, which the commands write, checksums are there to tell: every damage is to be refused.
    """
    whole, faults = path.read_bytes(), []
    for seed in range(COUNT):
        path.write_bytes(mutated(whole, kind, seed))
        for command in commands:
            start = time.process_time()
            said = reca_fast(*command)
            seconds = time.process_time() - start  # of this process: others may be busy on the machine
            if said.code == 2 and not re.fullmatch(r"reca-fast: [^\n]*\n", said.err):
                faults.append(f"seed {seed}: {said.err[-300:]}")
            if (said.code not in (0, 2) and not (said.code == 1 and not said.err)) or "Traceback" in said.err:
                faults.append(f"seed {seed}: exit {said.code}: {said.err[-300:]}")
            if out is not None and said.code == 0:
                shutil.rmtree(out)
                if path.read_bytes() != whole:
                    faults.append(f"seed {seed}: accepted")
            if seconds > SECONDS:
                faults.append(f"seed {seed}: {seconds:.0f} s")
            if said.code:
                break
    path.write_bytes(whole)
    assert not faults, f"{len(faults)} of {COUNT} mutations of {path.name}:\n" + "\n".join(faults[:20])


@pytest.fixture
def checkpoint(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


CHECKPOINT_FILES = ("llm_config.json", "vit_config.json", "config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", [*CHECKPOINT_FILES, "ema.safetensors", "ae.safetensors"])
def test_damaged_checkpoint_folders_end_in_one_sentence(name, checkpoint, pictures, reca_fast, tmp_path) -> None:
    if not (checkpoint / name).exists():
        pytest.skip(f"the tiny checkpoint has no {name}")
    draw = ["reconstruct", pictures / "00.png", "--model.path", checkpoint, "--sampling.steps", 2, "--device", "cpu"]
    draw += ["--data.target_resize", "{max_size: 32, min_size: 16, stride: 8}", "--out", tmp_path / "x.png"]
    draw += ["--data.condition_resize", "{max_size: 56, min_size: 56, stride: 14}", "--model.precision", "fp32"]
    try_all(reca_fast, checkpoint / name, name.rpartition(".")[2], ["verify", checkpoint], draw)


@pytest.mark.parametrize("name", ["config.json", "inputs.safetensors", "expected.json", "expected.safetensors"])
def test_damaged_parity_cases_end_in_one_sentence(name, written_case, reca_fast, tmp_path) -> None:
    case = Path(shutil.copytree(written_case, tmp_path / "case"))
    try_all(reca_fast, case / name, name.rpartition(".")[2], ["verify", case])


def test_damaged_recipes_end_in_one_sentence(reca_fast, tmp_path) -> None:
    from reca_fast.config.recipes import SHIPPED

    recipe = tmp_path / "mine.yaml"
    shutil.copyfile(SHIPPED / "bagel.yaml", recipe)
    try_all(reca_fast, recipe, "yaml", ["train", "--config", recipe], ["generate", "--config", recipe])


def test_damaged_prompts_end_in_one_sentence(reca_fast, tmp_path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"a cat"\n{"prompt": "a dog", "id": "dog/1"}\n' * 3)
    try_all(reca_fast, prompts, "jsonl", ["generate", "--prompts", prompts])
    single = tmp_path / "single.jsonl"
    single.write_text(json.dumps({"prompt": "a dog", "id": "dog", "more": [1, {"a": 2}]}))
    try_all(reca_fast, single, "json", ["generate", "--prompts", single])


def write_source(folder: Path, name: str) -> Path:
    """Two pictures with captions as a file of that name."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 40, 3), dtype=np.uint8)
    encoded = []
    for picture in pixels:
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "JPEG" if name.endswith("jpg") else "PNG")
        encoded.append(out.getvalue())
    path = folder / name
    if name.endswith("tar"):
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for number, data in enumerate(encoded):
                for suffix, content in (("png", data), ("json", b'{"caption": "a cat"}')):
                    info = tarfile.TarInfo(f"{'long' * 40}{number}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    elif name.endswith("parquet"):
        pq.write_table(pa.table({"image": [{"bytes": data} for data in encoded], "caption": ["a", "b"]}), path)
    else:
        path.write_bytes(encoded[0])
    return path


@pytest.mark.parametrize("name", ["pictures.tar", "pictures.parquet", "picture.png", "picture.jpg"])
def test_damaged_data_end_in_one_sentence(name, tiny_folder, reca_fast, tmp_path) -> None:
    source = write_source(tmp_path, name)
    draw = ["reconstruct", source, "--model.path", tiny_folder, "--sampling.steps", 2, "--device", "cpu"]
    draw += ["--data.target_resize", "{max_size: 32, min_size: 16, stride: 8}", "--out", tmp_path / "x.png"]
    try_all(reca_fast, source, "bytes", [*draw, "--data.condition_resize", "{max_size: 56, min_size: 56, stride: 14}"])


@pytest.fixture(scope="module")
def run_folder(arguments, tmp_path_factory) -> Path:
    from reca_fast.cli import main

    out = tmp_path_factory.mktemp("run")
    assert main(["train", *map(str, arguments(out)), "--steps", "1", "--save_every", "1"]) == 0
    return out


def test_damaged_training_checkpoints_are_never_exported(run_folder, reca_fast, tmp_path) -> None:
    """Damage that a checksum cannot tell does not exist: nothing is exported from a damaged checkpoint."""
    copy = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (step,) = (copy / "checkpoints").iterdir()
    for file in sorted(step.iterdir()):
        kind = file.suffix[1:] if file.suffix[1:] in MUTATORS else "bytes"
        try_all(reca_fast, file, kind, ["export", copy, tmp_path / "out"], out=tmp_path / "out")
