"""From a configuration to a run: its parts are opened one by one, then the loop takes over."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from reca_fast.checkpoints import CheckpointStore
from reca_fast.config import RunConfig
from reca_fast.config.rules import check_run
from reca_fast.data.cache.origin import check_origin
from reca_fast.data.coverage import check_captions
from reca_fast.data.identity import identities
from reca_fast.data.joined import cache_behind, conversations_in, open_data, open_pictures, says_left_out
from reca_fast.data.loader import PackLoader
from reca_fast.data.samples import SampleBuilder
from reca_fast.errors import UserError
from reca_fast.evaluation.grids import GridWriter
from reca_fast.evaluation.reconstruction import pick_samples
from reca_fast.models import SaysTokens, open_model
from reca_fast.models.files.identity import identity_of_files
from reca_fast.models.tiny import is_tiny, make_tiny

from .assemble import assemble
from .determinism import make_deterministic
from .distributed import Processes
from .folder import RunFolder
from .handover import Handover
from .loop import loop
from .saved import check_content, find_saved
from .state import load_run
from .telemetry import Telemetry

UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full
    *(errno.EROFS, errno.EACCES, errno.EPERM),  # forbidden
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG),  # a file in the way, no possible name
}
"""Reasons of the system for not writing a file."""


def train(config: RunConfig) -> None:
    """Train as configured. Returns when done or asked to stop.

    Raises:
        UserError: what the user can mend. Of several processes that meet it, one raises it and the others exit.
        KeyboardInterrupt: Ctrl-C asked to stop; the state is saved.
    """
    with Processes() as processes:
        train_together(config, processes)


def train_together(config: RunConfig, processes: Processes) -> None:
    """Train as configured, with processes that several runs may share, one after another. All of them call it."""
    with unwritable_folder_is_a_user_error(Path(config.out)):
        if config.deterministic:
            make_deterministic()
        check_run(config, processes.world)
        processes.join(config.device, config.parallel.replicate)
        config = with_weights(config, processes)
        model = open_model(config.model)
        source = open_data(config.data)
        check_captions(source, conversations_in(source), config.data)
        inputs = model.inputs(config.data)
        builder = SampleBuilder(config.data, inputs)
        store = store_of(config, processes)
        handover = Handover(processes.device)
        copying = model.copying_below if isinstance(model, SaysTokens) else None
        lanes = range(processes.rank, config.data.packs_per_step, processes.world)
        with (
            RunFolder(Path(config.out)) as folder,
            PackLoader(source, builder, config.data, inputs.collate, lanes, config.seed, handover.copy) as loader,
            closing(Telemetry(config, processes, copying)) as telemetry,
        ):
            if refusal := processes.agree(folder.take() if processes.is_main else ""):
                raise UserError(refusal)
            saved = find_saved(config, store, telemetry.console.print)
            content = processes.gather(
                {"model.path": identity_of_files(model.files()), **identities(source)} if processes.is_main else {}
            )[0]
            if saved is not None:
                check_content(saved.state.content, content, config)
            if cache := cache_behind(source):
                encoders = processes.gather(model.identity_of_encoders() if processes.is_main else {})[0]
                check_origin(cache, encoders, config.model, config.data)
            for line in says_left_out(source):
                telemetry.console.print(line)
            telemetry.console.print(model.says_weights())
            run = assemble(config, processes, model, say=telemetry.console.print)
            run.content = content
            if saved is not None:
                load_run(run, loader, store, saved)
            pictures = open_pictures(config.data) if config.sample_every else source
            wanted = config.sample_count if config.sample_every else 0
            grids = GridWriter(
                *(model, config, pick_samples(pictures, builder, wanted), processes.is_main),
                encoders_on=processes.device if config.data.cache else None,
            )
            loop(run, loader, store, telemetry, grids, handover)


def store_of(config: RunConfig, processes: Processes) -> CheckpointStore:
    """The checkpoints in a run's folder."""
    folder = Path(config.out) / "checkpoints"
    return CheckpointStore(folder, keep=config.keep, rank=processes.rank, gather=processes.gather)


def with_weights(config: RunConfig, processes: Processes) -> RunConfig:
    """The configuration with the path of a tiny model's weights, which are made in the run folder where a recipe names
    one. A run that goes on finds them there again.
    """
    if not is_tiny(config.model):
        return config
    folder = Path(config.out) / config.model.name
    if processes.is_main:
        make_tiny(config.model.name, folder)
    processes.agree("")  # the others wait until they are there
    return replace(config, model=replace(config.model, path=str(folder)))


@contextmanager
def unwritable_folder_is_a_user_error(folder: Path) -> Iterator[None]:
    """Inside, a run folder that cannot be written, or is gone, becomes one sentence, whichever of its files meets that
    first. A file outside of the run folder was to be read, and the sentence says so.

    Raises:
        UserError: instead of such an OSError; every other one passes as it is.
    """
    hook = threading.excepthook
    # TensorBoard writes in a thread and raises the same error once more where the metrics are logged.
    threading.excepthook = lambda args: None if _is_unwritable(args.exc_value) else hook(args)
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else folder
        in_folder = folder.absolute() in (named.absolute(), *named.absolute().parents)
        if not in_folder and error.errno in (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR):
            raise UserError(f"{named} cannot be read: {error.strerror}.") from None
        if not _is_unwritable(error) and not (in_folder and error.errno == errno.ENOENT and error.filename):
            raise
        raise UserError(
            f"The run folder cannot be written ({error}). What is saved stays; free some space, or set --out to "
            "another folder, and start the same command again."
        ) from None
    finally:
        threading.excepthook = hook


def _is_unwritable(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in UNWRITABLE
