"""Merges that are interrupted, repeated, run out of disk, or run in other chunks."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_taskvec
from hf_taskvec import merge_method
from hf_taskvec.arguments import parse_recipe
from hf_taskvec.errors import CheckpointError, NonFiniteError, UnknownNameError
from hf_taskvec.merging import METHODS, engine, merge
from hf_taskvec.merging.engine import AheadDeltas, map_chunks, map_parameters
from hf_taskvec.merging.journal import journal_key, open_journal
from hf_taskvec.merging.recipes import MergeRecipe
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import LazyDeltas
from recipes import merge as recipe
from tests.hub_server import HubServer


def vectors(count: int = 3, *, layers: int = 4, size: int = 12) -> list[TaskVector]:
    generator = torch.Generator().manual_seed(0)
    return [
        TaskVector({f"w{layer}": torch.randn(size, size, generator=generator) for layer in range(layers)})
        for _ in range(count)
    ]


def saved(folder: Path, count: int = 3, **shape: int) -> list[str]:
    for index, vector in enumerate(vectors(count, **shape)):
        vector.save_pretrained(folder / f"v{index}")
    return [str(folder / f"v{index}") for index in range(count)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def counting() -> list[str]:
    """A registered slow method whose third parameter fails once; the names computed so far."""
    computed: list[str] = []

    @merge_method("counting", paper="test", resumable=True)
    def counting(vectors: Sequence[TaskVector], *, factor: float = 1.0) -> TaskVector:
        """Counts."""

        def compute(name: str) -> Tensor:
            computed.append(name)
            if name == "w2" and computed.count("w2") == 1:
                raise MemoryError("killed")
            return vectors[0].deltas[name] * factor

        return map_parameters(compute, vectors)

    yield computed
    del METHODS["counting"]


def journal(folder: Path) -> Path:
    (kept,) = folder.glob(".out.*.journal")
    return kept


def test_an_interrupted_merge_goes_on_where_it_stopped(counting: list[str], tmp_path: Path) -> None:
    inputs = vectors()
    with pytest.raises(MemoryError):
        merge(inputs, "counting", output_dir=tmp_path / "out")
    assert list(tmp_path.iterdir()) == [journal(tmp_path)]
    merged = merge(inputs, "counting", output_dir=tmp_path / "out", scaling=2.0)
    assert counting.count("w0") == counting.count("w1") == 1
    assert counting.count("w2") == 2
    for name in merged:
        torch.testing.assert_close(merged.deltas[name], inputs[0].deltas[name] * 2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def interrupt(folder: Path, **settings: object) -> None:
    with pytest.raises(MemoryError):
        merge(vectors(), "counting", output_dir=folder / "out", **settings)


def test_a_journal_serves_the_very_same_merge_only(counting: list[str], tmp_path: Path) -> None:
    interrupt(tmp_path)
    others = [vector * 3.0 for vector in vectors()]
    merged = merge(others, "counting", output_dir=tmp_path / "out")
    torch.testing.assert_close(merged.deltas["w0"], others[0].deltas["w0"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the other journal is removed
    counting.clear()
    interrupt(tmp_path)
    merged = merge(vectors(), "counting", output_dir=tmp_path / "out", factor=3.0)
    torch.testing.assert_close(merged.deltas["w0"], vectors()[0].deltas["w0"] * 3)
    counting.clear()
    interrupt(tmp_path, factor=1.0)
    merged = merge(vectors(), "iso_c", output_dir=tmp_path / "out")
    torch.testing.assert_close(merged.deltas["w0"], merge(vectors(), "iso_c").deltas["w0"])


def test_the_key_tells_vectors_methods_settings_and_dtypes_apart() -> None:
    inputs = vectors()
    keys = [
        journal_key(inputs, "tsv_m", {"rank": 0.1}),
        journal_key(inputs, "iso_c", {"rank": 0.1}),
        journal_key(inputs, "tsv_m", {"rank": 0.2}),
        journal_key(inputs, "tsv_m", {}),
        journal_key(inputs[::-1], "tsv_m", {}),
        journal_key(inputs[:2], "tsv_m", {}),
        journal_key([vector * 2.0 for vector in inputs], "tsv_m", {}),
        journal_key([vector.to(torch.bfloat16) for vector in inputs], "tsv_m", {}),
        journal_key([vector.to(torch.bfloat16).to(torch.float32) for vector in inputs], "tsv_m", {}),
        journal_key(inputs, "tsv_m", {}, source="another package"),
    ]
    assert len(set(keys)) == len(keys)
    assert journal_key(vectors(), "tsv_m", {"a": [1], "b": 2}) == journal_key(vectors(), "tsv_m", {"b": 2, "a": [1]})


def flip(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"half",
        lambda content: content[:-1],
        lambda content: flip(content, -1),  # one bit of one delta: a valid file
        lambda content: content.replace(b'"w0"', b'"w9"'),
        lambda content: content.replace(b"[12,12]", b"[6,24] "),
        lambda content: b"",
    ],
)
def test_a_damaged_journal_entry_is_computed_again(
    damage: Callable[[bytes], bytes], counting: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(tmp_path)
    (entry,) = journal(tmp_path).glob("0.*.safetensors")
    entry.write_bytes(damage(entry.read_bytes()))
    merged = merge(vectors(), "counting", output_dir=tmp_path / "out")
    torch.testing.assert_close(merged.deltas["w0"], vectors()[0].deltas["w0"])
    assert counting.count("w0") == 2
    assert "damaged" in caplog.text


def test_an_entry_of_another_parameter_is_not_taken_for_this_one(counting: list[str], tmp_path: Path) -> None:
    interrupt(tmp_path)
    (zero,), (one,) = (list(journal(tmp_path).glob(f"{place}.*")) for place in "01")
    zero.unlink()
    one.rename(one.with_name("0" + one.name[1:]))
    merged = merge(vectors(), "counting", output_dir=tmp_path / "out")
    torch.testing.assert_close(merged.deltas["w0"], vectors()[0].deltas["w0"])


def test_a_journal_that_cannot_be_written_does_not_end_the_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_taskvec.merging.journal.write_safetensors", full)
    merged = merge(vectors(), "iso_c", output_dir=tmp_path / "out")
    torch.testing.assert_close(merged.deltas["w0"], merge(vectors(), "iso_c").deltas["w0"])
    assert caplog.text.count("cannot be written") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_journal_that_cannot_be_locked_is_not_kept_for_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("hf_taskvec.weights.temporary.fcntl.flock", no_locks)
    merged = merge(vectors(), "iso_c", output_dir=tmp_path / "out")
    torch.testing.assert_close(merged.deltas["w0"], merge(vectors(), "iso_c").deltas["w0"])
    assert "cannot be locked; the merge keeps no journal" in caplog.text
    assert "Another process" not in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_merge_that_cannot_succeed_leaves_no_journal(tmp_path: Path) -> None:
    inputs = vectors()
    inputs[1].deltas["w3"][0] = torch.nan
    with pytest.raises(NonFiniteError):
        merge(inputs, "iso_c", output_dir=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_tells_what_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def stopped() -> None:
        with open_journal(tmp_path / "out", "a" * 64) as kept:
            kept.keep(vectors()[0]).deltas["w0"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert f"is kept in {journal(tmp_path)}; the same goes on there" in caplog.text
    assert len(list(journal(tmp_path).iterdir())) == 1


def test_a_journal_in_use_is_left_alone_by_another_merge_and_by_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_journal(out, "a" * 64) as first:
        first.keep(vectors()[0]).deltas["w0"]
        with open_journal(out, "a" * 64) as same, open_journal(out, "b" * 64) as other:
            assert same.folder is None
            same.keep(vectors()[0]).deltas["w0"]
            assert other.folder is not None
        assert len(list(first.folder.glob("0.*"))) == 1
        first.keep(vectors()[0]).deltas["w1"]
    assert not list(tmp_path.iterdir())


def test_two_merges_at_once_into_one_folder_leave_the_result_of_one(tmp_path: Path) -> None:
    inputs = [TaskVector.from_pretrained(source) for source in saved(tmp_path, layers=6, size=60)]
    script = (
        "import sys, time, pathlib\n"
        "from hf_taskvec.merging import merge\n"
        "folder, mine, other = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]\n"
        "for round in range(4):\n"
        "    (folder / f'{mine}-{round}').touch()\n"
        "    while not (folder / f'{other}-{round}').exists(): time.sleep(0.001)\n"
        "    merge([folder / f'v{i}' for i in range(3)], mine, output_dir=folder / 'out')\n"
    )
    pair = ("tsv_m", "iso_c")
    children = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), *names]) for names in (pair, pair[::-1])]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    result = TaskVector.from_pretrained(tmp_path / "out")
    whole = merge(inputs, str(result.info.method))
    for name in whole:
        torch.testing.assert_close(result.deltas[name], whole.deltas[name])
    assert not list(tmp_path.glob(".out*"))


def merge_until_killed(folder: Path, method: str, *, when: str) -> bool:
    """Merges `v0`, `v1`… into `out`, in a process that is killed when a file like `when` shows up; whether in time."""
    script = (
        "import sys, pathlib, torch\n"
        "from hf_taskvec.merging import merge\n"
        "torch.set_num_threads(1)\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "merge(sorted(folder.glob('v*')), sys.argv[2], output_dir=folder / 'out')\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(folder), method])
    while not list(folder.glob(when)) and child.poll() is None:
        time.sleep(0.001)
    child.kill()
    return child.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("method", "layers", "when"),
    [("wudi", 16, ".out.*.journal/3.*.safetensors"), ("ties", 60, ".out.*.tmp/*.safetensors")],
)
def test_a_killed_merge_leaves_the_output_as_it_was_and_can_be_run_again(
    method: str, layers: int, when: str, tmp_path: Path
) -> None:
    opened = [TaskVector.from_pretrained(source) for source in saved(tmp_path, layers=layers, size=100)]
    out = tmp_path / "out"
    merge(opened, "average", output_dir=out)
    before = files(out)
    assert merge_until_killed(tmp_path, method, when=when)
    assert files(out) == before
    again = merge(opened, method, output_dir=out)
    for name, delta in merge(opened, method).deltas.items():
        torch.testing.assert_close(again.deltas[name], delta)
    assert not list(tmp_path.glob(".out.*.journal"))


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    inputs = vectors(layers=2, size=200)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            merge(inputs, "ties", output_dir=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_what_is_computed_ahead_is_asked_for_once_and_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "AHEAD", 100)
    shapes = {f"w{index}": torch.Size([10]) for index in range(50)} | {
        "big": torch.Size([1000]),
        "end": torch.Size([1]),
    }
    asked: list[str] = []

    def compute(name: str) -> Tensor:
        asked.append(name)
        return torch.zeros(shapes[name])

    with ThreadPoolExecutor(1) as pool:
        lazy = LazyDeltas(shapes, compute, torch.float32, torch.device("cpu"))
        ahead = AheadDeltas(lazy, pool, ahead=2, description="test")
        for place, name in enumerate(shapes):
            assert ahead[name].shape == shapes[name]
            pool.submit(int).result()  # all that was submitted before has been computed
            assert len(asked) - place - 1 <= 12  # 100 entries, or two parameters
        assert asked == list(shapes)
        assert ahead["w3"].shape == (10,)  # once more
        assert ahead["big"].shape == (1000,)


def test_the_cost_of_a_parameter_does_not_grow_with_their_number() -> None:
    class Names(list):  # type: ignore[type-arg]
        reads = 0

        def __getitem__(self, place: Any) -> Any:
            Names.reads += len(range(*place.indices(len(self)))) if isinstance(place, slice) else 1
            return super().__getitem__(place)

    count = 4000
    shapes = {f"w{index}": torch.Size([1]) for index in range(count)}
    lazy = LazyDeltas(shapes, lambda name: torch.zeros(1), torch.float32, torch.device("cpu"))
    with ThreadPoolExecutor(1) as pool:
        ahead = AheadDeltas(lazy, pool, ahead=2, description="test")
        ahead._names = Names(shapes)
        assert all(ahead[name].numel() == 1 for name in shapes)
    assert Names.reads <= 4 * count


def test_what_is_computed_does_not_depend_on_the_threads() -> None:
    inputs = vectors(layers=6, size=280)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append([merge(inputs, method) for method in ("ties", "dare", "della", "tsv_m")])
    torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        for name in one:
            torch.testing.assert_close(one.deltas[name], other.deltas[name])
            assert torch.equal(one.deltas[name] == 0, other.deltas[name] == 0)  # the same entries drawn and trimmed


def test_a_method_may_change_its_chunk() -> None:
    @merge_method("inplace", paper="test")
    def inplace(vectors: Sequence[TaskVector]) -> TaskVector:
        return map_chunks(lambda deltas, name: deltas.mul_(2)[0], vectors)

    inputs = vectors(size=400)
    merged = merge(inputs, "inplace", device="cpu")
    del METHODS["inplace"]
    torch.testing.assert_close(merged.deltas["w1"], vectors(size=400)[0].deltas["w1"] * 2)


# -- recipes ----------------------------------------------------------------------------------------------------------


def run(*argv: str) -> TaskVector | None:
    return recipe.main(*parse_recipe(recipe.MergeArguments, argv=argv))


def test_a_merge_can_be_repeated_from_its_config_alone(tmp_path: Path) -> None:
    sources = saved(tmp_path)
    config = tmp_path / "recipe.yaml"
    config.write_text("method: ties\nsettings: [density=0.5, scope=parameter]\nscaling: 0.25\ndtype: float16\n")
    out = tmp_path / "out"
    merged = run("--config", str(config), "--vectors", *sources, "--output_dir", str(out), "--quiet")
    assert merged is not None
    expected = merge(vectors(), "ties", density=0.5, scope="parameter", scaling=0.25, dtype=torch.float16)
    for name in merged:
        torch.testing.assert_close(merged.deltas[name], expected.deltas[name])
    assert merged.info.settings["density"] == 0.5
    assert merged.info.scaling == 0.25
    written = json.loads((out / CONFIG_NAME).read_text())
    assert written["recipe"]["vectors"] == sources
    run("--repeat", str(out), "--output_dir", str(tmp_path / "again"), "--quiet")
    assert files(tmp_path / "again") == files(out)


def test_vectors_from_the_hub_are_recorded_with_their_commit(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    api = HfApi(token="write-user")
    api.create_repo("user/one")
    vectors(1)[0].save_pretrained(tmp_path / "one")
    commit = api.upload_folder(repo_id="user/one", folder_path=tmp_path / "one").oid
    merged = MergeRecipe(("user/one", "user/one@main")).run(output_dir=tmp_path / "out")
    assert list((merged.info.recipe or {})["vectors"]) == [f"user/one@{commit}"] * 2
    again = MergeRecipe.from_info(TaskVector.from_pretrained(tmp_path / "out").info)
    assert again.vectors == (f"user/one@{commit}",) * 2


def test_bad_recipes_are_refused(tmp_path: Path) -> None:
    sources = tuple(saved(tmp_path))
    with pytest.raises(ValueError, match="Did you mean 'float16'"):
        MergeRecipe(sources, dtype="flot16").run()
    with pytest.raises(UnknownNameError, match="Did you mean 'ties'"):
        MergeRecipe(("nobody/there",) * 2, "tie").run()  # before anything is opened
    with pytest.raises(UnknownNameError, match="setting of ties"):
        MergeRecipe(("nobody/there",) * 2, "ties", {"output_dir": "elsewhere"}).run()
    with pytest.raises(ValueError, match="slerp merges 2 to 2"):
        MergeRecipe(("nobody/there",) * 3, "slerp").run()
    with pytest.raises(CheckpointError, match="holds none"):
        MergeRecipe.from_info(TaskVector.from_pretrained(sources[0]).info)
    with pytest.raises(ValueError, match="at least one vector"):
        run("--output_dir", str(tmp_path / "out"))


def test_the_recipe_lists_methods_and_can_be_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list_methods") is None
    assert "| `tsv_m` |" in capsys.readouterr().out
    run("--vectors", *saved(tmp_path), "--output_dir", str(tmp_path / "out"), "--quiet")
    assert capsys.readouterr().out == ""


def test_merging_needs_neither_transformers_nor_datasets() -> None:
    script = (
        "import sys, hf_taskvec\n"
        "from hf_taskvec.merging import merge\n"
        "assert hf_taskvec.merge is merge\n"
        "assert not {'transformers', 'datasets', 'peft'} & set(sys.modules), 'slow to import'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_has_a_home() -> None:
    assert all(getattr(hf_taskvec, name) is not None for name in hf_taskvec.__all__)
    with pytest.raises(AttributeError, match="attribute merg"):
        _ = hf_taskvec.merg
