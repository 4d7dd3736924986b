"""Many adapters at once: each ends where it ends alone, whatever the others do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stage1 import adapter as adapters
from stage1 import study
from stage1.names import OBJECTIVES
from stage1.training import layouts, shared_pass, together
from stage1.training.loop import train
from stage1.training.microbatches import TrainingError
from stage1.training.together import train_together

ADAPTERS = [
    {
        "objective": name,
        "seed": place % 2,
        "learning_rate": rate,
        "initialisation": start,
        "output_scaling": scaling,
    }
    for place, (name, rate, start, scaling) in enumerate(
        zip(
            OBJECTIVES,
            (1.0e-3, 3.0e-3, 1.0e-3, 1.0e-2, 3.0e-3, 1.0e-3, 1.0e-2),
            (
                "pca_inverse",
                "random",
                "pca_inverse",
                "random",
                "pca_inverse",
                "random",
                "pca_inverse",
            ),
            (
                "calibrated",
                "unit_rms",
                "unit_rms",
                "calibrated",
                "calibrated",
                "calibrated",
                "unit_rms",
            ),
            strict=True,
        )
    )
]
"""One adapter per objective, with different seeds, starts and rates."""


BASELINES = [
    {"architecture": "affine"},
    {"architecture": "soft_codebook"},
    {"projection": "trained"},
    {"projection": "trained", "architecture": "affine"},
]


@pytest.fixture(scope="module")
def prepared(tiny_config):
    return study.prepare(
        tiny_config.replace(train_examples=20, batch_size=8, epochs=2, selection_every=2)
    )


def flat(adapter) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in adapter.parameters()])


def contexts_of(prepared, changes: list[dict]) -> list:
    configs = [prepared.config.replace(**change) for change in changes]
    return [study.objective_context(replace(prepared, config=config)) for config in configs]


def made(prepared, contexts) -> list:
    table, counts = prepared.lm.embedding_table, torch.from_numpy(prepared.counts)
    return [
        adapters.make(prepared.compression, table, counts, context.config) for context in contexts
    ]


def at_once(prepared, changes: list[dict]):
    contexts = contexts_of(prepared, changes)
    trained = made(prepared, contexts)
    found = train_together(
        trained, contexts, prepared.encoded["train"], prepared.counts, lambda some: [{}] * len(some)
    )
    return trained, found


def alone(prepared, change: dict):
    (context,) = contexts_of(prepared, [change])
    (adapter,) = made(prepared, [context])
    return adapter, train(
        adapter, context, prepared.encoded["train"], prepared.counts, lambda _: {}
    )


def test_every_objective_ends_where_it_ends_alone(prepared):
    trained, found = at_once(prepared, ADAPTERS)
    for change, adapter, progress in zip(ADAPTERS, trained, found, strict=True):
        expected, own = alone(prepared, change)
        assert torch.allclose(flat(adapter), flat(expected), atol=2e-4), change
        assert progress.step == own.step == 6
        assert progress.selection == own.selection
        for here, there in zip(progress.curve, own.curve, strict=True):
            assert here.keys() == there.keys()
            for name in here.keys() - {"seconds"}:
                assert here[name] == pytest.approx(there[name], rel=2e-3), (change, name)


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_ends_in_a_group_where_it_ends_alone(prepared, baseline):
    """The same with every architecture, for terms with and without the language model."""
    members: list[dict] = [
        {"objective": "option3_teacher_forced", "learning_rate": 1.0e-2},
        {"objective": "option1_reconstruction", "learning_rate": 3.0e-3, "seed": 1},
    ]
    if baseline.get("architecture") != "soft_codebook":
        members[1]["initialisation"] = "random"
    changes = [member | baseline | {"epochs": 1} for member in members]
    trained, found = at_once(prepared, changes)
    for change, adapter, progress in zip(changes, trained, found, strict=True):
        expected, own = alone(prepared, change)
        untrained = flat(made(prepared, contexts_of(prepared, [change]))[0])
        assert not torch.allclose(flat(expected), untrained, atol=1e-3)
        assert torch.allclose(flat(adapter), flat(expected), atol=2e-4), change
        for here, there in zip(progress.curve, own.curve, strict=True):
            assert here["loss"] == pytest.approx(there["loss"], rel=2e-3), change


def test_weights_norms_and_layouts_are_each_adapters_own(prepared):
    changes = [
        {
            "objective": "option3_teacher_forced",
            "reconstruction_weight": 100.0,
            "learning_rate": 1.0e-3,
        },
        {
            "objective": "option3_teacher_forced",
            "reconstruction_term": "fvu",
            "ce_weight": 0.1,
            "learning_rate": 1.0e-3,
        },
        {
            "objective": "answer_ce",
            "max_grad_norm": 0.01,
            "weight_decay": 0.5,
            "learning_rate": 1.0e-2,
        },
        {"objective": "as_found", "padding_layout": "no_padding", "learning_rate": 1.0e-3},
        {"objective": "as_found", "padding_layout": "no_gap", "learning_rate": 1.0e-3},
        {"objective": "as_found", "labels_on": "answer", "learning_rate": 1.0e-3},
    ]
    trained, _ = at_once(prepared, changes)
    for change, adapter in zip(changes, trained, strict=True):
        expected, _ = alone(prepared, change)
        assert torch.allclose(flat(adapter), flat(expected), atol=2e-4), change


def test_rows_may_be_read_in_passes_of_similar_length(prepared, monkeypatch):
    whole, _ = at_once(prepared, ADAPTERS)
    monkeypatch.setattr(shared_pass, "passes", lambda lengths, _: layouts.passes(lengths, 300))
    parts, _ = at_once(prepared, ADAPTERS)
    for change, one, other in zip(ADAPTERS, whole, parts, strict=True):
        assert torch.allclose(flat(one), flat(other), atol=2e-4), change


def test_passes_hold_every_row_once_and_rows_of_similar_length():
    lengths = np.array([9, 2, 7, 3, 8, 2])
    some = layouts.passes(lengths, 10)
    assert sorted(np.concatenate(some)) == list(range(6))
    assert [lengths[rows].tolist() for rows in some] == [[2, 2, 3], [7], [8], [9]]
    assert layouts.passes(lengths, None)[0].tolist() == list(range(6))


def test_passes_are_of_equal_size_so_that_no_single_row_is_left_over():
    some = layouts.passes(np.full(7, 5), 16)
    assert [len(rows) for rows in some] == [2, 2, 3]


class Waits(TorchDispatchMode):
    """Collects operations whose output has a shape that a GPU decides and the host waits for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_index = function is torch.ops.aten.index.Tensor
        marks = [x for x in args[1] if x is not None and x.dtype == torch.bool] if is_index else []
        if marks or function is torch.ops.aten.nonzero.default:
            self.found.append(function)
        return function(*args, **(kwargs or {}))


def test_no_pass_waits_for_positions_that_the_host_knows(prepared, monkeypatch):
    add_gradients, waits, calls = shared_pass.add_gradients, Waits(), []

    def watched(*given):
        calls.append(given)
        with waits:
            return add_gradients(*given)

    monkeypatch.setattr(shared_pass, "add_gradients", watched)
    at_once(prepared, ADAPTERS)
    assert calls and not waits.found
    with waits:
        torch.ones(3)[torch.tensor([True, False, True])]
    assert waits.found


def test_ranges_are_the_places_of_the_rows_items():
    assert layouts.ranges(np.array([2, 0, 3]), np.array([2, 0])).tolist() == [2, 3, 4, 0, 1]


def test_the_others_do_not_change_an_adapter(prepared):
    change = {"objective": "answer_ce", "learning_rate": 1.0e-3}
    (single,), _ = at_once(prepared, [change])
    with_others, _ = at_once(
        prepared, [{"objective": "distill", "seed": 5, "learning_rate": 1.0e-1}, change]
    )
    assert torch.allclose(flat(single), flat(with_others[1]), atol=2e-5)


def test_an_adapter_that_diverges_leaves_its_error_and_the_others_go_on(prepared):
    good = {"objective": "answer_ce", "learning_rate": 1.0e-3}
    bad = {
        "objective": "option3_teacher_forced",
        "learning_rate": 1.0e9,
        "max_grad_norm": 1.0e9,
        "warmup": 0.0,
    }
    trained, found = at_once(prepared, [bad, good | {"warmup": 0.0}])
    assert isinstance(found[0], TrainingError) and "expected a finite number" in str(found[0])
    expected, _ = alone(prepared, good | {"warmup": 0.0})
    assert found[1].step == 6
    assert torch.allclose(flat(trained[1]), flat(expected), atol=2e-4)


# ---------------------------------------------------------------- memory that runs out


def short_of_memory(monkeypatch, room: int, at: int = 0) -> list[int]:
    """Let passes of more than `room` positions run out of memory, from the `at`-th pass on.

    Returns a list that fills with the positions of the passes that were read.
    """
    losses_of, read = shared_pass.losses_of, []

    def limited(lm, rows, *rest):
        if len(read) >= at and rows.ids.numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        read.append(rows.ids.numel())
        return losses_of(lm, rows, *rest)

    monkeypatch.setattr(shared_pass, "losses_of", limited)
    return read


@pytest.mark.parametrize("at", [0, 3])
def test_where_memory_runs_out_passes_halve_for_good_and_change_no_adapter(
    prepared, monkeypatch, capsys, at
):
    whole, expected = at_once(prepared, ADAPTERS)
    assert "memory" not in capsys.readouterr().out
    read = short_of_memory(monkeypatch, 2_000, at)
    parts, found = at_once(prepared, ADAPTERS)
    assert max(read[at:]) <= 2_000 < sum(read[-4:])
    for change, one, other in zip(ADAPTERS, whole, parts, strict=True):
        assert torch.allclose(flat(one), flat(other), atol=2e-4), change
    for one, other in zip(expected, found, strict=True):
        losses = [[row["loss"] for row in progress.curve] for progress in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    said = [line for line in capsys.readouterr().out.splitlines() if "memory runs out" in line]
    assert 1 <= len(said) <= 6 and all("tokens at a time; going on with" in line for line in said)


def test_memory_that_runs_out_after_a_pass_repeats_none_of_its_gradients(prepared, monkeypatch):
    """The second pass of the first step fails once, when the first has left its gradients."""
    whole, _ = at_once(prepared, ADAPTERS)
    losses_of, calls = shared_pass.losses_of, []

    def failing_once(*given):
        calls.append(given)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return losses_of(*given)

    monkeypatch.setattr(shared_pass, "losses_of", failing_once)
    parts, _ = at_once(prepared, ADAPTERS)
    for change, one, other in zip(ADAPTERS, whole, parts, strict=True):
        assert torch.allclose(flat(one), flat(other), atol=2e-4), change


def test_a_row_that_does_not_fit_alone_stops_the_group_and_says_why(prepared, monkeypatch):
    short_of_memory(monkeypatch, 4)
    words = r"^memory runs out with one row of \d+ tokens; try recomputed=1\.0"
    with pytest.raises(TrainingError, match=words):
        at_once(prepared, ADAPTERS)


def test_answers_are_generated_in_batches_that_fit(prepared, monkeypatch):
    changes = [{"objective": "option2_on_policy", "seed": seed} for seed in (0, 1)]
    whole, _ = at_once(prepared, changes)
    greedy_ids, sizes = together.greedy_ids, []

    def limited(lm, prompts, *rest):
        if len(prompts) > 3:
            raise torch.OutOfMemoryError
        sizes.append(len(prompts))
        return greedy_ids(lm, prompts, *rest)

    monkeypatch.setattr(together, "greedy_ids", limited)
    parts, _ = at_once(prepared, changes)
    assert max(sizes) in (2, 3) and len(sizes) > 6
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(flat(one), flat(other), atol=2e-4)
