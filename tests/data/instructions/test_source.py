"""LLaVA's instruction data: entries of long files, typed conversations, pictures by name; whatever else comes in such a
file is left out, counted and named, or one sentence.
"""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reca_fast.config import DataConfig
from reca_fast.data.identity import identity_of_source
from reca_fast.data.instructions import InstructionSource, open_instructions
from reca_fast.data.instructions.entries import Entry, Fault, entries
from reca_fast.data.records import BadRecord
from reca_fast.errors import UserError
from reca_fast.sample import Turn
from reca_fast.toy import captions_of, scene_of

NAMES = ("coco/train/a.png", "coco/train/b.png", "gqa/c.png")


def test_the_toy_world_says_its_dense_captions() -> None:
    source = open_instructions(DataConfig(instructions="toy:understanding"))
    other = open_instructions(DataConfig(instructions="toy:base"))
    record = source.read(5)
    assert record.key == source.key(5) == "toy:understanding/000005" and record.caption is None
    assert record.turns == (Turn("", captions_of(scene_of("understanding", 5), "understanding", 5)["dense"]),)
    assert source.says_left_out() == "" and len(source) == 16384
    assert identity_of_source(source)["texts"] != identity_of_source(other)["texts"]


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


GOOD = {"id": "1", "image": NAMES[0], "conversations": said("<image>\nWhat is it?", "A cat.", "Red?", "No.")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + number, 20), (number, 0, 0)).save(folder / name)
    return folder


def opened(folder: Path, images: Path | str, content: Any, name: str = "llava.json") -> InstructionSource:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name).write_bytes(data)
    source = open_instructions(DataConfig(instructions=str(folder / name), instruction_images=str(images)))
    assert isinstance(source, InstructionSource)
    return source


def test_conversations_come_with_their_pictures(images, tmp_path) -> None:
    other = {"id": "1", "image": "./" + NAMES[2], "conversations": said("Colour?\n<image>", " Red. ")}
    source = opened(tmp_path, images, [GOOD, {"id": "text", "conversations": said("2+2?", "4")}, other])
    assert [source.key(i) for i in range(len(source))] == ["llava.json/000000000", "llava.json/000000002"]
    first, second = source.read(0), source.read(1)
    assert first.turns == (Turn("What is it?", "A cat."), Turn("Red?", "No."))
    assert second.turns == (Turn("Colour?", "Red."),)  # the marker's place is the model's affair
    assert first.image == (images / NAMES[0]).read_bytes() and first.caption is None
    assert second.image == (images / NAMES[2]).read_bytes()
    assert source.says_left_out() == (
        "data.instructions: 2 conversations, 1 left out: 1 x conversation without a picture (e.g. llava.json/000000001)"
    )


def test_lines_and_lists_are_the_same_and_so_are_folders_and_shards(images, tmp_path) -> None:
    several = [GOOD | {"image": name} for name in NAMES] * 3
    lines = "\n\n".join(map(json.dumps, several)).encode()
    with tarfile.open(tmp_path / "part-0.tar", "w") as shard:
        for name in NAMES:
            shard.add(images / name, name)
    sources = [
        opened(tmp_path, where, content, name)
        for where in (images, tmp_path / "part-{0..0}.tar")
        for content, name in (
            (several, "a.json"),
            (lines, "a.jsonl"),
            (json.dumps(several, indent=3).encode(), "b.json"),
        )
    ]
    records = [[source.read(i) for i in range(9)] for source in sources]
    for each in records[1:]:
        assert [(r.image, r.turns) for r in each] == [(r.image, r.turns) for r in records[0]]
    assert all(not source.ignored for source in sources)


BAD: dict[str, tuple[Any, str]] = {
    "no object": (7, "entry that is no object"),
    "a list": ([GOOD], "entry that is no object"),
    "text only": ({"conversations": said("a", "b")}, "conversation without a picture"),
    "null picture": (GOOD | {"image": None}, "conversation without a picture"),
    "number for a name": (GOOD | {"image": 3}, "picture whose name is no text"),
    "NaN for a name": (GOOD | {"image": float("nan")}, "picture whose name is no text"),
    "two pictures": (GOOD | {"image": list(NAMES[:2])}, "conversation about several pictures"),
    "two markers": (GOOD | {"conversations": said("<image><image>", "b")}, "conversation about several pictures"),
    "outside": (GOOD | {"image": "../../etc/passwd"}, "picture outside of data.instruction_images"),
    "outside by detour": (GOOD | {"image": "coco/../../x.png"}, "picture outside of data.instruction_images"),
    "absolute": (GOOD | {"image": "/etc/passwd"}, "picture outside of data.instruction_images"),
    "of another system": (GOOD | {"image": "..\\x.png"}, "picture outside of data.instruction_images"),
    "NUL in a name": (GOOD | {"image": "a\0.png"}, "picture outside of data.instruction_images"),
    "missing": (GOOD | {"image": "coco/train/z.png"}, "conversation whose picture is missing"),
    "a folder": (GOOD | {"image": "coco/train"}, "conversation whose picture is missing"),
    "half a surrogate in a name": (GOOD | {"image": "\ud800.png"}, "conversation whose picture is missing"),
    "no turns": (GOOD | {"conversations": []}, "entry without conversations"),
    "turns as text": (GOOD | {"conversations": "a"}, "entry without conversations"),
    "turns of text": (GOOD | {"conversations": ["a", "b"]}, "turn of another layout"),
    "value of a number": (GOOD | {"conversations": [{"from": "human", "value": 1}]}, "turn of another layout"),
    "other speaker": (GOOD | {"conversations": [{"from": "system", "value": "a"}]}, "speaker other than human and gpt"),
    "out of turn": (GOOD | {"conversations": said("a", "b")[::-1]}, "human and gpt do not take turns"),
    "unanswered": (GOOD | {"conversations": said("a")}, "conversation without an answer"),
    "answered by nothing": (GOOD | {"conversations": said("a", " \n")}, "empty answer"),
    "long": (GOOD | {"conversations": said("a", "b" * 2**20)}, "conversation of more than 1 MB"),
    "NUL": (GOOD | {"conversations": said("a", "b\0")}, "conversation with NUL characters"),
    "half a surrogate": (GOOD | {"conversations": said("a", "b\udc00")}, "conversation that is no valid Unicode"),
}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_what_cannot_be_used_is_counted_and_named(ending, images, tmp_path) -> None:
    content: Any = [GOOD, *(entry for entry, _ in BAD.values()), GOOD]
    if ending == "jsonl":
        content = "\n".join(json.dumps(entry) for entry in content if not isinstance(entry, list)).encode()
    source = opened(tmp_path, images, content, f"a.{ending}")
    assert len(source) == 2
    expected: dict[str, int] = {}
    for entry, reason in BAD.values():
        if not (ending == "jsonl" and isinstance(entry, list)):
            expected[reason] = expected.get(reason, 0) + 1
    assert source.ignored.counts == expected
    assert str(source.ignored).isprintable()


def test_a_question_that_nobody_answers_is_left_out(images, tmp_path) -> None:
    source = opened(tmp_path, images, [GOOD | {"conversations": said("a", "b", "c")}])
    assert source.read(0).turns == (Turn("a", "b"),)


DEEP = b"[" * 100_000
BROKEN = {
    "cut": (b"[%s, {\"image\"", "damaged list, read as far as it goes"),
    "no comma": (b"[%s %s]", "damaged list, read as far as it goes"),
    "words": (b"[%s, nothing]", "damaged list, read as far as it goes"),
    "deep": (b"[%s, " + DEEP + b"]", "damaged list, read as far as it goes"),
    "a digit bomb": (b"[%s, {\"id\": " + b"9" * 10_000 + b"}]", "conversation without a picture"),
    "no UTF-8": (b"[%s, {\"image\": \"\xff\xfe\", \"conversations\": [7]}]", "turn of another layout"),
    "line cut": (b"%s\n{\"image\"", "damaged entry"),
    "deep line": (b"%s\n" + DEEP, "damaged entry"),
    "a line of 20 MB": (b"{\"a\": \"" + b"x" * 20_000_000 + b"\"}\n%s", "entry of more than 16 MB"),
    "a string of 20 MB": (b"[\"" + b"x" * 20_000_000 + b"\", %s]", "entry of more than 16 MB"),
    "a string of 40 MB": (b"[%s, \"" + b"x" * 40_000_000 + b"\"]", "damaged list, read as far as it goes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_read_as_far_as_it_goes(name, images, tmp_path) -> None:
    content, reason = BROKEN[name]
    source = opened(tmp_path, images, content.replace(b"%s", json.dumps(GOOD).encode()))
    assert len(source) == 1 and source.read(0).turns
    assert reason in str(source.ignored)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"llava\.json holds no conversation about a picture \(it is empty\); it has to be a list"),
        (b"[]", r"\(it is empty\)"),
        (b"\x00\x01\x02", r"1 x damaged entry \(e\.g\. llava\.json/000000000\)"),
        (b'{"train": [1]}', r"1 x conversation without a picture"),
        (
            [GOOD | {"image": "x.png"}] * 2,
            r"None of the 2 pictures .* the first is 'x\.png'; set --data\.instruction_im",
        ),
    ],
)
def test_a_file_of_no_use_is_one_sentence(content, sentence, images, tmp_path) -> None:
    with pytest.raises(UserError, match=sentence):
        opened(tmp_path, images, content)


def test_places_of_no_use_are_one_sentence(images, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.json").write_text(json.dumps([GOOD]))
    for file, where, sentence in (
        ("gone.json", images, r"data\.instructions=.*gone\.json is no file"),
        ("empty", images, r"data\.instructions=.*empty is no file"),
        ("a.json", "/nowhere", r"data\.instruction_images: nothing is found at '/nowhere'; check the path\."),
        ("a.json", tmp_path / "empty", r"data\.instruction_images '.*empty' holds no pictures"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_instructions(DataConfig(instructions=str(tmp_path / file), instruction_images=str(where)))


def test_without_a_folder_pictures_lie_beside_the_file(images) -> None:
    (images / "llava.json").write_text(json.dumps([GOOD]))
    assert len(open_instructions(DataConfig(instructions=str(images / "llava.json")))) == 1


def test_a_file_that_changes_meanwhile_gives_bad_records(images, tmp_path) -> None:
    source = opened(tmp_path, images, [GOOD] * 3)
    (tmp_path / "llava.json").write_text(json.dumps([7] * 500))
    for index in range(3):
        with pytest.raises(BadRecord):
            source.read(index)


def test_every_letter_of_the_file_counts_for_its_identity(images, tmp_path) -> None:
    first = identity_of_source(opened(tmp_path, images, [GOOD] * 3))
    assert first == identity_of_source(opened(tmp_path, images, [GOOD] * 3))
    other = identity_of_source(opened(tmp_path, images, [GOOD, GOOD, GOOD | {"conversations": said("a", "b")}]))
    assert {part for part in first if first[part] != other[part]} == {"texts"}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_entries_are_found_wherever_the_window_ends(chunk, monkeypatch) -> None:
    """Random values, in one layout or another, and random bytes among them: what is found is what Python's own reader
    finds in the whole, and every entry can be read again from where it was found.
    """
    monkeypatch.setattr("reca_fast.data.instructions.entries.CHUNK", chunk)
    chance = random.Random(chunk)

    def value(depth: int = 0) -> Any:
        kind = chance.randrange(7 if depth < 3 else 5)
        if kind < 5:
            return (chance.choice(["", "é", "\u2028", '"\\', "]}{[,", "😀" * 3]), 12.5, -3.0, True, None)[kind]
        parts = [value(depth + 1) for _ in range(chance.randrange(4))]
        return parts if kind == 5 else {str(n): part for n, part in enumerate(parts)}

    for _ in range(60):
        values = [value() for _ in range(chance.randrange(6))]
        style = {"ensure_ascii": chance.random() < 0.5, "indent": chance.choice([None, 1])}
        data = json.dumps(values, **style).encode()
        found = list(entries(io.BytesIO(data)))
        assert [entry.value for entry in found if isinstance(entry, Entry)] == values
        for entry in found:
            assert json.loads(data[entry.offset : entry.offset + entry.length]) == entry.value
        spoiled = bytearray(data)
        spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
        assert all(isinstance(entry, Entry | Fault) for entry in entries(io.BytesIO(bytes(spoiled))))


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_no_spoiled_file_does_more_than_leave_out_its_entries(ending, images, tmp_path) -> None:
    """Bytes changed, taken out, doubled or cut off, anywhere: the file is refused in a sentence, or what is left of it
    can be read.
    """
    chance = random.Random(ending)
    entry_list = [GOOD | {"image": NAMES[n % 3], "conversations": said(f"<image>\n{n}?", "é" * n)} for n in range(1, 6)]
    whole = json.dumps(entry_list) if ending == "json" else "\n".join(map(json.dumps, entry_list))
    ends = {"refused": 0, "whole": 0, "less": 0}
    for _ in range(150):
        data = bytearray(whole.encode())
        for _ in range(chance.choice((1, 1, 3))):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.choice(b'\0"\\{}[],:\xff\x80 a9')
                case 1:
                    del data[at : at + chance.randrange(1, 40)]
                case 2:
                    data[at:at] = data[at : at + chance.randrange(1, 400)]
                case 3 if chance.random() < 0.2:
                    del data[at:]
        try:
            source = opened(tmp_path, images, bytes(data) or b"[]", f"a.{ending}")
        except UserError as refusal:
            ends["refused"] += 1
            assert str(refusal).count("\n") == 0
            continue
        ends["whole" if len(source) == 5 else "less"] += 1
        for index in range(len(source)):
            assert source.read(index).turns
    assert min(ends.values()) > 0, ends
