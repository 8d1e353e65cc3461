"""How rich a base's features are: a linear probe on them, and a base that is still in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import CLIPProcessor

from hf_taskvec import Task, load_base
from hf_taskvec.models.base import Base
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.tasks import Split
from hf_taskvec.tasks.pixels import load_pixels
from pretraining.run import running_base

INVERSE_PENALTY = 0.03


def open_variant(variant: str) -> Base:
    """A finished base, or the averaged weights of a run under way."""
    if variant == "embedded":
        return load_base()
    folder = Path(variant)
    if (folder / "state").is_dir() and not (folder / "model.safetensors").is_file():
        return Base(running_base(variant), CLIPProcessor.from_pretrained(variant), folder.name)
    return load_base(variant)


@torch.inference_mode()
def pooled_features(base: Base, task: Task, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Pooled image features before the projection, (N, W), and labels (N,)."""
    pixels, normalize = load_pixels(task, split, base.processor.image_processor), Normalize(base)
    batches = [range(start, min(start + 256, len(pixels))) for start in range(0, len(pixels), 256)]
    images = (normalize(pixels.__getitems__(batch)["pixel_values"].to(base.device)) for batch in batches)
    features = torch.cat([base.model.vision_model(pixel_values=batch).pooler_output for batch in images])
    return features.float().cpu().numpy(), pixels.labels.numpy()


def linear_probe(base: Base, task: Task, *, split: Split = "validation") -> float:
    """Accuracy on a part of a logistic regression on standardised features of the training part."""
    features, labels = pooled_features(base, task, "train")
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(scaler.transform(features), labels)
    held, truth = pooled_features(base, task, split)
    return float(model.score(scaler.transform(held), truth))
