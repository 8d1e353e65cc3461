"""One merge by fusion-bench, timed: `merging_fusion_bench.py FOLDER COUNT CLASS ARGUMENTS_JSON OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from merging_meter import Meter

meter = Meter()
with meter.timed("import"):
    import fusion_bench.method
    from fusion_bench import BaseModelPool
    from transformers import CLIPVisionModel

if __name__ == "__main__" and len(sys.argv) > 1:
    folder, count, name, arguments, out = sys.argv[1:]
    with meter.timed("load"):
        sources = {f"task-{index}": f"task-{index}" for index in range(int(count))}
        if name != "SlerpMergeAlgorithm":  # which wants exactly two models
            sources["_pretrained_"] = "base"
        models = {key: CLIPVisionModel.from_pretrained(Path(folder) / source) for key, source in sources.items()}
    with meter.timed("merge"):
        merged = getattr(fusion_bench.method, name)(**json.loads(arguments)).run(BaseModelPool(models))
    with meter.timed("save"):
        merged.save_pretrained(out)
    meter.report()
