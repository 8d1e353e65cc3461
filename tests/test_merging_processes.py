"""Merging over several processes, and over a disk: what one process writes is what several write, or nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_taskvec import merge
from hf_taskvec.errors import NoSpaceError, TaskVecError
from hf_taskvec.vectors.checkpoints import open_checkpoint, write_checkpoint
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights import folders, processes
from hf_taskvec.weights.processes import agreed, dealt
from tests.helpers import equal_vectors, in_processes, random_deltas, tiny_vector

METHODS: dict[str, dict[str, Any]] = {"ties": {"density": 0.3}, "dare_ties": {}, "iso_c": {}, "karcher": {}}
SCRIPT = """
import json, sys
from pathlib import Path
from hf_taskvec import TaskVector, merge
from hf_taskvec.errors import TaskVecError
from hf_taskvec.weights.processes import processes

folder = Path(sys.argv[1])
for method, settings in json.loads((folder / "methods.json").read_text()).items():
    vectors = [TaskVector.from_pretrained(folder / f"vector-{index}") for index in range(3)]
    out = folder / "several" / method
    merged = merge(vectors, method, output_dir=out, dtype="bfloat16", over_processes=True, **settings)
    assert merged.num_entries == vectors[0].num_entries
rank = processes().process_index
for second in ("damaged", f"vector-{rank % 2}"):  # what fails in one process, and what is not the same in both
    try:
        merge([folder / "vector-2", folder / second], output_dir=folder / "several" / "nothing", over_processes=True)
    except (TaskVecError, ValueError) as error:
        (folder / f"{second}-{rank}").write_text(f"{type(error).__name__}: {error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_write_what_one_writes(count: int, tmp_path: Path) -> None:
    for index in range(3):
        tiny_vector(seed=index + 1).save_pretrained(tmp_path / f"vector-{index}")
    shutil.copytree(tmp_path / "vector-0", tmp_path / "damaged")
    weights = load_file(tmp_path / "damaged" / "task_vector.safetensors")
    weights["vision_model.pre_layrnorm.bias"][3] = torch.inf
    save_file(weights, tmp_path / "damaged" / "task_vector.safetensors")
    (tmp_path / "methods.json").write_text(json.dumps(METHODS))
    (tmp_path / "script.py").write_text(SCRIPT)
    in_processes(tmp_path / "script.py", tmp_path, count=count)
    vectors = [TaskVector.from_pretrained(tmp_path / f"vector-{index}") for index in range(3)]
    for method, settings in METHODS.items():
        one = merge(vectors, method, output_dir=tmp_path / "one" / method, dtype="bfloat16", **settings)
        several = TaskVector.from_pretrained(tmp_path / "several" / method, verify=True)
        assert equal_vectors(one, several)
        configs = [(tmp_path / count / method / "task_vector_config.json").read_text() for count in ("one", "several")]
        assert configs[0] == configs[1]
        shards = sorted(path.name for path in (tmp_path / "several" / method).glob("*.safetensors"))
        assert shards == [f"task_vector-0000{number + 1}-of-0000{count}.safetensors" for number in range(count)]
    assert sorted(os.listdir(tmp_path / "several")) == sorted(METHODS)  # no journal, no temporary folder, no `nothing`
    damaged = sorted((tmp_path / f"damaged-{rank}").read_text().split(":")[0] for rank in range(count))
    assert damaged == ["NonFiniteError", *["TaskVecError"] * (count - 1)]
    for rank in range(count):
        assert "the list of vectors is" in (tmp_path / f"vector-{rank % 2}-{rank}").read_text()


def test_parameters_are_dealt_by_size_each_to_one_process() -> None:
    sizes = {f"p{index}": index * index for index in range(20)}
    shares = dealt(sizes, 3)
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= 0.05 * sum(loads)
    assert dealt({"a": 1}, 3) == [["a"], [], []]


def test_a_process_that_fails_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "gathered", lambda mine: [mine, "ValueError: broken"])
    with pytest.raises(TaskVecError, match="process 1 of this run failed, so all stop: ValueError: broken"):
        agreed(None)
    with pytest.raises(KeyError):
        agreed(KeyError("own"))


def test_a_result_that_the_disk_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = [TaskVector(random_deltas(seed=seed)) for seed in range(2)]
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda place: SimpleNamespace(free=100))
    with pytest.raises(NoSpaceError, match=r"the result needs 0.0 MB in .*, and 0.0 MB are free"):
        merge(vectors, output_dir=tmp_path / "deep" / "out")
    with pytest.raises(OSError, match="the checkpoint needs"):
        write_checkpoint(open_checkpoint("hf-taskvec/tiny-clip"), tmp_path / "out", lambda name, weight: weight)
    assert os.listdir(tmp_path) == []
    assert torch.isfinite(merge(vectors).deltas["a"]).all()  # in memory nothing is needed
