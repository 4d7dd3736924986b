"""Packed rows on a GPU's own attention path: no example reads another. Its kernel runs on a GPU
alone; a reference stands in for it here, given the same arguments."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from stage1.config import StudyConfig
from stage1.model import engine, loading
from stage1.model.token_batch import dense_mask, packed_batch

PROMPTS, ANSWERS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]], [[20, 2], [21, 22, 2], [2]]


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.fixture
def starts() -> torch.Tensor:
    packed = packed_batch(PROMPTS, ANSWERS, 0, torch.device("cpu")).starts
    assert packed is not None
    return packed


def ragged(q, k, v, edges, key_edges, longest, key_longest, scale=None, **options):
    """Compute causal attention [T, H, d] within each stretch between two edges."""
    assert torch.equal(edges, key_edges) and longest == key_longest == int(edges.diff().max())
    assert options.get("window_size") == (-1, 0) or options.get("is_causal")
    parts = []
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        heads = (x[begin:end].transpose(0, 1)[None] for x in (q, k, v))
        part = scaled_dot_product_attention(*heads, is_causal=True, scale=scale, enable_gqa=True)
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


def test_every_example_has_its_own_edges(starts):
    inputs = engine.packed_inputs(starts.as_subclass(OnGPU), torch.bfloat16)
    padding = starts.shape[1]
    assert inputs["edges"].tolist() == [0, 5, 10, 15, padding]
    assert inputs["longest"] == max(5, padding - 15)
    assert inputs["position_ids"][0, :11].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]


def test_ragged_attention_is_attention_with_the_dense_mask(starts, monkeypatch):
    monkeypatch.setattr(engine, "varlen_attn", ragged)
    inputs = engine.packed_inputs(starts.as_subclass(OnGPU), torch.bfloat16)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 4, starts.shape[1], 8) for _ in range(3))
    edges = {name: inputs[name] for name in ("edges", "longest")}
    output, _ = engine.attention(None, query, key, value, scaling=0.3, **edges)
    mask = dense_mask(starts)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_a_model_that_reads_a_packed_row_on_this_path_reads_each_example_alone(
    tiny_folder, monkeypatch
):
    """Through transformers, which must hand the edges to every layer."""
    monkeypatch.setattr(engine, "varlen_attn", ragged)
    config = StudyConfig(language_model=str(tiny_folder), device="cpu", packed=True)
    lm, cpu = loading.load(config), torch.device("cpu")
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    row = packed_batch(PROMPTS, ANSWERS, 0, cpu)
    assert row.starts is not None
    inputs = engine.packed_inputs(row.starts.as_subclass(OnGPU), torch.bfloat16)
    together = lm.model.base_model(inputs_embeds=lm.embed(row.ids), use_cache=False, **inputs)
    begin = 0
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = torch.tensor([prompt + answer])
        alone = lm.model.base_model(inputs_embeds=lm.embed(ids), use_cache=False)
        own = together.last_hidden_state[:, begin : begin + ids.shape[1]]
        torch.testing.assert_close(own, alone.last_hidden_state, rtol=1e-4, atol=1e-5)
        begin += ids.shape[1]
