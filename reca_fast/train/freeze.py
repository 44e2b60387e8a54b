"""Leaving parts of a model as they are, beside what the model freezes itself."""

from collections.abc import Sequence

from torch import nn

from reca_fast.errors import UserError, did_you_mean


def freeze(module: nn.Module, parts: Sequence[str]) -> None:
    """Freeze every parameter whose name is one of `parts`, or begins with one and a dot.

    Raises:
        UserError: no parameter has such a name, or none is left to be trained.
    """
    for part in parts:
        chosen = [p for name, p in module.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not chosen:
            known = sorted({name.partition(".")[0] for name, _ in module.named_parameters()})
            raise UserError(
                f"model.freeze={part}: the model has no such part; its parts are {', '.join(known)}, and theirs are "
                f"named with dots.{did_you_mean(part, known)}"
            )
        for parameter in chosen:
            parameter.requires_grad_(False)
    if parts and not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError("model.freeze leaves nothing to be trained; name fewer parts.")
