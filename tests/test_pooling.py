"""The class-token layer against the whole layer it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPVisionModel

from hf_taskvec.models.pooling import pooled
from tests.helpers import tiny_clip

PIXELS = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def tower(kind: str) -> CLIPVisionModel:
    model = tiny_clip().double().eval()
    model.set_attn_implementation(kind)
    return model.vision_model


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_pooled_output_and_gradients_equal_the_whole_layers(kind: str) -> None:
    whole = tower(kind)
    short = pooled(copy.deepcopy(whole))
    weight = torch.randn(3, whole.config.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for model in (whole, short):
        (model(pixel_values=PIXELS).pooler_output * weight).sum().backward()
    torch.testing.assert_close(short(PIXELS).pooler_output, whole(PIXELS).pooler_output, rtol=0, atol=1e-12)
    assert [name for name, _ in short.named_parameters()] == [name for name, _ in whole.named_parameters()]
    for (name, mine), theirs in zip(short.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-12, msg=name)


def test_pooled_shares_parameters_and_leaves_the_tower_as_it_was() -> None:
    whole = tower("sdpa")
    before = whole(PIXELS)
    short = pooled(whole)
    assert all(mine is theirs for mine, theirs in zip(short.parameters(), whole.parameters(), strict=True))
    assert torch.equal(whole(PIXELS).last_hidden_state, before.last_hidden_state)
    assert short(PIXELS).last_hidden_state.shape == (3, 1, whole.config.hidden_size)
    with torch.no_grad():
        whole.post_layernorm.bias.add_(1)
    torch.testing.assert_close(short(PIXELS).pooler_output, before.pooler_output + 1)


def test_pooling_twice_changes_nothing() -> None:
    short = pooled(tower("sdpa"))
    assert pooled(short) is short
