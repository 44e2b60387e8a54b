"""`reca-fast generate`: pictures drawn from prompts, or changed as they say, and whole benchmarks, drawn into the
folders that public evaluators read.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reca_fast.cli import one_line
from reca_fast.cli.benchmark import draw_layout
from reca_fast.cli.options import parse
from reca_fast.cli.prompts import Prompt, check_image, read_image, read_prompts
from reca_fast.config import DrawingMemory, ModelConfig, Pixels, Place, SamplingConfig
from reca_fast.config.rules import check_sampling
from reca_fast.errors import UserError, writing
from reca_fast.layouts import Category, LayoutName
from reca_fast.schema import PositiveInt

if TYPE_CHECKING:
    from torch import Tensor

    from reca_fast.models import Model


@dataclass
class GenerateOptions:
    out: Place = "samples"
    """Folder to write the pictures to, one PNG for each prompt."""
    prompt: str | list[str] = ""
    """A prompt, --prompt 'a cat', or a list of them, --prompt '["a cat", "a red cup"]'; the option is given once."""
    prompts: Place = ""
    """A JSONL file of prompts: on every line a string, or an object with "prompt" and perhaps "id", the name of the
    picture's file, and "image", a picture that the prompt changes, whose path begins at the folder of the JSONL file.
    With layout, the benchmark's own file, or the folder of them.
    """
    edit: Place = ""
    """A picture that the prompts change, --edit cat.jpg --prompt 'make it red', each by itself; BAGEL alone does that.
    What comes of it has the shape of the picture.
    """
    layout: LayoutName | None = None
    """Draw the prompts of a benchmark into the folder that its public evaluator reads. A manifest in --out says what
    was drawn by what, and the last line what to run next. Given again, the command draws what is missing; torchrun
    starts it on several GPUs. BAGEL draws with its authors' preset for the benchmark, under any sampling option given.
    """
    per_prompt: PositiveInt | None = None
    """With layout: pictures of each prompt. Unless set, as many as RECA's authors draw: 12 for geneval, 4 for dpg and
    dpg-reca, 10 for t2i-compbench, and 1 for the others.
    """
    category: Category | None = None
    """With layout t2i-compbench: the category of the prompts, where their file is not called CATEGORY_val.txt."""
    origin: Place = ""
    """With layout imgedit: the folder of the pictures to be edited; unless set, the one that --prompts lies in."""
    width: Pixels | None = None
    """Width of the pictures, in pixels; by default the size that the model was made for."""
    height: Pixels | None = None
    """Height of the pictures, in pixels; by default the size that the model was made for."""
    batch: PositiveInt = 4
    """How many pictures are drawn before they are written, at least as many as sampling.together draws at once. Picture
    i starts from the noise of sampling.seed + i; with layout, from that of its own prompt and number.
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
    if options.layout:
        return draw_layout(options, options.layout)
    for name in ("per_prompt", "category", "origin"):
        if getattr(options, name):
            raise UserError(f"{name} is set, which only benchmarks know; set --layout as well, or leave it out.")
    prompts = asked_for(options)
    check_sampling(options.sampling)
    from reca_fast.data.images import write_png
    from reca_fast.hardware import pick_device
    from reca_fast.memory import fill_to_draw
    from reca_fast.models import editor, open_model

    model = open_model(options.model)
    if any(prompt.image for prompt in prompts):
        options.sampling.filled(editor(model).EDITING)
    folder = Path(options.out)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    print(model.says_weights())
    fill_to_draw(model, pick_device(options.device), options.memory)
    batch = max(options.batch, options.sampling.together)
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        for prompt, picture in zip(part, draw(model, part, options, start), strict=True):
            path = folder / f"{prompt.name}.png"
            with writing(path):
                write_png(picture, path)
            print(f"{path}: {one_line(prompt.text)}", flush=True)
    return 0


def asked_for(options: GenerateOptions) -> list[Prompt]:
    """All prompts, those of the command line first, with their pictures known to be there.

    Raises:
        UserError: there is no prompt, two would have one file, or a picture to change cannot be read.
    """
    edited = Path(options.edit) if options.edit else None
    given = [options.prompt] if isinstance(options.prompt, str) else options.prompt
    prompts = [Prompt(f"{number:04d}", prompt, edited) for number, prompt in enumerate(filter(None, given))]
    prompts += read_prompts(Path(options.prompts), len(prompts), edited) if options.prompts else []
    if repeated := [name for name, times in Counter(prompt.name for prompt in prompts).items() if times > 1]:
        raise UserError(f"{options.prompts}: two prompts would be drawn to {repeated[0]}.png; give each its own 'id'.")
    if not prompts:
        raise UserError("No prompt given; use --prompt 'a cat' or --prompts FILE.jsonl.")
    pictures = dict.fromkeys(prompt.image for prompt in prompts if prompt.image)
    if pictures and (options.width or options.height):
        raise UserError("A picture that is changed keeps its shape: leave --width and --height out.")
    for path in pictures:
        check_image(path)
    return prompts


def draw(model: "Model", prompts: Sequence[Prompt], options: GenerateOptions, first: int) -> "list[Tensor]":
    """One picture for each prompt, uint8 [H, W, 3], of which the first has the number `first`."""
    from reca_fast.models import editor
    from reca_fast.sample import Sample, Text

    seeds = {prompt.name: options.sampling.seed + first + number for number, prompt in enumerate(prompts)}
    new = [prompt for prompt in prompts if prompt.image is None]
    edits = {prompt: read_image(prompt.image) for prompt in prompts if prompt.image is not None}
    drawn: dict[Prompt, Tensor] = {}
    if new:
        size = options.width or model.drawn_side, options.height or model.drawn_side
        samples = [Sample(prompt.name, (), None, None, Text(tuple(model.tokenize(prompt.text)))) for prompt in new]
        made = model.sample(samples, [size] * len(new), options.sampling, [seeds[prompt.name] for prompt in new])
        drawn |= zip(new, made, strict=True)
    if edits:
        instructions = [prompt.text for prompt in edits]
        seeds_of_edits = [seeds[prompt.name] for prompt in edits]
        made = editor(model).edit(list(edits.values()), instructions, options.sampling, seeds_of_edits)
        drawn |= zip(edits, made, strict=True)
    return [drawn[prompt] for prompt in prompts]
