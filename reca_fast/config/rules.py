"""What several settings allow together. What one setting may be by itself stands in its type, in `config/`.

Rules that need more than the settings stand where the rest is known: what a checkpoint asks of a size with its model,
whether a file exists where it is opened.
"""

from reca_fast.config import DataConfig, MemoryConfig, ResizeConfig, RunConfig, SamplingConfig
from reca_fast.errors import UserError
from reca_fast.schema import check_ranges


def check_run(config: RunConfig, processes: int) -> None:
    """Refuse a training run that cannot work, before anything is opened.

    Args:
        config: the whole run.
        processes: how many train together.

    Raises:
        UserError: names the settings and the way out.
    """
    check_ranges(config)
    check_data(config.data)
    if not config.out:
        raise UserError("out is empty; set --out to a folder for this run.")
    if config.loss.i2t > 0 and config.model.freeze_und:
        raise UserError(
            "loss.i2t > 0 trains the understanding side, which model.freeze_und keeps as it is: set --model.freeze_und "
            "false as well; where it is always frozen (OpenUni), set --loss.i2t 0 and --data.tasks.i2t 0."
        )
    for task, weight in vars(config.loss).items():
        drawn = getattr(config.data.tasks, task)
        if (drawn > 0) != (weight > 0):
            raise UserError(
                f"data.tasks.{task} and loss.{task} must both be above 0 or both be 0, they are {drawn} and {weight}."
            )
    if config.memory.trained == "bf16" and config.model.precision != "bf16":
        raise UserError(
            f"memory.trained=bf16 keeps fewer digits than model.precision={config.model.precision} computes with; set "
            "--model.precision bf16 as well, or --memory.trained fp32."
        )
    if config.optim.kind == "paged_adamw8bit" and config.optim.states == "host":
        raise UserError(
            "optim.states=host excludes optim.kind=paged_adamw8bit, whose states go to the host by themselves; set "
            "--optim.kind adamw8bit, or --optim.states device."
        )
    packs = config.data.packs_per_step
    if packs % processes:
        raise UserError(
            f"data.packs_per_step={packs} cannot be shared by {processes} processes; set it to a multiple of "
            f"{processes}."
        )
    check_memory(config.memory)
    if config.memory.swap > 0 and config.optim.ema_decay > 0:
        raise UserError(
            "optim.ema_decay > 0 averages weights on the device, where memory.swap leaves none: set one of them to 0."
        )
    check_lora(config)
    replicas = config.parallel.replicate
    if processes % replicas:
        raise UserError(
            f"parallel.replicate={replicas} does not divide the {processes} processes; set it to a divisor of "
            f"{processes}, or start a multiple of {replicas} processes."
        )
    if config.optim.kind == "muon" and processes > replicas:
        raise UserError(
            f"optim.kind=muon needs every matrix whole, and {processes} processes would share it: set "
            f"--parallel.replicate {processes}, or another --optim.kind."
        )
    if config.sample_every:
        check_sampling(config.sampling)
        if config.data.cache and not config.data.source:
            raise UserError(
                "sample_every draws pictures beside their originals, which data.cache does not hold: set --data.source "
                "as well, or --sample_every 0."
            )


def check_lora(config: RunConfig) -> None:
    """Refuse what adapters exclude.

    Raises:
        UserError: names the settings and the way out.
    """
    if not config.lora.rank:
        return
    wrong = {
        "leaves no trained layer for memory.matmul: set --memory.matmul plain": config.memory.matmul != "plain",
        "leaves nothing to swap: set --memory.swap 0, and --memory.frozen_on host to move the frozen weights": (
            config.memory.swap > 0
        ),
    }
    for fault, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"lora.rank={config.lora.rank} {fault}; or set --lora.rank 0.")


def check_memory(config: MemoryConfig) -> None:
    """Refuse levers that exclude each other; docs/memory.md says why each does.

    Raises:
        UserError: names the settings and the way out.
    """
    away = {
        f"memory.gradients={config.gradients}": config.gradients != "device",
        "memory.frozen_on=host": config.frozen_on == "host",
        f"memory.swap={config.swap}": config.swap > 0,
    }
    pulled = [name for name, is_pulled in away.items() if is_pulled]
    if pulled and config.order != "layer":
        raise UserError(f"{pulled[0]} goes block by block: set --memory.order layer as well.")
    if (config.frozen_on == "host" or config.swap > 0) and config.recompute == "none":
        raise UserError(
            f"{pulled[-1]} takes a block's weights away before its backward pass: "
            "set --memory.recompute blocks as well."
        )
    if (config.recompute == "budget") != (config.budget_gib > 0):
        raise UserError(
            f"memory.budget_gib={config.budget_gib:g} with memory.recompute={config.recompute}: a budget above 0 and "
            "--memory.recompute budget go together; set both."
        )
    if config.mlp_rows and config.compile:
        raise UserError(
            f"memory.mlp_rows={config.mlp_rows} runs a layer's MLP in a loop that torch.compile cannot follow: set "
            "--memory.compile false or --memory.mlp_rows 0."
        )


def check_data(config: DataConfig) -> None:
    """Refuse data settings of which no sample can be made.

    Raises:
        UserError: names the settings and the way out.
    """
    check_ranges(config, "data.")
    _check_resize(config.condition_resize, "data.condition_resize")
    _check_resize(config.target_resize, "data.target_resize")
    tasks = vars(config.tasks)
    if not any(tasks.values()):
        raise UserError(f"{', '.join(f'data.tasks.{task}' for task in tasks)} are all 0; set at least one above 0.")
    if config.serve == "all":
        _check_joint(config)


def _check_joint(config: DataConfig) -> None:
    if config.mix == "pack":
        raise UserError(
            "data.serve=all lets every sample serve all tasks, so no pack serves one: set --data.mix sample."
        )
    if config.has_instructions and config.tasks.t2i > 0:
        raise UserError(
            "data.serve=all takes every sample from data.instructions, where there are no captions for t2i: set "
            "--data.tasks.t2i 0 and --loss.t2i 0, or leave data.instructions out."
        )
    if config.has_instructions and config.source and not config.cache:
        raise UserError(
            "data.serve=all takes every sample from data.instructions, none from data.source: leave one of them out."
        )


def _check_resize(config: ResizeConfig, group: str) -> None:
    if config.fit == "keep" and config.min_size > config.max_size:
        raise UserError(
            f"{group}.min_size={config.min_size} is above {group}.max_size={config.max_size}; lower the first or raise "
            "the second."
        )


def check_sampling(config: SamplingConfig) -> None:
    """Refuse sampling settings that draw nothing, or not what they seem to say.

    Raises:
        UserError: names the settings and the way out.
    """
    check_ranges(config, "sampling.")
    first, second = config.guidance_interval or (0.0, 1.0)
    if first > second:
        raise UserError(
            f"sampling.guidance_interval=[{first}, {second}]: the second time must be the later one; swap them."
        )
    if (config.image_guidance or 1) > 1 and config.guidance == 1:
        raise UserError(
            f"sampling.image_guidance={config.image_guidance} acts only where sampling.guidance does: set "
            "--sampling.guidance above 1 as well."
        )
