"""Reference values of both losses, against textbook formulas and the model's own loss."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from stage1 import adapter as adapters
from stage1 import study
from stage1.compress import Compression, fit_pca, variance
from stage1.config import StudyConfig
from stage1.corpus.prompts import Encoded
from stage1.evaluation import reconstruction
from stage1.loss_parts import ObjectiveContext
from stage1.model import loading

PROMPTS = [[1, 10, 11, 12, 10], [1, 20], [1, 11, 30, 31, 32, 33]]
ANSWERS = [[30, 2], [31, 32, 2], [2]]
NAMES = ["a", "b", "c"]
ENCODED = Encoded(NAMES, NAMES, [["x"]] * 3, PROMPTS, ANSWERS, shortened=0, dropped=0)
CONFIG = StudyConfig(
    device="cpu", compressed_width=4, max_prompt_tokens=7, max_answer_tokens=4, eval_batch_size=2
)
COUNTS = np.random.default_rng(0).integers(0, 50, 4_096)


@pytest.fixture(scope="module")
def world(tiny_folder) -> tuple[ObjectiveContext, Compression]:
    """A tiny model with weights large enough that attention matters, and its compression."""
    lm = loading.load(CONFIG.replace(language_model=str(tiny_folder)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    table, counts = lm.embedding_table, torch.from_numpy(COUNTS)
    pca = fit_pca(table, counts, 4)
    return ObjectiveContext(lm, pca.compress(table), CONFIG, variance(table, counts)), pca


@pytest.fixture(scope="module")
def context(world) -> ObjectiveContext:
    return world[0]


@pytest.fixture(scope="module")
def compression(world) -> Compression:
    return world[1]


@pytest.fixture(scope="module")
def errors(context, compression):
    """References of a config that starts at the PCA inverse; their random starts are random."""
    table, config = context.lm.embedding_table, CONFIG.replace(initialisation="pca_inverse")
    rows = study.reconstruction_references(table, COUNTS, compression, config)
    return rows.set_index("predictor")


def test_predictors_without_training_have_their_textbook_errors(context, compression, errors):
    table, share = context.lm.embedding_table.double().numpy(), COUNTS / COUNTS.sum()
    mean = share @ table
    spread, power = share @ ((table - mean) ** 2).mean(1), share @ (table**2).mean(1)
    expected = {"zero": power, "constant mean": spread, "original embeddings": 0.0}
    for name, mse in expected.items():
        assert errors.loc[name].tolist() == pytest.approx([mse, mse / spread], rel=1e-5)
    assert errors.loc["pca_inverse", "fvu"] == pytest.approx(1 - compression.kept, rel=1e-4)
    # A random start is independent of the embeddings: its own mean square, or its own variance,
    # adds to theirs.
    assert errors.loc["random start, unit_rms", "mse"] == pytest.approx(1 + power, rel=0.1)
    assert errors.loc["random start, calibrated", "fvu"] == pytest.approx(2, rel=0.1)


def test_references_are_measured_as_an_adapter_is(context, compression, errors):
    table = context.lm.embedding_table
    rebuilt = {"pca_inverse": compression.expand(context.codebook)}
    for scaling in ("unit_rms", "calibrated"):
        config = CONFIG.replace(initialisation="random", output_scaling=scaling)
        start = adapters.make(compression, table, torch.from_numpy(COUNTS), config)
        rebuilt[f"random start, {scaling}"] = adapters.decode(start, context.codebook)
    for name, guess in rebuilt.items():
        expected = reconstruction(table, guess, COUNTS)
        assert errors.loc[name].tolist() == pytest.approx([expected["mse"], expected["fvu"]])


def labels(pad: int) -> dict[str, list[int]]:
    """Every label of each set of tokens, row by row."""
    whole = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        row = prompt + [pad] * (7 - len(prompt)) + answer + [pad] * (4 - len(answer))
        whole += row[1:]
    answers = [token for answer in ANSWERS for token in answer]
    prompts = [token for prompt in PROMPTS for token in prompt[1:]]
    return {"answer": answers, "prompt": prompts, "prompt, padding, answer": whole}


def test_constant_distributions_have_the_entropy_of_their_labels(context):
    rows = study.ce_references(ENCODED, context).set_index("tokens")
    expected = labels(context.lm.pad_token)
    assert list(rows.index) == list(expected)
    for name, tokens in expected.items():
        entropy = stats.entropy(np.unique(tokens, return_counts=True)[1])
        assert rows.loc[name, "supervised"] == len(tokens)
        assert rows.loc[name, "own frequencies"] == pytest.approx(entropy)
    assert rows["uniform"].tolist() == pytest.approx([math.log(4_096)] * 3)


@pytest.mark.parametrize("layout", ["as_found", "no_padding"])
def test_cross_entropy_of_the_original_embeddings_is_the_models_own_loss(context, layout):
    """One example at a time here: batches of different sizes must be weighted by their tokens.

    The references are those of the layout as found, whichever the study trains with.
    """
    model, pad = context.lm.model, context.lm.pad_token
    sums = dict.fromkeys(labels(pad), 0.0)
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        left, right = 7 - len(prompt), 4 - len(answer)
        padded = prompt + [pad] * left + answer + [pad] * right
        real = [1] * len(prompt) + [0] * left + [1] * len(answer) + [0] * right
        for name, ids, supervised, mask in (
            ("answer", prompt + answer, [-100] * len(prompt) + answer, None),
            ("prompt", prompt, prompt, None),
            ("prompt, padding, answer", padded, padded, torch.tensor([real])),
        ):
            ids, targets = torch.tensor([ids]), torch.tensor([supervised])
            with torch.no_grad():
                loss = model(input_ids=ids, attention_mask=mask, labels=targets).loss
            sums[name] += float(loss) * int((targets[:, 1:] != -100).sum())
    changed = replace(context, config=CONFIG.replace(padding_layout=layout))
    rows = study.ce_references(ENCODED, changed).set_index("tokens")
    for name, tokens in labels(pad).items():
        expected = sums[name] / len(tokens)
        assert rows.loc[name, "original embeddings"] == pytest.approx(expected, rel=1e-5)
