"""`python -m reca_fast.proof CHECKPOINT SETTINGS OUT COUNT SEED`: what a checkpoint folder draws of the toy world,
measured in a process of its own. Studies call it; SETTINGS is a JSON file with the groups `model`, `data` and
`sampling`. Where it has `says`, the loss of captions is measured as well, as the score `understanding`.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.errors import UserError
from reca_fast.proof.measuring import measure_folder
from reca_fast.proof.saying import caption_loss
from reca_fast.schema import from_dict, read_json


def main(args: list[str]) -> int:
    """Measure, and write what `Measured.report` tells as JSON."""
    if len(args) != 5:
        print(__doc__, file=sys.stderr)
        return 2
    checkpoint, settings, out = map(Path, args[:3])
    groups = read_json(settings)
    data = from_dict(DataConfig, groups["data"], f"data of {settings}")
    sampling = from_dict(SamplingConfig, groups["sampling"], f"sampling of {settings}")
    options = from_dict(ModelConfig, groups["model"], f"model of {settings}")
    measured = measure_folder(checkpoint, data, sampling, count=int(args[3]), seed=int(args[4]), options=options)
    report = measured.report()
    if groups.get("says"):
        seen = replace(options, condition="auto")  # captions are said of what is seen, whatever the arm drew from
        report["scores"]["understanding"] = asdict(caption_loss(checkpoint, seen, data))
    out.write_text(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"reca-fast: {error}")
