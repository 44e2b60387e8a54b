"""What a checkpoint holds besides tensors (run_state.json), and whether a run may go on from it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import reduce
from operator import attrgetter, getitem
from pathlib import Path
from typing import Annotated, Any, Literal

from reca_fast import __version__
from reca_fast.checkpoints import MAX_STATE_BYTES, STATE_FILE, CheckpointStore, folder_name
from reca_fast.config import RunConfig, settings
from reca_fast.data.lanes import LaneState
from reca_fast.data.outcomes import Count
from reca_fast.errors import UserError
from reca_fast.schema import Range, from_dict, read_json, shown

Word = Annotated[int, Range(0, 2**32 - 1)]

Content = dict[str, dict[str, str]]
"""For every setting that leads to files (model.path, data.source): what of them is compared when a run goes on, and
its checksum or number. An example: {"model.path": {"ema.safetensors": "5f1c..."}}.
"""


@dataclass
class Generators:
    """States of one process's random number generators."""

    torch: str  # base64
    python: tuple[int, list[Word], float | None]
    numpy: tuple[Literal["MT19937"], list[Word], Annotated[int, Range(0, 624)], Count, float]
    cuda: str | None = None  # base64


@dataclass
class SavedState:
    """The contents of run_state.json. The file comes from outside, so its values are checked against these types."""

    version: str
    step: Count
    base: str
    content: Content
    config: dict[str, Any]
    lanes: dict[str, LaneState]
    generators: list[Generators]
    skipped_in_a_row: Count = 0  # steps up to this one that changed nothing (see SkippedSteps)

    def __post_init__(self) -> None:
        if self.step and not self.lanes:
            raise ValueError("it does not say where in the data it stands")


@dataclass(frozen=True)
class Saved:
    """A checkpoint to go on from."""

    path: Path
    state: SavedState


def read_saved(path: Path) -> SavedState:
    """What the checkpoint in the folder `path` holds besides tensors.

    Raises:
        UserError: its run_state.json is not what a run writes.
    """
    file = path / STATE_FILE
    written = read_json(file, max_bytes=MAX_STATE_BYTES)
    try:
        state = from_dict(SavedState, written, str(file))
    except UserError as error:
        version = written.get("version") if isinstance(written, dict) else None
        if not isinstance(version, str) or version == __version__:
            raise
        fault = str(error).rstrip(".")
        raise UserError(
            f"{path} was saved by reca-fast {shown(version)}, and this is {__version__}, which cannot read it "
            f"({fault}). Go on with that version, or name another folder."
        ) from None
    if path.name != folder_name(state.step):
        raise UserError(f"{path} holds the state of step {state.step}; rename it to {folder_name(state.step)}.")
    return state


def find_saved(config: RunConfig, store: CheckpointStore, tell: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint without a fault, when there is one; all processes call it.

    Raises:
        UserError: --resume is false, every checkpoint is damaged, or a setting that a run keeps for its life is
            another one now.
    """
    store.sweep()
    path = store.newest(verify=config.verify_checkpoint, tell=tell)
    if path is None:
        return None
    if not config.resume:
        raise UserError(f"{store.folder} holds checkpoints and --resume is false; name another --out, or remove them.")
    saved = Saved(path, read_saved(path))
    check_fixed(saved.state, config)
    return saved


def check_fixed(state: SavedState, config: RunConfig) -> None:
    """Refuse a run whose settings differ from those of a saved one where a run keeps them for its life.

    Raises:
        UserError: names the first such setting, with both values.
    """
    now = as_json(config)
    for setting in settings(config):
        if setting.resume == "fixed" and setting.by == "value":
            keys = setting.name.split(".")
            try:
                before = reduce(getitem, keys, state.config)
            except (LookupError, TypeError):
                raise UserError(
                    f"The saved run knew no {setting.name}, as runs of another version of reca-fast "
                    f"({state.version}); go on with that version, or name another --out."
                ) from None
            if before != (value := reduce(getitem, keys, now)):
                raise UserError(
                    f"The saved run had {setting.name}={shown(before)}, now it is {shown(value)}; set it back, or name "
                    "another --out."
                )


def check_content(saved: Content, now: Content, config: RunConfig) -> None:
    """Refuse a base or data whose content is other than the saved run's, wherever they lie."""
    for name, parts in now.items():
        before = saved.get(name, {})
        differing = [part for part in {**before, **parts} if before.get(part) != parts.get(part)]
        if differing:
            raise UserError(
                f"{name}={attrgetter(name)(config)} is not what the saved run had there, it differs in "
                f"{', '.join(differing)}. Set it back, or name another --out."
            )


def as_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as it comes back from a file: nested dicts, tuples as lists."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
