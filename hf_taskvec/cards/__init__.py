"""Cards: the README of a published artefact, rendered from its configuration and report; publishing and finding."""

from hf_taskvec.cards.find import PublishedVector, list_epochs, list_vectors
from hf_taskvec.cards.folder import CARD_NAME, PICTURE_NAME, REPORT_NAME, render_folder_card
from hf_taskvec.cards.multitask import push_multi_task
from hf_taskvec.cards.publish import push_model_to_hub, push_series_to_hub, push_to_hub
from hf_taskvec.cards.render import (
    render_base_card,
    render_model_card,
    render_multi_task_card,
    render_vector_card,
)
from hf_taskvec.cards.statistics import push_statistics

__all__ = [
    "CARD_NAME",
    "PICTURE_NAME",
    "REPORT_NAME",
    "PublishedVector",
    "list_epochs",
    "list_vectors",
    "push_model_to_hub",
    "push_multi_task",
    "push_series_to_hub",
    "push_statistics",
    "push_to_hub",
    "render_base_card",
    "render_folder_card",
    "render_model_card",
    "render_multi_task_card",
    "render_vector_card",
]
