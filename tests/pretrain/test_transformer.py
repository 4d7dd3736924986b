"""The training model: equal to transformers' Llama, and blind to other documents."""

import copy

import pytest
import torch

from stage1.pretrain import transformer
from stage1.pretrain.transformer import Shape, Transformer, exported, ragged_documents

BEGIN = 1
SHAPE = Shape(width=32, depth=2, hidden=64, heads=2, vocabulary=50, tied=False)


def sharp(shape: Shape = SHAPE) -> Transformer:
    """Return a model with large weights, so that its output depends on all that it reads."""
    model = Transformer(shape, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def rows(B: int = 2, T: int = 12, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(3, 50, (B, T), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = BEGIN
    return ids


def hidden(model: Transformer, ids: torch.Tensor, documents=None) -> torch.Tensor:
    documents = transformer.dense_documents(ids, BEGIN) if documents is None else documents
    return model.hidden(ids, documents, torch.float32)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_the_exported_model_computes_the_same(tokenizer, tied):
    model, ids = sharp(SHAPE._replace(tied=tied)), rows()
    llama = exported(model, tokenizer, length=64)
    expected = llama(input_ids=ids).logits
    torch.testing.assert_close(hidden(model, ids) @ model.head.T, expected, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in llama.parameters()) == sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_dropout_leaves_out_its_share_of_what_layers_add_and_scales_up_the_rest(monkeypatch):
    """A layer whose outputs are all the same number, so that what is kept can be counted."""
    model, ids = Transformer(SHAPE._replace(depth=1), 0), rows(8, 64)
    monkeypatch.setattr(transformer, "normed", lambda x, scale: x)
    monkeypatch.setattr(
        transformer, "linear", lambda x, matrix: torch.ones(*x.shape[:2], len(matrix))
    )
    documents = transformer.dense_documents(ids, BEGIN)
    embeddings = model.embedding[ids]
    given = ids, documents, torch.float32
    assert torch.allclose(model.hidden(*given) - embeddings, torch.tensor(2.0))
    torch.manual_seed(0)
    added = model.hidden(*given, 0.2) - embeddings  # 1 / 0.8 from each of two, or none
    counts = [((added - value).abs() < 1e-4).float().mean().item() for value in (0, 1.25, 2.5)]
    assert counts == pytest.approx([0.04, 0.32, 0.64], abs=0.02)
    torch.manual_seed(0)
    assert torch.equal(model.hidden(*given, 0.2) - embeddings, added)


@torch.no_grad()
def test_a_document_in_a_packed_row_is_read_as_if_alone(tokenizer):
    model, ids = sharp(), rows()
    ids[0, 5] = ids[1, 3] = ids[1, 4] = BEGIN
    packed = hidden(model, ids)
    llama = exported(model, tokenizer, length=64)
    for row, start, stop in ((0, 0, 5), (0, 5, 12), (1, 0, 3), (1, 3, 4), (1, 4, 12)):
        alone = llama.model(input_ids=ids[row : row + 1, start:stop]).last_hidden_state
        torch.testing.assert_close(packed[row, start:stop], alone[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_no_token_reads_another_document_or_a_later_token():
    model, ids = sharp(), rows(1)
    ids[0, 6] = BEGIN
    before = hidden(model, ids)
    for place in range(1, 12):
        if place != 6:
            changed = ids.clone()
            changed[0, place] = 3 + (changed[0, place] - 2) % 47
            differs = (hidden(model, changed) != before).any(-1)[0]
            end = 6 if place < 6 else 12
            assert differs.tolist() == [place <= i < end for i in range(12)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_reads_the_same_documents():
    model, ids = sharp(), rows(2, 128)
    ids[0, 50] = ids[1, 7] = BEGIN
    flex = hidden(model, ids, transformer.flex_documents(ids, BEGIN))
    torch.testing.assert_close(flex, hidden(model, ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spare", [0, 1, 4])
def test_ragged_edges_are_the_starts_of_documents_and_have_a_fixed_length(spare):
    ids = rows(2, 8)
    ids[0, 3] = ids[1, 7] = BEGIN
    ids[1, 0] = 5  # goes on from an earlier row, and is a document all the same
    ragged = ragged_documents(ids, BEGIN, 4 + spare)
    assert ragged.edges.tolist() == [0, 3, 8, 15, 16] + [16] * spare
    assert ragged.edges.dtype == torch.int32 and ragged.longest == 8
    assert ids[1, 0] == 5


@torch.no_grad()
def test_ragged_attention_takes_documents_end_to_end(monkeypatch):
    """On the CPU, where the kernel is missing, a loop over documents stands in for it."""

    def varlen(q, k, v, starts, ends, longest, _, **options):
        assert torch.equal(starts, ends)
        parts = []
        for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            assert b - a <= longest
            heads = [x[None, a:b].transpose(1, 2) for x in (q, k, v)]
            mixed = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
            parts.append(mixed.transpose(1, 2)[0])
        return torch.cat(parts)

    monkeypatch.setattr(transformer, "varlen_attn", varlen)
    model, ids = sharp(), rows()
    ids[0, 5] = ids[1, 3] = BEGIN
    ragged = hidden(model, ids, ragged_documents(ids, BEGIN, 6))
    torch.testing.assert_close(ragged, hidden(model, ids), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_exported_model(tokenizer):
    model, ids = sharp(), rows()
    llama = exported(model, tokenizer, length=64)
    weights = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(2))
    (hidden(model, ids) * weights).sum().backward()
    (llama.model(input_ids=ids).last_hidden_state * weights).sum().backward()
    gradients = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, source in zip(gradients.parameters(), model.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(parameter) if source.grad is None else source.grad)
    named = transformer.llama_weights(gradients)
    for name, parameter in llama.model.named_parameters():
        expected = parameter.grad
        torch.testing.assert_close(named[f"model.{name}"], expected, rtol=1e-3, atol=1e-3)


def test_the_seed_decides_the_initial_weights():
    first, again, other = (Transformer(SHAPE, seed).qkv for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_multiplied_parameters_are_layers_and_head():
    model = Transformer(SHAPE, 0)
    norms = 5 * 32
    assert model.multiplied == sum(p.numel() for p in model.parameters()) - norms - 50 * 32
