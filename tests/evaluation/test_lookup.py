"""Lookup searches the codebook: it cannot read the token id that it is asked to find."""

import torch

from stage1.compress import Compression, Kind, random_projection
from stage1.evaluation.conditions import untrained_conditions


def test_lookup_cannot_tell_entries_apart_that_compress_to_the_same_vector(tiny_lm):
    table = tiny_lm.embedding_table
    V, D = table.shape
    components = torch.eye(D)[:4]
    with torch.no_grad():
        table[9] = table[5]
        table[9, 10:] += 1.0  # outside of what the compression keeps
    compression = Compression(
        torch.zeros(D), components, torch.ones(D, dtype=torch.float64), 4 / D, Kind.PCA_TOKEN
    )
    control = random_projection(table, torch.ones(V, dtype=torch.int64), 4)
    found = untrained_conditions(tiny_lm, compression, control)["codebook"]
    assert found is not None
    assert torch.equal(found[9], table[5]) and not torch.equal(found[9], table[9])
    assert torch.equal(found[5], table[5])
