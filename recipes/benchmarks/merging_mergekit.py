"""One merge by mergekit, timed: `merging_mergekit.py FOLDER COUNT METHOD PARAMETERS_JSON OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from merging_meter import Meter

meter = Meter()
with meter.timed("import"):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

if __name__ == "__main__" and len(sys.argv) > 1:
    folder, count, method, parameters, out = sys.argv[1:]
    own = json.loads(parameters)
    models = [{"model": str(Path(folder) / f"task-{index}"), "parameters": own["each"]} for index in range(int(count))]
    config = {"merge_method": method, "models": models, "parameters": own["all"]}
    config["dtype"] = own.get("dtype", "float32")
    if own["base"]:
        config["base_model"] = str(Path(folder) / own["base"])
    with meter.timed("merge and save"):
        options = MergeOptions(copy_tokenizer=False, allow_crimes=True, quiet=True)
        run_merge(MergeConfiguration.model_validate(config), out, options)
    meter.report()
