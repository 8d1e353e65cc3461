"""The configuration of a routed vision model: which maps have experts, what chooses them, whose classes it tells."""

from __future__ import annotations

from typing import Any, Literal

from transformers import CLIPVisionConfig, PreTrainedConfig

Routing = Literal["smile", "mass", "we_moe", "twin"]
PASSES: dict[str, int] = {"smile": 1, "we_moe": 1, "twin": 2, "mass": 2}  # through the tower, of each image


class RoutedVisionConfig(PreTrainedConfig):  # type: ignore[misc]  # Transformers' is untyped
    """Settings of a `RoutedVisionModel`.

    Attributes:
        vision_config: Of the CLIP vision tower.
        projection_dim: Width of the features.
        routing: How experts are chosen: "smile", "mass", "we_moe" or "twin".
        tasks: The tasks that there is a head for, in their order; files of configurations sort what has names.
        class_names: The classes of each, in the order of their numbers.
        experts: For each linear map with experts, by its name in the tower, the rank of each; 0 for whole matrices.
        biases: Which of them have a bias for each expert.
        others: Of "mass", the shape of every other parameter that the experts change.
        gate_rank: Of "smile", how many directions of each expert decide.
        layer: Of "mass", the map whose inputs decide.
        token: Of "mass", whether the class token or the mean of all decides.
        threshold: Of "mass", the least share of a task to be taken; the best one always is.
        most: Of "mass", how many tasks are taken at most.
        provenance: Base, vectors' tasks, settings, and whose images the gates were learnt on.
    """

    model_type = "hf_taskvec_routed_clip"

    vision_config: dict[str, Any] | None = None
    projection_dim: int = 512
    routing: str = "smile"
    tasks: list[str] | None = None
    class_names: list[Any] | None = None
    experts: dict[str, Any] | None = None
    biases: list[str] | None = None
    others: dict[str, Any] | None = None
    gate_rank: int = 1
    layer: str = ""
    token: str = "cls"
    threshold: float = 0.2
    most: int = 3
    provenance: dict[str, Any] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """How many classes each task has."""
        names = [len(names) for names in self.class_names or ()]
        return dict(zip(self.tasks or (), names, strict=True))

    @property
    def vision(self) -> CLIPVisionConfig:
        """The configuration of the tower."""
        return CLIPVisionConfig.from_dict(dict(self.vision_config or {}))


def labels_of(class_names: dict[str, list[str]]) -> dict[int, str]:
    """The classes of all tasks one after the other, for `id2label`.

    Example:
        >>> labels_of({"pets": ["cat"], "digits": ["one", "two"]})
        {0: 'pets: cat', 1: 'digits: one', 2: 'digits: two'}
    """
    names = [f"{task}: {name}" for task, names in class_names.items() for name in names]
    return dict(enumerate(names))
