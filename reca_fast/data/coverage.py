"""Whether there is anything to learn a task from, which is known before weights are loaded."""

from reca_fast.config import DataConfig
from reca_fast.data.identity import spread
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import BadRecord
from reca_fast.data.sources import Source
from reca_fast.data.streams import open_streams
from reca_fast.errors import UserError
from reca_fast.sample import I2T, T2I

LOOKED_AT = 128
"""How many records are looked at, spread evenly over a stream, before it is said to hold no captions."""


def check_captions(source: Source, conversations: int, config: DataConfig) -> None:
    """Refuse a task that learns from captions where there are none.

    Args:
        source: all records of the run.
        conversations: how many of them, the last ones, are conversations.

    Raises:
        UserError: of the records that were looked at, none has a caption.
    """
    for stream in open_streams(config, len(source), conversations):
        tasks = [task for task in (T2I, I2T) if task in stream.weights]
        if tasks and (lack := _lack_of_captions(source, stream.records)):
            ways = "put a .txt of the same name beside each picture, or set --data.caption_column"
            if I2T in tasks:
                ways += ", or give --data.instructions"
            raise UserError(
                f"data.tasks.{tasks[0]} is above 0 and needs captions: {lack}. Either {ways}, or set "
                f"--data.tasks.{tasks[0]} 0 and --loss.{tasks[0]} 0."
            )


def _lack_of_captions(source: Source, records: range) -> str:
    """What there is in place of captions; empty where one is found, or nothing can be read."""
    lacks = Reasons()
    for number in spread(len(records), LOOKED_AT):
        try:
            record = source.read(records[number])
        except BadRecord:
            continue
        if record.caption is not None or record.turns:
            return ""
        lacks.add(record.lack, record.key)
    return f"{sum(lacks.counts.values())} records were looked at, {lacks}" if lacks else ""
