"""Cards: the README of a published artefact, rendered from its configuration and report only."""

from hf_taskvec.cards.folder import CARD_NAME, PICTURE_NAME, REPORT_NAME, render_folder_card
from hf_taskvec.cards.render import render_base_card, render_model_card, render_vector_card

__all__ = [
    "CARD_NAME",
    "PICTURE_NAME",
    "REPORT_NAME",
    "render_base_card",
    "render_folder_card",
    "render_model_card",
    "render_vector_card",
]
