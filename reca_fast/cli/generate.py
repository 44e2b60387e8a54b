"""`reca-fast generate`: pictures from prompts, with classifier-free guidance."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reca_fast.cli.options import parse
from reca_fast.config import Few, ModelConfig, Pixels, Place, SamplingConfig
from reca_fast.errors import UserError, writing


@dataclass
class GenerateOptions:
    out: Place = "samples"
    """Folder of the pictures, one PNG per prompt."""
    prompt: str | list[str] = ""
    """A prompt, or a list of them (the option is given once): --prompt 'a cat', --prompt '["a cat", "a red cup"]'."""
    prompts: Place = ""
    """JSONL file of prompts: a string, or an object with "prompt" and perhaps "id", on every line."""
    width: Pixels = 1024
    """Width in pixels."""
    height: Pixels = 1024
    """Height in pixels."""
    batch: Few = 4
    """Pictures drawn at once. What is drawn does not depend on it: picture i has the noise of sampling.seed + i."""
    device: str = "auto"
    """auto, cpu or cuda."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(guidance=4.0))


def run(args: Sequence[str]) -> int:
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
    options.sampling.check()
    from PIL import Image

    from reca_fast.models import open_adapter
    from reca_fast.train.distributed import pick_device

    adapter = open_adapter(options.model)
    folder = Path(options.out)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    adapter.load(pick_device(options.device))
    for start in range(0, len(prompts), options.batch):
        part = prompts[start : start + options.batch]
        size = (options.width, options.height)
        pictures = adapter.generate([prompt for _, prompt in part], size, options.sampling, first=start)
        for (name, prompt), picture in zip(part, pictures, strict=True):
            path = folder / f"{name}.png"
            with writing(path):
                Image.fromarray(picture.numpy()).save(path)
            print(f"{path}: {prompt}")
    return 0


def read_prompts(path: Path, first: int) -> list[tuple[str, str]]:
    """(file stem, prompt) of every line of a JSONL file; a bad line is named."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise UserError(f"The prompts file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"The prompts file {path} is not UTF-8 text; save it as UTF-8.") from None
    out: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            raise UserError(f"{path}, line {number}: not JSON. Write a string or an object with 'prompt'.") from None
        prompt = entry.get("prompt") if isinstance(entry, dict) else entry
        if not isinstance(prompt, str):
            raise UserError(f"{path}, line {number}: no 'prompt'. Write a string or an object with 'prompt'.")
        given = entry.get("id") if isinstance(entry, dict) else None
        name = "" if given is None else re.sub(r"[^\w.-]", "_", str(given))
        out.append((name or f"{first + len(out):04d}", prompt))
    return out
