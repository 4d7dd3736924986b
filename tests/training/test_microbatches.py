"""Microbatches, and memory that runs out: the same training up to rounding."""

import pytest
import torch
from training_bench import (
    BASE,
    RULES,
    Interrupted,
    N,
    assert_close,
    assert_identical,
    interrupt,
    run_out_of_memory,
    watch,
)

from stage1 import objectives
from stage1.names import OBJECTIVES
from stage1.training import TrainingError

EPOCH = BASE.replace(epochs=1)
OPTION3 = EPOCH.replace(objective="option3_teacher_forced")
PASSED = ["answer_ce", "option3_teacher_forced", "option2_prompt_ce", "option2_on_policy"]


@pytest.mark.parametrize("size, packed", [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("objective", PASSED)
def test_microbatches_of_any_size_train_as_the_whole_batch_does(bench, objective, size, packed):
    config = EPOCH.replace(objective=objective, packed=packed)
    assert_close(bench.train(config.replace(micro_batch_size=size)), bench.trained(config))


@pytest.mark.parametrize("size", [8, 100])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_that_fits_one_microbatch_trains_bit_for_bit_the_same(bench, objective, size):
    config = EPOCH.replace(objective=objective, temperature=1.0)
    assert_identical(bench.train(config.replace(micro_batch_size=size)), bench.trained(config))


@pytest.mark.parametrize("rule", RULES)
def test_terms_are_balanced_over_the_whole_batch_and_not_by_microbatch(bench, rule):
    config = OPTION3.replace(balancing=rule, initialisation="random")
    assert_close(bench.train(config.replace(micro_batch_size=3)), bench.trained(config))


def test_token_counts_are_not_split_into_microbatches(bench, monkeypatch):
    sizes = []
    watch(monkeypatch, "option1_reconstruction", lambda call, batch: sizes.append(len(batch)))
    bench.train(EPOCH.replace(objective="option1_reconstruction", micro_batch_size=1))
    assert len(sizes) == 4 and min(sizes) > 8


def test_a_microbatch_has_as_many_examples_as_the_config_says_or_fewer(bench, monkeypatch):
    sizes = []
    watch(monkeypatch, "answer_ce", lambda call, batch: sizes.append(len(batch)))
    bench.train(EPOCH.replace(micro_batch_size=3))
    assert sorted(sizes[:3]) == [2, 3, 3] and sizes[9:] == [3, 3]


@pytest.mark.parametrize("at, packed", [(0, False), (2, True)])
@pytest.mark.parametrize("objective", PASSED)
def test_where_memory_runs_out_training_continues_in_halves_and_says_so_once(
    bench, monkeypatch, capsys, objective, at, packed
):
    config = EPOCH.replace(objective=objective, packed=packed)
    expected = bench.trained(config)
    assert "memory" not in capsys.readouterr().out
    read = run_out_of_memory(monkeypatch, objective, room=4, at=at)
    assert_close(bench.train(config), expected)
    steps = [[8]] * at + [[4, 4], [4, 4], [4, 4], [3, 3]][at:]
    assert [len(batch) for batch in read] == [size for step in steps for size in step]
    output = capsys.readouterr().out
    assert f"step {at}: memory runs out with 8 examples at a time; going on with 4" in output
    assert output.count("memory runs out") == 1


def test_memory_may_run_out_again_and_again(bench, monkeypatch, capsys):
    expected = bench.trained(EPOCH)
    read = run_out_of_memory(monkeypatch, "answer_ce", room=1)
    assert_close(bench.train(EPOCH), expected)
    assert [len(batch) for batch in read] == [1] * N
    output = capsys.readouterr().out
    assert [f"with {size} examples" in output for size in (8, 4, 2, 1)] == [True, True, True, False]
    assert output.count("memory runs out") == 3


def test_memory_that_runs_out_in_a_later_microbatch_loses_and_repeats_none(bench, monkeypatch):
    """At the fourth call, the first half of the second batch has been read already."""
    config = EPOCH.replace(micro_batch_size=4)
    expected = bench.trained(config)

    def fail_once(call, batch):
        if call == 3:
            raise torch.OutOfMemoryError

    watch(monkeypatch, "answer_ce", fail_once)
    assert_close(bench.train(config), expected)


@pytest.mark.parametrize(
    "fraction, kept", [(0.25, [2, 2, 2, 2]), (0.5, [4, 4, 4, 3]), (0.0, [0] * 4)]
)
def test_the_share_of_gold_answers_is_that_of_the_batch_in_microbatches_too(
    bench, monkeypatch, fraction, kept
):
    generated, generate_answers = [], objectives.generate_answers

    def counted(adapter, prompts, context):
        generated.append(len(prompts))
        return generate_answers(adapter, prompts, context)

    monkeypatch.setattr(objectives, "generate_answers", counted)
    read = run_out_of_memory(monkeypatch, "option2_on_policy", room=2)
    bench.train(EPOCH.replace(objective="option2_on_policy", gold_fraction=fraction))
    sizes = [len(batch) for batch in read]
    assert len(sizes) == len(generated) == 15 and max(sizes) == 2
    for step, gold in enumerate(kept):
        part = slice(4 * step, min(4 * step + 4, 15))
        assert sum(sizes[part]) - sum(generated[part]) == gold
        assert sum(sum(batch.keeps_gold) for batch in read[part]) == gold


@pytest.mark.parametrize("at", [0, 3])
def test_one_example_that_does_not_fit_stops_the_training_by_its_step(bench, monkeypatch, at):
    run_out_of_memory(monkeypatch, "answer_ce", room=0, at=at)
    words = rf"^step {at}: memory runs out with one example at a time; try recomputed"
    with pytest.raises(TrainingError, match=words):
        bench.train(EPOCH)


def test_an_error_other_than_of_memory_is_not_retried(bench, monkeypatch):
    def fail(call, batch):
        assert call == 0, "tried again"
        raise RuntimeError("something else")

    watch(monkeypatch, "answer_ce", fail)
    with pytest.raises(RuntimeError, match="something else"):
        bench.train(EPOCH)


def test_a_training_short_of_memory_may_be_interrupted(bench, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint.pt"
    run_out_of_memory(monkeypatch, OPTION3.objective, room=4)
    whole = bench.train(OPTION3)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, OPTION3.objective, 7)
        bench.train(OPTION3, checkpoint=checkpoint)
    assert_close(bench.train(OPTION3, checkpoint=checkpoint), whole)


@pytest.mark.parametrize("rule", RULES)
def test_readings_of_the_gradients_fit_where_the_step_does(bench, monkeypatch, rule):
    config = OPTION3.replace(gradients_every=2, balancing=rule, initialisation="random")
    _, expected = bench.trained(config)
    read = run_out_of_memory(monkeypatch, config.objective, room=4)
    _, progress = bench.train(config)
    assert max(map(len, read)) == 4 and len(progress.gradients) == len(expected.gradients) == 4
    for row, wanted in zip(progress.gradients, expected.gradients, strict=True):
        assert row["term"] == wanted["term"]
        numbers = [name for name in row if name != "term"]
        expected_numbers = pytest.approx([wanted[name] for name in numbers], rel=1e-3, abs=1e-5)
        assert [row[name] for name in numbers] == expected_numbers
