"""`reca-fast generate --layout`: a benchmark, drawn into the folder that its public evaluator reads."""

from pathlib import Path
from typing import TYPE_CHECKING

from reca_fast.config.rules import check_sampling
from reca_fast.errors import UserError

if TYPE_CHECKING:
    from reca_fast.cli.generate import GenerateOptions

OWNERS = {"category": "t2i-compbench", "origin": "imgedit"}
"""Option -> the only layout that it belongs to."""


def draw_layout(options: "GenerateOptions", name: str) -> int:
    """Draw the benchmark `name`, a key of LAYOUTS. Returns the exit code.

    Raises:
        UserError: options that exclude each other, and whatever `draw_benchmark` refuses.
    """
    for given in ("prompt", "edit"):
        if getattr(options, given):
            raise UserError(f"{given} is set, and --layout {name} has prompts of its own; leave one of the two out.")
    if not options.prompts:
        raise UserError(f"--layout {name} needs --prompts, the benchmark's own file of prompts.")
    for setting, owner in OWNERS.items():
        if getattr(options, setting) and name != owner:
            raise UserError(f"{setting} is set, which belongs to --layout {owner}; leave it out.")
    check_sampling(options.sampling)
    from reca_fast.layouts import layout_of
    from reca_fast.layouts.draw import Settings, draw_benchmark
    from reca_fast.layouts.layout import Request

    request = Request(
        Path(options.prompts),
        layout_of(name).pictures_per_prompt(options.per_prompt),
        options.category or "",
        Path(options.origin) if options.origin else None,
    )
    size = options.width, options.height
    batch = max(options.batch, options.sampling.together)
    settings = Settings(batch, size, options.device, options.model, options.memory, options.sampling)
    draw_benchmark(name, Path(options.out), request, settings)
    return 0
