"""One merge by `hf_taskvec`, timed: `merging_ours.py FOLDER COUNT METHOD SETTINGS_JSON OUT`.

The method `reading` only adds up the entries of the vectors: what no merge of mapped files can undercut.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from merging_meter import Meter

meter = Meter()
with meter.timed("import"):
    import torch

    from hf_taskvec.merging import merge
    from hf_taskvec.merging.engine import parallel
    from hf_taskvec.vectors.vector import TaskVector

if __name__ == "__main__":
    folder, count, method, settings, out = sys.argv[1:]
    with meter.timed("load"):
        vectors = [TaskVector.from_pretrained(Path(folder) / f"vector-{index}") for index in range(int(count))]
    if method == "reading":
        deltas = [delta for vector in vectors for delta in vector.deltas.values()]
        with meter.timed("read"):
            parallel(torch.sum, deltas, description="reading")
        meter.report(threads=torch.get_num_threads())
        sys.exit()
    with meter.timed("merge and save"):
        merge(vectors, method, output_dir=out, **json.loads(settings))
    meter.report(threads=torch.get_num_threads())
