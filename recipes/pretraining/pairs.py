"""Image-text pairs for pretraining: decoded once, balanced by caption, augmented as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, Image, load_dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPImageProcessorPil

from hf_taskvec.errors import DataError, UnknownNameError


@dataclass(frozen=True)
class Pairs:
    """Decoded images and their captions; pixels are uint8 (N, 3, H, W).

    Args:
        pixels: The images.
        texts: A caption each.
        files: The name of each image's file, where it has one, or nothing.
        subjects: What each image shows, "" where that is not known; nothing where it is not asked for.
    """

    pixels: Tensor
    texts: list[str]
    files: list[str] | None = None
    subjects: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> Pairs:
        """Some of the pairs."""
        files, subjects = ([names[row] for row in rows] if names else None for names in (self.files, self.subjects))
        return Pairs(self.pixels[list(rows)], [self.texts[row] for row in rows], files, subjects)


def join(sets: Sequence[Pairs]) -> Pairs:
    """All pairs of several sets, in their order."""
    files = [name for pairs in sets for name in pairs.files or [""] * len(pairs)]
    subjects = [name for pairs in sets for name in pairs.subjects or [""] * len(pairs)]
    texts = [text for pairs in sets for text in pairs.texts]
    return Pairs(torch.cat([pairs.pixels for pairs in sets]), texts, files, subjects)


def image_processor(size: int) -> CLIPImageProcessorPil:
    """CLIP's image processor for images of `size` pixels."""
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def decode_pairs(dataset: Dataset, processor: CLIPImageProcessorPil) -> Pairs:
    """Decodes and resizes every image once.

    Raises:
        DataError: If a column is missing or an image does not decode.
    """
    for column in ("image", "text"):
        if column not in dataset.column_names:
            raise UnknownNameError("column", column, dataset.column_names)
    pixels = []
    for start in tqdm(range(0, len(dataset), 1000), desc="decode", unit="k", leave=False):
        try:
            images = dataset[start : start + 1000]["image"]
        except OSError as error:
            raise DataError(f"an image in rows {start} to {start + 999} does not decode: {error}") from error
        images = [image.convert("RGB") for image in images]
        batch = processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")
        pixels.append(batch["pixel_values"].clamp(0, 255).to(torch.uint8))
    if not pixels:
        raise DataError("a pair set is empty")
    paths = dataset.select_columns("image").cast_column("image", Image(decode=False))["image"]
    files = [(value["path"] or "").rpartition("/")[2] for value in paths]
    return Pairs(torch.cat(pixels), list(dataset["text"]), files)


def load_pairs(source: str, split: str, processor: CLIPImageProcessorPil) -> Pairs:
    """Loads one split of a Hub dataset or folder of pairs.

    Raises:
        UnknownNameError: If it has no such split.
    """
    splits: DatasetDict = load_dataset(source)
    if split not in splits:
        raise UnknownNameError(f"split of {source}:", split, splits)
    return decode_pairs(splits[split], processor)


def balance(pairs: Pairs, max_pairs_per_text: int, *, seed: int) -> Pairs:
    """Keeps at most `max_pairs_per_text` random pairs of each caption; 0 keeps all."""
    if not max_pairs_per_text:
        return pairs
    counts: dict[str, int] = {}
    kept = []
    for row in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist():
        text = pairs.texts[row]
        counts[text] = counts.get(text, 0) + 1
        if counts[text] <= max_pairs_per_text:
            kept.append(row)
    return pairs.select(sorted(kept))


def normalize(pixels: Tensor, processor: CLIPImageProcessorPil) -> Tensor:
    """Images in [0, 1] as the model wants them."""
    mean = torch.tensor(processor.image_mean, device=pixels.device)
    std = torch.tensor(processor.image_std, device=pixels.device)
    return (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def augment(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Randomly moves, scales, turns and recolours a batch; no flip, which would change digits and signs.

    Args:
        pixels: Images in [0, 1], shape (N, 3, H, W).
        strength: 1 for the full range of each change.
        generator: Source of chance, on the device of the images.
    """
    count, device = len(pixels), pixels.device

    def uniform(*shape: int, scale: float) -> Tensor:
        return (torch.rand(shape, generator=generator, device=device) * 2 - 1) * scale * strength

    angle, zoom, aspect = uniform(count, scale=0.2), uniform(count, scale=0.2).exp(), uniform(count, scale=0.12).exp()
    shift = uniform(count, 2, scale=0.18)
    rows = [angle.cos() * zoom * aspect, -angle.sin() * zoom, shift[:, 0]]
    columns = [angle.sin() * zoom, angle.cos() * zoom / aspect, shift[:, 1]]
    theta = torch.stack([torch.stack(rows, 1), torch.stack(columns, 1)], 1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    grey = pixels.mean(dim=1, keepdim=True)
    is_grey = torch.rand(count, 1, 1, 1, generator=generator, device=device) < 0.1 * strength
    pixels = torch.where(is_grey, grey, pixels)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    pixels = (pixels - mean) * (1 + uniform(count, 1, 1, 1, scale=0.35)) + mean + uniform(count, 1, 1, 1, scale=0.15)
    pixels = pixels + uniform(count, 3, 1, 1, scale=0.05)
    noise = torch.rand(count, 1, 1, 1, generator=generator, device=device) * 0.06 * strength
    return (pixels + noise * torch.randn(pixels.shape, generator=generator, device=device)).clamp(0, 1)
