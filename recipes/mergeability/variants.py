"""Bases that differ in one thing or another: pretrained, judged, and kept, each once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from accelerate import PartialState
from paper.settings import Reproduction
from pretraining.config import PretrainingConfig
from pretraining.run import Travel, pretrain
from pretraining.sources import Sources

from hf_taskvec.arguments import arg
from hf_taskvec.errors import ArgumentsError, UnknownNameError
from hf_taskvec.fields import parse_pairs
from hf_taskvec.models.base import load_base
from hf_taskvec.tasks import get_tasks
from hf_taskvec.text import listed, table
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.resume import compute_or_read, share_out
from mergeability.measures import MERGE_SCALINGS, Judging, measure_base

Values = dict[str, Any]


@dataclass
class PretrainingSources:
    """What all bases of a study are trained on."""

    pairs: list[str] = arg("Hub ids or folders of datasets with the columns `image` and `text`.", default=[])
    generated_pairs: int = arg("How many generated pairs to add.", default=0)
    unlabelled: list[str] = arg("Tasks whose training parts are added without their labels.", default=[])
    held_out: list[str] = arg("Further tasks of which no validation or test image may be among them.", default=[])
    packed: str = arg("Folder that pretrain_tiny_clip.py --pack_to wrote, instead of the four above.", default="")
    methods: list[str] = arg("Merge methods.", default=["task_arithmetic", "tsv_m"])
    scalings: list[float] = arg("Scalings tried for each merge.", default=MERGE_SCALINGS)
    common: dict[str, Any] = arg("Pretraining settings of all bases, as pretrain_tiny_clip.py has them.", default={})


def parse_variants(texts: Sequence[str], common: Mapping[str, Any]) -> dict[str, PretrainingConfig]:
    """The settings of each variant, from texts such as `patch 4: patch_size=4 layers=6`.

    Raises:
        ArgumentsError: If a text has no name, or a name comes twice.
        UnknownNameError: If a setting is unknown.
        ValueError: If a value does not fit.

    Example:
        >>> parse_variants(["wide: width=512"], {"layers": 3})["wide"].width
        512
    """
    variants: dict[str, PretrainingConfig] = {}
    for text in texts:
        name, colon, settings = (piece.strip() for piece in text.partition(":"))
        if not colon or not name or folder_name(name) in map(folder_name, variants):
            raise ArgumentsError(f"a variant is 'name: setting=value …' with a name of its own, got {text!r}")
        variants[name] = pretraining({**common, **parse_pairs(settings.split())}, name)
    if not variants:
        raise ArgumentsError("there is no variant; name some as 'name: setting=value …'")
    return variants


def pretraining(settings: Mapping[str, Any], where: str) -> PretrainingConfig:
    """Pretraining settings from JSON values, each of the type it has to be."""
    kinds = get_type_hints(PretrainingConfig)
    values: Values = {}
    for name, value in settings.items():
        if name not in kinds:
            raise UnknownNameError(
                f"pretraining setting of {where!r}:", name, [spec.name for spec in fields(PretrainingConfig)]
            )
        kind = kinds[name] if isinstance(kinds[name], type) else str
        if kind in (int, float) and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value
        ):
            raise ValueError(f"{name} of {where!r} must be of type {kind.__name__}, got {value!r}")
        if kind in (str, bool) and not isinstance(value, kind):
            raise ValueError(f"{name} of {where!r} must be of type {kind.__name__}, got {value!r}")
        values[name] = kind(value)
    return PretrainingConfig(**values)


def folder_name(name: str) -> str:
    """A variant's name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")


def judge_variants(
    variants: Mapping[str, PretrainingConfig], args: PretrainingSources, settings: Reproduction, judging: Judging
) -> list[Values]:
    """Pretrains every variant that is not there, judges it with every seed, and returns one entry each.

    What was finished is read, the rest dealt over the processes that run the study; a pretraining that was stopped goes
    on from its state.
    """
    cells = [(name, seed) for name in variants for seed in settings.seeds]
    return share_out(
        cells,
        lambda cell: cell_path(settings, *cell),
        lambda cell: judge_variant(cell[0], variants[cell[0]], args, settings, judging, seed=cell[1]),
    )


def cell_path(settings: Reproduction, name: str, seed: int) -> Path:
    """The JSON of one variant and seed."""
    return Path(settings.output_dir) / folder_name(name) / f"seed-{seed}.json"


def judge_variant(
    name: str,
    config: PretrainingConfig,
    args: PretrainingSources,
    settings: Reproduction,
    judging: Judging,
    *,
    seed: int,
) -> Values:
    """One variant and one seed of fine-tuning."""
    folder = Path(settings.output_dir) / folder_name(name)
    trained = {"config": asdict(config), "sources": sources_plan(args)}
    only = replace(settings, seeds=[seed])  # another seed later is no other plan

    def train(path: Path) -> None:
        figures = pretrain(
            open_sources(args, settings), config=config, output_dir=str(folder / "base"), travel=Travel(args.packed)
        )
        write_json(path, {"recall_at_5": figures})

    def judge(path: Path) -> None:
        compute_or_read(folder / "pretrained.json", trained, compute=train, read=read_json)
        base = load_base(folder / "base")
        base.model.to(PartialState().device)  # where it was pretrained
        measured = measure_base(base, only, judging, seed=seed, folder=folder / f"seed-{seed}")
        views = config.steps * config.batch_size * config.views
        shape = {"width": config.width, "layers": config.layers, "views": views}
        write_json(path, {"variant": name, "seed": seed, **shape, **measured})

    plan = {**trained, "settings": only.plan(), "judging": asdict(judging)}
    return compute_or_read(cell_path(settings, name, seed), plan, compute=judge, read=read_json)


def sources_plan(args: PretrainingSources) -> Values:
    """What the bases are trained on, without places."""
    if args.packed:
        return {"packed": Path(args.packed).name}
    names = {"pairs": [Path(name).name for name in args.pairs], "generated": args.generated_pairs}
    return {**names, "unlabelled": args.unlabelled, "held_out": args.held_out}


def open_sources(args: PretrainingSources, settings: Reproduction) -> Sources:
    """The sources of a study; none where the pairs are packed."""
    if args.packed:
        return Sources()
    named = (get_tasks(names, data_dir=settings.data_dir) for names in (args.unlabelled, args.held_out))
    return Sources(args.pairs, args.generated_pairs, *named)


def variant_table(cells: Sequence[Values]) -> str:
    """One row per variant, means over seeds, in percent; gains are points above the same base's zero-shot accuracy."""
    methods = list(cells[0]["merges"])
    headers = [
        "variant",
        "M parameters",
        "views",
        "linear probe",
        "zero-shot",
        "individual",
        "mean of vectors",
        *methods,
    ]
    rows = []
    for name in sorted({cell["variant"] for cell in cells}, key=lambda name: _mean(cells, name, "probe")):
        zero_shot = _mean(cells, name, "zero_shot")
        first = next(cell for cell in cells if cell["variant"] == name)
        row = [name, f"{first['parameters'] / 1e6:.1f}", f"{first['views']:,}"]
        row += [f"{100 * _mean(cells, name, measure):.1f}" for measure in ("probe", "zero_shot")]
        row.append(_against(_mean(cells, name, "individual"), zero_shot))
        row.append(f"{100 * _mean(cells, name, 'gain_at_mean'):+.1f}")
        for method in methods:
            merges = [cell["merges"][method] for cell in cells if cell["variant"] == name]
            accuracy = sum(one["accuracy"] for one in merges) / len(merges)
            row.append(f"{_against(accuracy, zero_shot)} at {listed(sorted({one['scaling'] for one in merges}))}")
        rows.append(row)
    return table(headers, rows, align="lrr" + "l" * (len(headers) - 3))


def _mean(cells: Sequence[Values], name: str, measure: str) -> float:
    values = [float(cell[measure]) for cell in cells if cell["variant"] == name]
    return sum(values) / len(values)


def _against(accuracy: float, zero_shot: float) -> str:
    return f"{100 * accuracy:.1f} ({100 * (accuracy - zero_shot):+.1f})"
