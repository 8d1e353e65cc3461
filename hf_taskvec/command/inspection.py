"""`info` and `diff`: what a vector or checkpoint is, and how alike two are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hf_taskvec.command.outcome import Outcome, facts
from hf_taskvec.command.packing import open_packed, shown
from hf_taskvec.command.verbs import Verb
from hf_taskvec.fields import arg
from hf_taskvec.text import columns

if TYPE_CHECKING:
    from hf_taskvec.cards.description import Layer
    from hf_taskvec.vectors.comparison import Likeness
    from hf_taskvec.vectors.vector import TaskVector


@dataclass
class InfoSettings:
    """What is looked at."""

    source: str = arg("Hub id (with @revision if wanted), folder or .safetensors file of a vector or checkpoint.")
    base: str | None = arg("Hub id or folder of a base to check a vector against; another one is exit code 1.", None)
    spectrum: bool = arg("Look at singular values too; a second per ten million entries.", default=False)


def info(settings: InfoSettings) -> Outcome:
    """Describes one."""
    from hf_taskvec.cards.description import describe

    if (packed := open_packed(settings.source)) is not None:
        told = shown(packed, settings.source)
        return replace(told, names=[told.data["what"]])
    description = describe(settings.source, base=settings.base, spectrum=settings.spectrum)
    rows = [_layer_row(name, layer, spectrum=settings.spectrum) for name, layer in description.layers.items()]
    text = f"{facts(description.facts)}\n\n{columns(list(rows[0]), [list(row.values()) for row in rows])}"
    spectra = {name: asdict(one) for layer in description.layers.values() for name, one in layer.spectra.items()}
    data = {**description.facts, "layers": rows, **({"spectra": spectra} if spectra else {})}
    differs = settings.base is not None and "another base" in str(description.facts.get("base check"))
    return Outcome(data, text, [str(description.facts["what"])], code=int(differs))


def _layer_row(name: str, layer: Layer, *, spectrum: bool) -> dict[str, Any]:
    row = {"layer": name, "entries": layer.entries, "norm": layer.norm, "rms": layer.root_mean_square}
    if not spectrum:
        return row
    spectra = list(layer.spectra.values())  # none of a layer without a matrix
    return {
        **row,
        "largest singular value": max((one.largest for one in spectra), default=None),
        "mean stable rank": fmean(one.stable_rank for one in spectra) if spectra else None,
        "mean directions for 90 %": fmean(one.directions for one in spectra) if spectra else None,
    }


@dataclass
class DiffSettings:
    """What is compared."""

    left: str = arg("Hub id (with @revision if wanted), folder or .safetensors file of a vector or checkpoint.")
    right: str = arg("Another one of the same kind.")
    largest: int = arg("How many of the parameters that differ most to show.", default=5)


def diff(settings: DiffSettings) -> Outcome:
    """Compares two."""
    from hf_taskvec.vectors.comparison import compare
    from hf_taskvec.vectors.opening import open_weights

    left, right = open_weights(settings.left), open_weights(settings.right)
    if left.kind != right.kind:
        raise ValueError(
            f"{left.name} is a {left.kind} and {right.name} a {right.kind}: compare two vectors or two checkpoints, or "
            "make a vector of the checkpoint first (TaskVector.from_checkpoints)"
        )
    compared = compare(left.tensors, right.tensors)
    layers = [_row("layer", name, alike) for name, alike in compared.layers.items()]
    largest = [_row("parameter", name, alike) for name, alike in compared.largest(settings.largest).items()]
    whole = _row("what", left.kind, compared.whole)
    told = {
        "same base": _same_base(left.vector, right.vector),
        "only in the first": len(compared.only_left),
        "only in the second": len(compared.only_right),
    }
    shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in whole.items()}
    sections = [facts({**shown, **{name: value for name, value in told.items() if value}}), _table(layers)]
    sections += [f"The largest differences:\n{_table(largest)}"] if largest else []
    data = {**whole, **told, "layers": layers, "largest": largest}
    return Outcome(data, "\n\n".join(sections), [f"{compared.whole.cosine:.6g}"])


def _row(kind: str, name: str, alike: Likeness) -> dict[str, Any]:
    return {
        kind: name,
        "cosine": alike.cosine,
        "same sign": alike.sign_agreement,
        "first norm": alike.left_norm,
        "second norm": alike.right_norm,
        "distance": alike.distance,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    return columns(list(rows[0]), [list(row.values()) for row in rows])


def _same_base(left: TaskVector | None, right: TaskVector | None) -> str | None:
    """Whether two vectors were made from one base, as far as their fingerprints tell."""
    if left is None or right is None:
        return None
    ours, theirs = left.info.base_hashes, right.info.base_hashes
    common = [name for name in ours if name in theirs]
    if not common:
        return "unknown: no fingerprint tells"
    other = sum(ours[name] != theirs[name] for name in common)
    return f"no: {other} of {len(common)} base parameters differ" if other else "yes"


VERBS = [
    Verb(
        "info",
        "Shows what a vector or checkpoint is.\n\nProvenance, size, norms by layer, and whether a base is its own.",
        InfoSettings,
        info,
        ["hf-taskvec info out/mnist/vector", "hf-taskvec info user/clip-birds --base openai/clip-vit-base-patch32"],
        positional=["source"],
    ),
    Verb(
        "diff",
        "Compares two vectors, or two checkpoints.\n\n"
        "Cosine, share of equal signs and norms, as a whole and by layer, and the largest differences.",
        DiffSettings,
        diff,
        ["hf-taskvec diff out/mnist/vector out/svhn/vector", "hf-taskvec diff user/a@main user/b --json"],
        positional=["left", "right"],
    ),
]
