"""RegMean by fusion-bench on given Gram matrices, timed: `regmean_fusion_bench.py FOLDER COUNT SHRINK DTYPE OUT`.

`FOLDER` holds the vectors `vector-<i>` and `grams-<i>.safetensors`, a matrix by the name of each module. Deltas are
merged as if they were weights, which is the same where the Gram matrices are invertible.
"""

from __future__ import annotations

import sys
from pathlib import Path

from merging_meter import Meter

meter = Meter()
with meter.timed("import"):
    import torch
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
    from safetensors.torch import load_file, save_file

if __name__ == "__main__" and len(sys.argv) > 1:
    folder, count, shrink, out = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[5])
    with meter.timed("load"):
        dtype = getattr(torch, sys.argv[4])
        vectors = [load_file(folder / f"vector-{index}" / "task_vector.safetensors") for index in range(count)]
        grams = [load_file(folder / f"grams-{index}.safetensors") for index in range(count)]
        listed = {name: [own[name].to(dtype) for own in vectors] for name in vectors[0]}
    with meter.timed("merge"):
        merged = merging_with_regmean_weights(listed, grams, reduce_non_diagonal_ratio=shrink)
    with meter.timed("save"):
        out.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in merged.items()}, out / "task_vector.safetensors")
    meter.report(threads=torch.get_num_threads())
