"""A plan as a table and as a picture."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from reca_fast.errors import writing

from .plan import Plan


def print_plan(plan: Plan, console: Console, price: float = 0.0) -> None:
    """Tables of memory and of the step, and everything that they assume.

    Args:
        price: of one GPU's hour; 0 leaves the price out.
    """
    memory = Table(title=f"memory of each {plan.gpu.name}, at the peak", title_justify="left")
    memory.add_column("")
    memory.add_column("GiB", justify="right")
    for name, gib in plan.by_category.items():
        memory.add_row(name, f"{gib:.2f}")
    memory.add_section()
    memory.add_row("in all", f"{plan.peak_gpu_gib:.2f}")
    memory.add_row("it has", f"{plan.gpu_gib:.2f}")
    console.print(memory)
    host = ", ".join(f"{name} {gib:.1f}" for name, gib in plan.host_by_category.items())
    console.print(f"host memory: {plan.peak_host_gib:.1f} GiB ({host})")
    step = plan.estimate
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in step.parts.items() if seconds >= 0.005)
    console.print(
        f"a step: {plan.images_per_step} images, {plan.tokens_per_step:,} tokens, {plan.tflop_per_image:.0f} TFLOP an "
        f"image; about {step.step_seconds:.2f} s ({parts})"
    )
    cost = f", {plan.price(price):,.2f} at {price:g} an hour" if price else ""
    console.print(f"1000 steps: {plan.hours:.1f} h on {plan.gpus} x {plan.gpu.name}{cost}")
    console.print("It assumes:")
    for assumption in plan.assumptions:
        console.print(f"  - {assumption}")
    console.print("It fits." if plan.fits else f"It does not fit: {plan.why_not()}.")


def draw_plan(plan: Plan, path: Path) -> None:
    """Write a PNG: a bar of the GPU's memory by category, beside what the GPU has, and one of the host's.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    rows = [(f"{plan.gpu.name}", plan.by_category), ("host", plan.host_by_category)]
    colours: dict[str, str] = {}
    for row, (_, parts) in enumerate(rows):
        left = 0.0
        for name, gib in parts.items():
            new = name not in colours
            colours.setdefault(name, f"C{len(colours)}")
            axes.barh(row, gib, left=left, color=colours[name], label=name if new else None)
            left += gib
        axes.text(left, row, f" {left:.1f} GiB", va="center")
    axes.vlines(plan.gpu_gib, -0.45, 0.45, color="black")
    axes.text(plan.gpu_gib, -0.5, f"{plan.gpu_gib:.1f} GiB", ha="center", va="bottom", fontsize="small")
    if plan.host_ram is not None:
        axes.vlines(plan.host_ram, 0.55, 1.45, color="black")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(1.6, -0.8)
    most = max(plan.peak_gpu_gib, plan.peak_host_gib, plan.gpu_gib, plan.host_ram or 0.0)
    axes.set_xlim(0, 1.15 * most)
    axes.set_xlabel("GiB at the peak")
    axes.legend(ncols=4, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    with writing(path):
        figure.savefig(path, dpi=120)
