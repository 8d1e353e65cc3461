"""Merging in essential subspaces: the directions in which a vector moves the outputs of its own images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_taskvec.merging import lapack
from hf_taskvec.merging.engine import map_parameters, parallel, rounding_of, stacked, wide_dtype
from hf_taskvec.merging.linalg import leading, polar
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.statistics.value import Gram, Statistics
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.names import LAYER_NUMBER


@merge_method("esm", paper="2602.20208", resumable=True, statistics=("gram",))
def esm(vectors: Sequence[TaskVector], statistics: Sequence[Statistics]) -> TaskVector:
    """Keeps of each matrix the 1/T of output directions that its images move most, and whitens them as in `tsv_m`.

    With x the inputs of a matrix in the vector's own model, P holds the leading principal directions of the shifts Δx,
    uncentred, and A = Pᵀ Δ. The P of all vectors are stacked and whitened, and so are the A, after what is large was
    made larger: A by the square of its norm over the mean of all vectors, each column of the stacked A by that of
    the column. A merged matrix is scaled by the square of its norm over the mean of its kind in all layers. Some 32
    images of each task do, and the paper finds those of another dataset as good. The scaling is chosen on validation
    data.

    Whitening leaves no magnitude: as in the authors' code the result has the mean singular value of the stacked A.
    That code also multiplies both factors by (λ / mean λ)^.15 with λ the variances along P, and the result by 2 and by
    the mean singular value of the stacked P; takes the norm of A before it is cut; fills directions beyond the number
    of tokens with unit vectors; merges `out_proj` by TSV-M; sees queries, keys and values as one matrix, and draws its
    images from test data. Here all matrices of linear layers are treated alike, with queries, keys and values apart,
    and directions that no image moves are left out. Everything else is averaged, patch and position embeddings too.

    Args:
        vectors: Vectors of one base.
        statistics: Those of each vector, with `gram`.

    Example:
        >>> pair = [TaskVector({"w.weight": torch.diag(torch.tensor(row))}) for row in ([3.0, 1.0], [1.0, 3.0])]
        >>> seen = [Statistics({"gram/w": torch.eye(2)})] * 2
        >>> esm(pair, seen).deltas["w.weight"]
        tensor([[3., 0.],
                [0., 3.]])
    """
    lapack.load()  # before a pool limits the threads of what is loaded
    wide, rounding, shapes = wide_dtype(vectors), rounding_of(vectors), vectors[0].deltas.shapes
    known = {name: [own.gram(name) for own in statistics] for name, shape in shapes.items() if len(shape) == 2}
    grams = {name: [gram for gram in own if gram is not None] for name, own in known.items()}
    names = [name for name, own in grams.items() if len(own) == len(vectors) and 0 not in shapes[name]]

    def merged(name: str) -> Tensor:
        return merge_essential(stacked(vectors, name, wide), grams[name], rounding=rounding)

    norms = dict(zip(names, parallel(lambda name: float(merged(name).norm()), names, description="norms"), strict=True))
    kinds: dict[str, list[float]] = defaultdict(list)
    for name, norm in norms.items():
        kinds[LAYER_NUMBER.sub(".", name)].append(norm)

    def compute(name: str) -> Tensor:
        if name not in norms:
            return stacked(vectors, name, wide).mean(dim=0)
        alike = kinds[LAYER_NUMBER.sub(".", name)]
        mean = sum(alike) / len(alike)
        return (merged(name) * ((norms[name] / mean) ** 2 if mean > 0 else 1.0)).to(wide)

    return map_parameters(compute, vectors)


def merge_essential(deltas: Tensor, grams: Sequence[Gram], *, rounding: float) -> Tensor:
    """The merged matrix in float64, before it is scaled among its kind; see `esm`.

    Args:
        deltas: The T deltas (T, m, n).
        grams: The Gram matrix of each vector's inputs.
        rounding: Relative rounding of the deltas.
    """
    directions, images = [], []
    for delta, gram in zip(deltas.double(), grams, strict=True):
        shift = delta @ gram.factor.to(delta).T  # its left singular vectors are the principal directions of the shifts
        if gram.rest is not None:
            shift = torch.cat([shift, delta * gram.rest.to(delta)], dim=1)
        own = leading(shift, max(1, len(delta) // len(deltas)), rounding=rounding).left
        directions.append(own)
        images.append(own.T @ delta)
    norms = torch.stack([image.norm() for image in images])
    if not norms.any():
        return torch.zeros_like(directions[0][:, :1]).expand(deltas.shape[1:])
    rows = torch.cat([image * (norm / norms.mean()) ** 2 for image, norm in zip(images, norms, strict=True)])
    columns = torch.linalg.vector_norm(rows, dim=0)
    # what rounding spans is left out of the directions already, and sizes are too far apart here for one bound
    right, mean = polar(rows * (columns / columns.mean()) ** 2, rounding=0.0)
    return polar(torch.cat(directions, dim=1))[0] @ right * mean
