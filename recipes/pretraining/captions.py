"""Captions of labelled images: what they are about, and coarse ones that do not tell the class."""

from __future__ import annotations

import re

COARSE = {
    "mnist": "a handwritten digit",
    "fashion_mnist": "a grey picture of a piece of clothing",
    "cifar10": "a small colour photo of an animal or a vehicle",
    "eurosat": "a satellite image",
    "gtsrb": "a traffic sign on the road",
    "flowers5": "a photo of a flower",
    "quickdraw": "a quick drawing",
    "plantvillage": "a leaf of an apple tree",
    "caltech101": "a photo of an object",
}
UNKNOWN = "an image"

_FRAMES = re.compile(
    r"(?:an? )?(?:(?:small |blurry |close |grey )?(?:catalogue )?(?:photo|picture|image)|"
    r"satellite (?:image|photo)|aerial view|doodle|quick drawing|white line drawing|emoji|small colourful picture)"
    r" (?:of|showing) (?P<a>.+)|"
    r"(?P<b>.+) seen from space|(?P<c>.+) drawn by hand|(?P<d>.+), a piece of clothing|(?P<e>.+) on the road|"
    r"a close up of a traffic sign: (?P<f>.+)|a German traffic sign, (?P<g>.+)|"
    r"the number (?P<h>\w+) written by hand|(?:the|a white|a) handwritten (?:digit )?(?P<i>\w+)(?: on black)?"
)


def subject(caption: str) -> str:
    """What a caption is about, without its sentence and article: "a doodle of a rainbow" gives "rainbow"."""
    if match := _FRAMES.fullmatch(caption):
        caption = next(group for group in match.groups() if group)
    return re.sub(r"^(?:an?|the) ", "", caption)


def source_of(file_name: str) -> str:
    """The labelled set an image comes from, by the first words of its file's name; empty if it is none of them."""
    return next((name for name in COARSE if file_name.startswith(f"{name}_")), "")


def coarse_caption(name: str) -> str:
    """A caption for the images of a task or labelled set that does not tell their class."""
    name = name.replace("-", "_")
    return next((text for known, text in COARSE.items() if name.startswith(known)), UNKNOWN)
