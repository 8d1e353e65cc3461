"""One merge of checkpoints by `hf_taskvec`, timed: `large_ours.py FOLDER COUNT METHOD SETTINGS_JSON OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from merging_meter import Meter

meter = Meter()
with meter.timed("import"):
    from hf_taskvec.merging import merge
    from hf_taskvec.vectors.vector import TaskVector

if __name__ == "__main__":
    folder, count, method, settings, out = sys.argv[1:]
    base = Path(folder) / "base"
    with meter.timed("load"):
        tuned = [Path(folder) / f"task-{index}" for index in range(int(count))]
        vectors = [TaskVector.from_checkpoints(base, place) for place in tuned]
    with meter.timed("merge"):
        merged = merge(vectors, method, output_dir=Path(out) / "vector", **json.loads(settings))
    with meter.timed("save"):
        merged.save_checkpoint(base, Path(out) / "model")
    meter.report()
