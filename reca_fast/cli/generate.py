"""`reca-fast generate`: pictures drawn from prompts."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reca_fast.cli.options import parse
from reca_fast.config import DrawingMemory, ModelConfig, Pixels, Place, SamplingConfig
from reca_fast.config.rules import check_sampling
from reca_fast.errors import UserError, reading, writing
from reca_fast.schema import PositiveInt, parse_json, shown

MAX_BYTES = 2**28
MAX_NAME = 200


@dataclass
class GenerateOptions:
    out: Place = "samples"
    """Folder to write the pictures to, one PNG for each prompt."""
    prompt: str | list[str] = ""
    """A prompt, --prompt 'a cat', or a list of them, --prompt '["a cat", "a red cup"]'; the option is given once."""
    prompts: Place = ""
    """A JSONL file of prompts: on every line a string, or an object with "prompt" and perhaps "id", the name of the
    picture's file.
    """
    width: Pixels | None = None
    """Width of the pictures, in pixels; by default the size that the model was made for."""
    height: Pixels | None = None
    """Height of the pictures, in pixels; by default the size that the model was made for."""
    batch: PositiveInt = 4
    """How many pictures are drawn before they are written. No picture depends on it: the model draws one after another
    in any case, picture i from the noise of sampling.seed + i.
    """
    device: str = "auto"
    """auto, cpu or cuda."""
    model: ModelConfig = field(default_factory=ModelConfig)
    memory: DrawingMemory = field(default_factory=DrawingMemory)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def main(args: Sequence[str]) -> int:
    if sum(arg == "--prompt" or arg.startswith("--prompt=") for arg in args) > 1:
        raise UserError('--prompt is given more than once; write a list: --prompt \'["a cat", "a red cup"]\'.')
    options = parse(GenerateOptions, "generate", args)
    given = [options.prompt] if isinstance(options.prompt, str) else options.prompt
    prompts = [(f"{number:04d}", prompt) for number, prompt in enumerate(filter(None, given))]
    prompts += read_prompts(Path(options.prompts), len(prompts)) if options.prompts else []
    if repeated := [name for name, times in Counter(name for name, _ in prompts).items() if times > 1]:
        raise UserError(f"{options.prompts}: two prompts would be drawn to {repeated[0]}.png; give each its own 'id'.")
    if not prompts:
        raise UserError("No prompt given; use --prompt 'a cat' or --prompts FILE.jsonl.")
    check_sampling(options.sampling)
    from PIL import Image

    from reca_fast.hardware import pick_device
    from reca_fast.memory import fill_to_draw
    from reca_fast.models import open_model
    from reca_fast.sample import Sample, Text

    model = open_model(options.model)
    folder = Path(options.out)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    print(model.says_weights())
    fill_to_draw(model, pick_device(options.device), options.memory)
    for start in range(0, len(prompts), options.batch):
        part = prompts[start : start + options.batch]
        size = (options.width or model.drawn_side, options.height or model.drawn_side)
        seeds = range(options.sampling.seed + start, options.sampling.seed + start + len(part))
        conditions = [Sample(name, (), None, None, Text(tuple(model.tokenize(prompt)))) for name, prompt in part]
        pictures = model.sample(conditions, [size] * len(part), options.sampling, seeds)
        for (name, prompt), picture in zip(part, pictures, strict=True):
            path = folder / f"{name}.png"
            with writing(path):
                Image.fromarray(picture.numpy()).save(path)
            print(f"{path}: {prompt}")
    return 0


def read_prompts(path: Path, first: int) -> list[tuple[str, str]]:
    """(file stem, prompt) of every line of a JSONL file; a bad line is named."""
    with reading(path, missing="check --prompts"), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes; split it.")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"The prompts file {path} is not UTF-8 text; save it as UTF-8.") from None
    out: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        entry = parse_json(line, where)
        prompt = entry.get("prompt") if isinstance(entry, dict) else entry
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{where}: no 'prompt'. Write a string or an object with 'prompt'.")
        given = entry.get("id") if isinstance(entry, dict) else None
        out.append((f"{first + len(out):04d}" if given in (None, "") else _stem(given, where), prompt))
    return out


def _stem(given: Any, where: str) -> str:
    """The name of a picture without its ending: the id, other characters than those of words, . and - made _."""
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise UserError(f"{where}: the id {shown(given)} is neither text nor a whole number.")
    name = re.sub(r"[^\w.-]", "_", given if isinstance(given, str) else shown(given))
    if not name.strip("."):
        raise UserError(f"{where}: the id {shown(given)} names no file; write letters or digits.")
    if len(name.encode()) > MAX_NAME:
        raise UserError(f"{where}: the id {shown(given)} is longer than {MAX_NAME} bytes, too long for a file name.")
    return name
