"""`reca-fast plan`: what a run will take in memory, time and money, before anything is rented or downloaded."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from reca_fast.cli.options import parse_stages
from reca_fast.config import Place, RunConfig
from reca_fast.config.rules import check_run
from reca_fast.errors import UserError, writing
from reca_fast.schema import NonNegativeFloat, Range


@dataclass
class PlanOptions(RunConfig):
    """A run, and what it is planned for."""

    gpu: str = "H100"
    """Name of the GPU, such as "RTX 4090", h100 or L40S: case, spaces, hyphens and underscores do not matter."""
    gpus: Annotated[int, Range(1, 8)] = 1
    """How many of them, all in one host, train together."""
    host_ram: NonNegativeFloat = 0.0
    """GiB of memory that the host has; 0 for enough."""
    goal: Literal["asis", "fits", "fastest", "cheapest"] = "asis"
    """asis plans the recipe as it is; fits pulls levers until it fits; fastest and cheapest take, of all that fits,
    what needs the least time, or the least GPU time, for an image.
    """
    price: NonNegativeFloat = 0.0
    """Price of one GPU's hour, in any currency."""
    json: Place = ""
    """File for the plan's figures."""
    png: Place = ""
    """File for a picture of the memory."""
    write: Place = ""
    """File for the recipe with the levers that were pulled, to train with."""


def main(args: Sequence[str]) -> int:
    """Exit code 0 when the recipe fits, in every stage, 1 when it does not."""
    codes = []
    for stage, options in parse_stages(PlanOptions, "plan", args):
        if stage:
            print(f"Stage {stage}:")
        codes.append(plan_one(options, stage))
    return max(codes)


def plan_one(options: PlanOptions, stage: str) -> int:
    """Plan one stage, tell what it takes and write the files that are asked for; the exit code."""
    from rich.console import Console

    from reca_fast.hardware import find_gpu
    from reca_fast.memory.ladder import as_options, pulled
    from reca_fast.plan import Plan, draw_plan, find, make_plan, may_fit, print_plan

    gpu = find_gpu(options.gpu)
    run = _run_of(options)
    check_run(run, options.gpus)
    console = Console(soft_wrap=True, markup=False, highlight=False)

    def plan(config: RunConfig) -> Plan:
        return make_plan(config, _model(config), gpu, options.gpus, options.host_ram or None)

    if options.goal == "asis":
        result = plan(run)
    else:
        with console.status("simulating steps") as status:

            def told(config: RunConfig) -> Plan:
                found = plan(config)
                status.update(f"simulating steps: {found.peak_gpu_gib:.1f} GiB, {found.step_seconds:.2f} s a step")
                return found

            chosen = find(run, told, options.goal, lambda config: may_fit(config, _model(config), gpu, options.gpus))
        if chosen is None:
            raise UserError(
                f"No lever makes this fit on {options.gpus} x {gpu.name}: lower data.tokens_per_pack or "
                "data.target_resize.max_size, or take a larger GPU."
            )
        name, levers, result = chosen
        run = pulled(run, levers)
        console.print(f"{name}: {as_options(levers) or 'no lever'}")
    print_plan(result, console, options.price)
    figures, picture, recipe = (
        name and _of_stage(Path(name), stage) for name in (options.json, options.png, options.write)
    )
    if figures:
        with writing(figures):
            figures.write_text(json.dumps(result.as_json(), indent=1) + "\n")
    if picture:
        draw_plan(result, picture)
    if recipe:
        _write_recipe(recipe, run, f"{gpu.name} x {options.gpus}: {result.peak_gpu_gib:.1f} GiB planned")
    return 0 if result.fits else 1


def _of_stage(path: Path, stage: str) -> Path:
    """The file for one stage, which has the stage's name behind its own; the file itself for a run without stages."""
    return path.with_stem(f"{path.stem}-{stage}") if stage else path


def _run_of(options: PlanOptions) -> RunConfig:
    return RunConfig(**{field.name: getattr(options, field.name) for field in fields(RunConfig)})


def _model(config: RunConfig) -> Any:
    """The model that a plan is for: that of the checkpoint folder, or a published one at its true sizes."""
    from reca_fast.models import open_model, published_model
    from reca_fast.models.tiny import is_tiny

    if config.model.path or is_tiny(config.model):
        return open_model(config.model)
    if not config.model.name:
        raise UserError("Which model? Name its folder with --model.path, or a published one with --model.name.")
    return published_model(config.model.name, config.model)


def _write_recipe(path: Path, config: RunConfig, comment: str) -> None:
    """Write a configuration as YAML: what differs from the defaults."""
    import yaml

    text = yaml.safe_dump(_differing(asdict(config), asdict(RunConfig())), sort_keys=False)
    with writing(path):
        path.write_text(f"# {comment}\n{text}")


def _differing(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in deepcopy(values).items():
        if isinstance(value, dict):
            if inside := _differing(value, defaults[name]):
                found[name] = inside
        elif value != defaults[name]:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found
