"""RegMean by fusion-bench on given Gram matrices, timed: `regmean_fusion_bench.py FOLDER COUNT SHRINK OUT`.

`FOLDER` holds `weights-<i>.safetensors` and `grams-<i>.safetensors`, by the names of parameters and of their modules.
"""

from __future__ import annotations

import sys
from pathlib import Path

from merging_meter import Meter

meter = Meter()
with meter.timed("import"):
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
    from safetensors.torch import load_file, save_file

if __name__ == "__main__" and len(sys.argv) > 1:
    folder, count, shrink, out = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    with meter.timed("load"):
        weights = [load_file(folder / f"weights-{index}.safetensors") for index in range(count)]
        grams = [load_file(folder / f"grams-{index}.safetensors") for index in range(count)]
    with meter.timed("merge"):
        listed = {name: [own[name] for own in weights] for name in weights[0]}
        merged = merging_with_regmean_weights(listed, grams, reduce_non_diagonal_ratio=shrink)
    with meter.timed("save"):
        save_file({name: tensor.contiguous() for name, tensor in merged.items()}, out)
    meter.report()
