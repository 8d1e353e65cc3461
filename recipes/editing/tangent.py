"""The page of tangent and ordinary vectors: accuracies alone and summed up, and how far pairs are disentangled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from hf_taskvec import Report
from hf_taskvec.arguments import command_line
from hf_taskvec.evaluation.plots import plot_disentanglement
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.text import table
from hf_taskvec.vectors.info import library_versions

WAYS = {
    "ordinary": "ordinary vectors on the ordinary model",
    "post hoc": "the same vectors on the linearised model",
    "tangent": "vectors trained in the tangent space, on the linearised model",
    "held": "likewise, trained with the penalty of TAK (arXiv 2602.17385) by the other tasks' K-FAC factors",
}
Seed = Mapping[str, Mapping[str, Any]]  # by way: what was measured

PAGE = """# In the tangent space

The base against its linearisation f(θ0) + J(θ0)(θ − θ0) (arXiv 2305.12827). Test accuracy in percent, mean over {tasks}
tasks ± 95 % interval over {seeds} seed(s) of fine-tuning. Vectors are summed up with the scaling of highest validation
accuracy. The most images of a task: {sizes}; {map_images} for the maps.
{versions}.

    {command}

{accuracies}

{sentences}

## Each task by its own vector

Non-linear advantage: what the ordinary model gains over the linearised one, divided by 1 − 1/C for C classes.

{advantages}

## Disentanglement error

ξ(α₁, α₂): how often, summed over the two tasks' images, both vectors together predict otherwise than the task's own
alone (0 to 2, lower is better). Mean over all pairs of factors of {factors}, and at (1, 1).

{maps}

![maps of the first pair and seed]({figure})
"""


def page(
    zero_shot: Report, seeds: Sequence[Seed], classes: Sequence[int], *, settings: Mapping[str, Any], figure: str
) -> str:
    """The page of all that was measured."""
    sizes = ", ".join(f"{settings[f'max_{split}'] or 'all'} {split}" for split in ("train", "validation", "test"))
    return PAGE.format(
        tasks=len(zero_shot.results),
        seeds=len(seeds),
        sizes=sizes,
        map_images=settings["map_images"],
        versions=", ".join(f"{name} {version}" for name, version in library_versions().items()),
        command=command_line(),
        accuracies=accuracy_table(zero_shot, seeds),
        sentences="\n".join(sentences(seeds)),
        advantages=advantage_table(zero_shot, seeds, classes),
        factors=", ".join(f"{factor:g}" for factor in settings["factors"]),
        maps=map_table(seeds),
        figure=figure,
    )


def figure_of(seed: Seed) -> Figure:
    """The maps of the first pair."""
    first = {way: measured["maps"][0] for way, measured in seed.items()}
    one = first["ordinary"]
    errors = {way: one_map["errors"] for way, one_map in first.items()}
    return plot_disentanglement(errors, factors=one["factors"], tasks=tuple(one["tasks"]))


def means(seeds: Sequence[Seed], way: str, kind: str) -> list[float]:
    """The mean accuracy over tasks of each seed."""
    return [fmean(seed[way][kind].values()) for seed in seeds]


def accuracy_table(zero_shot: Report, seeds: Sequence[Seed]) -> str:
    """Mean accuracies by way."""
    rows = [["base", "", f"{100 * zero_shot.accuracy:.1f}", "", ""]]
    for way in seeds[0]:
        shares = [[seed[way]["merged"][task] / own for task, own in seed[way]["individual"].items()] for seed in seeds]
        scalings = ", ".join(f"{seed[way]['scaling']:g}" for seed in seeds)
        columns = means(seeds, way, "individual"), means(seeds, way, "merged"), [fmean(share) for share in shares]
        rows.append([way, *(str(Mean.of(column)) for column in columns), scalings])
    return table(["way", "individual", "summed up", "of individual", "scalings"], rows, align="lrrrr")


def sentences(seeds: Sequence[Seed]) -> Iterator[str]:
    """What each way is, and what the tangent space gains."""
    yield from (f"- `{way}`: {WAYS[way]}." for way in seeds[0])
    for way in [way for way in ("tangent", "held") if way in seeds[0]]:
        for kind, words in (("merged", "Summed up"), ("individual", "Alone")):
            pairs = zip(means(seeds, way, kind), means(seeds, "ordinary", kind), strict=True)
            yield f"- {words}, {way} vectors have {Mean.of([a - b for a, b in pairs])} points over ordinary ones."
        numbers = range(len(seeds[0]["ordinary"]["maps"]))
        lower = [map_mean(seeds, way, number) < map_mean(seeds, "ordinary", number) for number in numbers]
        yield f"- Their disentanglement error is the lower one for {sum(lower)} of {len(lower)} pairs."


def map_mean(seeds: Sequence[Seed], way: str, number: int, *, name: str = "mean") -> float:
    """The mean over seeds of a number of one pair's map."""
    return fmean(seed[way]["maps"][number][name] for seed in seeds)


def advantage_table(zero_shot: Report, seeds: Sequence[Seed], classes: Sequence[int]) -> str:
    """Individual accuracies of each task, and the non-linear advantage over both linear ways."""
    rows = []
    for result, count in zip(zero_shot.results, classes, strict=True):
        own = {way: [seed[way]["individual"][result.task] for seed in seeds] for way in seeds[0]}
        row = [result.task, f"{100 * result.accuracy:.1f}", *(str(Mean.of(values)) for values in own.values())]
        for way in ("post hoc", "tangent"):
            pairs = zip(own["ordinary"], own[way], strict=True)
            row.append(str(Mean.of([(usual - linear) / (1 - 1 / count) for usual, linear in pairs])))
        rows.append(row)
    heads = ["task", "base", *seeds[0], "advantage over post hoc", "over tangent"]
    return table(heads, rows, align="l" + "r" * (len(heads) - 1))


def map_table(seeds: Sequence[Seed]) -> str:
    """The disentanglement error of each pair by way."""
    rows = []
    for number, first in enumerate(seeds[0]["ordinary"]["maps"]):
        row = [" and ".join(first["tasks"])]
        for way in seeds[0]:
            mean, low, high = (map_mean(seeds, way, number, name=name) for name in ("mean", "low", "high"))
            row += [f"{mean:.3f} [{low:.3f}, {high:.3f}]"]
            row += [f"{map_mean(seeds, way, number, name='at_one'):.3f}" if first["at_one"] is not None else ""]
        rows.append(row)
    heads = ["pair", *(head for way in seeds[0] for head in (f"{way}, mean", "at (1, 1)"))]
    return table(heads, rows, align="l" + "r" * (len(heads) - 1)) + NOTE


NOTE = "\n\nIn brackets the mean ends of each seed's 95 % interval over images."
