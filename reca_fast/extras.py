"""Libraries that a lever needs and an installation may lack: imported when the lever is pulled, not before."""

import importlib
import logging
from typing import Any

from reca_fast.errors import UserError


def library(name: str, setting: str) -> Any:
    """The library `name`, imported.

    Args:
        name: as Python imports it: bitsandbytes, torchao or peft.
        setting: what asks for it, as on the command line, for the message.

    Raises:
        UserError: it is not installed, or cannot be imported here.
    """
    noisy = logging.getLogger(name)  # while it is imported, it lists kernels that it did not find and nobody asked for
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{setting} needs {name}, which cannot be imported ({error}); install it with "
            "pip install 'reca-fast[levers]', or leave the setting out."
        ) from None
    finally:
        noisy.setLevel(level)
