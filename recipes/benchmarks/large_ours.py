"""One merge of checkpoints by `hf_taskvec`, timed: `large_ours.py FOLDER COUNT METHOD SETTINGS_JSON OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from merging_meter import Meter

meter = Meter()
with meter.timed("import"):
    from hf_taskvec.merging import merge_checkpoints

if __name__ == "__main__":
    folder, count, method, settings, out = sys.argv[1:]
    tuned = [Path(folder) / f"task-{index}" for index in range(int(count))]
    with meter.timed("merge and save"):
        merge_checkpoints(Path(folder) / "base", tuned, method, output_dir=out, **json.loads(settings))
    meter.report()
