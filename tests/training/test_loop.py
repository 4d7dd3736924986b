"""The training loop: what a step reads and records, that it repeats and resumes bit for bit, and when it stops."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage1 import adapter as adapters
from stage1 import objectives, store
from stage1.adapter import Adapter
from stage1.compress import Compression, fit_pca, variance
from stage1.config import StudyConfig
from stage1.corpus import almanac
from stage1.corpus.prompts import Encoded, encode, token_counts
from stage1.model import language_model
from stage1.model.language_model import FrozenLM
from stage1.objectives import OBJECTIVES, ExampleBatch, ObjectiveContext, Term, TokenCounts
from stage1.training import loss_scale
from stage1.training.batches import examples_at, steps_per_epoch, token_distribution, tokens_at
from stage1.training.loop import Progress, TrainingError, curve_table, train

N = 30  # examples: at a batch size of 8 that is 4 steps an epoch, the last one of 6
BASE = StudyConfig(
    device="cpu",
    compressed_width=4,
    batch_size=8,
    epochs=2,
    learning_rate=1.0e-2,
    max_prompt_tokens=12,
    max_answer_tokens=4,
    max_new_tokens=3,
    selection_every=3,
    checkpoint_every=2,
)


class Interrupted(Exception):
    """Stands for Ctrl-C or a lost machine."""


def made_up(n: int, seed: int = 0) -> Encoded:
    """Examples of random tokens; every first prompt token is another one, so that an example is known by it."""
    rng = np.random.default_rng(seed)
    firsts = 10 + rng.permutation(4_000)[:n]
    prompts = [
        [int(first), *rng.integers(3, 4_096, rng.integers(3, 12)).tolist()] for first in firsts
    ]
    answers = [[*rng.integers(3, 4_096, rng.integers(0, 4)).tolist(), 2] for _ in range(n)]
    names = [str(i) for i in range(n)]
    return Encoded(names, names, [["x"]] * n, prompts, answers, shortened=0, dropped=0)


def weights_of(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in adapter.state_dict().items()}


def same_weights(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_seconds(curve: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in curve]


def fingerprint(adapter: Adapter) -> dict[str, float]:
    """What the tests watch: it changes with any weight."""
    return {
        "sum": float(
            sum(parameter.detach().double().abs().sum() for parameter in adapter.parameters())
        )
    }


@dataclass
class Bench:
    """The tiny model with a little training set, and one line to train on it."""

    lm: FrozenLM
    encoded: Encoded
    counts: np.ndarray
    compression: Compression

    def adapter(self, config: StudyConfig) -> Adapter:
        return adapters.make(
            self.compression, self.lm.embedding_table, torch.from_numpy(self.counts), config
        )

    def context(self, config: StudyConfig) -> ObjectiveContext:
        spread = variance(self.lm.embedding_table, torch.from_numpy(self.counts))
        return ObjectiveContext(
            self.lm, self.compression.compress(self.lm.embedding_table), config, spread
        )

    def train(
        self, config, watch=fingerprint, checkpoint: Path | None = None, adapter=None
    ) -> tuple[dict, Progress]:
        adapter = adapter or self.adapter(config)
        progress = train(
            adapter, self.context(config), self.encoded, self.counts, watch, checkpoint
        )
        return weights_of(adapter), progress


@pytest.fixture(scope="module")
def bench(tiny_folder) -> Bench:
    lm = language_model.load(BASE.replace(language_model=str(tiny_folder)))
    encoded = made_up(N)
    counts = token_counts(encoded.prompts, len(lm.embedding_table))
    return Bench(lm, encoded, counts, fit_pca(lm.embedding_table, torch.from_numpy(counts), 4))


def pretend(monkeypatch, values, before=lambda adapter, call: None) -> None:
    """Put in the place of `answer_ce` a term with the given values, one per step, and a gradient of one."""
    calls = iter(range(len(values)))

    def answer_ce(adapter, batch: ExampleBatch, context: ObjectiveContext):
        call = next(calls)
        before(adapter, call)
        return {"pretended": Term(values[call] + adapter.gain - adapter.gain.detach(), 1)}

    monkeypatch.setitem(OBJECTIVES, "answer_ce", answer_ce)


# ---------------------------------------------------------------- batches


@given(
    n=st.integers(1, 40), size=st.integers(1, 12), seed=st.integers(0, 5), epoch=st.integers(0, 3)
)
def test_every_example_is_seen_once_an_epoch(n, size, seed, epoch):
    encoded, config = made_up(n), BASE.replace(batch_size=size, seed=seed)
    steps = steps_per_epoch(config, n)
    batches = [examples_at(config, encoded, epoch * steps + place) for place in range(steps)]
    seen = [
        (prompt, answer)
        for batch in batches
        for prompt, answer in zip(batch.prompts, batch.answers, strict=True)
    ]
    assert sorted(seen) == sorted(zip(encoded.prompts, encoded.answers, strict=True))
    assert [len(batch.prompts) for batch in batches[:-1]] == [size] * (steps - 1)
    assert 1 <= len(batches[-1].prompts) <= size


def order_of(epoch: int, seed: int) -> list[int]:
    encoded, config = made_up(N), BASE.replace(seed=seed)
    return [
        prompt[0]
        for place in range(4)
        for prompt in examples_at(config, encoded, 4 * epoch + place).prompts
    ]


def test_the_order_of_the_examples_differs_between_epochs_and_seeds_and_from_the_datas_own():
    orders = [order_of(epoch, seed) for epoch in range(3) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert [prompt[0] for prompt in made_up(N).prompts] not in orders
    assert order_of(1, 2) == order_of(1, 2)


@pytest.mark.parametrize("objective", ["answer_ce", "option1_reconstruction"])
def test_an_uneven_last_batch_is_counted_once(bench, objective):
    _, progress = bench.train(BASE.replace(objective=objective))
    assert [row["examples"] for row in progress.curve] == [8, 8, 8, 6] * 2
    table = curve_table(progress)
    assert table["examples_seen"].tolist() == [8, 16, 24, 30, 38, 46, 54, 60]
    assert (
        table["seconds_total"].iloc[-1] == pytest.approx(table["seconds"].sum())
        and (table["seconds"] > 0).all()
    )


def test_fewer_examples_than_a_batch_are_one_step_an_epoch(bench):
    _, progress = bench.train(BASE.replace(batch_size=100, objective="answer_ce"))
    assert [row["examples"] for row in progress.curve] == [N, N]


def draw(counts: np.ndarray, tokens: int, step: int, seed: int = 0) -> TokenCounts:
    return tokens_at(
        BASE.replace(seed=seed), token_distribution(counts), tokens, step, torch.device("cpu")
    )


@given(tokens=st.integers(1, 300), step=st.integers(0, 50), seed=st.integers(0, 3))
def test_drawn_tokens_are_as_many_as_asked_for_and_occur_in_the_prompts(tokens, step, seed):
    drawn = draw(np.array([0, 5, 0, 1, 20, 3, 0]), tokens, step, seed)
    assert int(drawn.counts.sum()) == tokens and (drawn.counts > 0).all()
    assert set(drawn.ids.tolist()) <= {1, 3, 4, 5} and len(set(drawn.ids.tolist())) == len(
        drawn.ids
    )


def test_drawn_tokens_are_the_same_every_time_and_others_at_each_step_and_seed():
    def drawn(step, seed):
        tokens = draw(np.arange(50), 200, step, seed)
        return tuple(tokens.ids.tolist()), tuple(tokens.counts.tolist())

    assert drawn(3, 1) == drawn(3, 1)
    assert len({drawn(step, seed) for step in range(4) for seed in range(4)}) == 16


@given(
    data=st.data(), tokens=st.integers(1, 12_000), step=st.integers(0, 50), seed=st.integers(0, 3)
)
def test_tokens_that_never_occur_change_no_draw(data, tokens, step, seed):
    """NumPy's multinomial takes no random number for a category of probability zero."""
    size = st.integers(0, 3) | st.integers(0, 100_000)
    counts = np.array(data.draw(st.lists(size, min_size=2, max_size=300).filter(any)))
    whole = np.random.default_rng([seed, step]).multinomial(tokens, counts / counts.sum())
    drawn = draw(counts, tokens, step, seed)
    np.testing.assert_array_equal(drawn.ids, whole.nonzero()[0])
    np.testing.assert_array_equal(drawn.counts, whole[whole > 0])


def test_tokens_that_never_occur_change_no_draw_of_a_large_vocabulary():
    rng = np.random.default_rng(0)
    counts = np.zeros(128_256, dtype=np.int64)
    counts[rng.permutation(128_256)[:25_000]] = 1 + 60_000 // np.arange(1, 25_001)
    for step in range(3):
        whole = np.random.default_rng([0, step]).multinomial(11_500, counts / counts.sum())
        drawn = draw(counts, 11_500, step)
        np.testing.assert_array_equal(drawn.ids, whole.nonzero()[0])
        np.testing.assert_array_equal(drawn.counts, whole[whole > 0])


def test_tokens_are_drawn_as_often_as_they_occur():
    drawn = draw(np.array([0, 1, 3, 0, 6]), 100_000, 0)
    assert drawn.ids.tolist() == [1, 2, 4]
    np.testing.assert_allclose(drawn.counts / 100_000, [0.1, 0.3, 0.6], atol=0.01)


def test_reconstruction_draws_as_many_tokens_as_a_batch_has_on_average(bench):
    _, progress = bench.train(BASE.replace(objective="option1_reconstruction"))
    total = sum(map(len, bench.encoded.prompts))
    assert bench.counts.sum() == total
    wanted = [round(size * total / N) for size in (8, 8, 8, 6)] * 2
    assert [row["reconstruction_tokens"] for row in progress.curve] == wanted


# ---------------------------------------------------------------- the same again


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_config_trains_the_same_adapter_every_time_and_another_seed_another(bench, objective):
    config = BASE.replace(objective=objective, temperature=1.0)
    (first, one), (second, two) = bench.train(config), bench.train(config)
    other, three = bench.train(config.replace(seed=1))
    assert same_weights(first, second) and not same_weights(first, other)
    assert without_seconds(one.curve) == without_seconds(two.curve) != without_seconds(three.curve)
    assert one.selection == two.selection != three.selection


@pytest.mark.parametrize("objective", ["option1_reconstruction", "answer_ce"])
def test_the_seed_decides_the_batches_and_not_only_the_first_weights(bench, objective):
    config = BASE.replace(objective=objective)
    same_start = [bench.adapter(config) for _ in range(2)]
    (_, one), (_, two) = (
        bench.train(config.replace(seed=seed), adapter=adapter)
        for seed, adapter in enumerate(same_start)
    )
    assert one.selection[0] == two.selection[0]
    assert one.curve[0] != two.curve[0]


def test_what_was_drawn_before_and_meanwhile_changes_nothing(bench):
    config = BASE.replace(objective="option2_on_policy", temperature=1.0, gold_fraction=0.0)
    adapters_ = [bench.adapter(config) for _ in range(2)]
    quiet, _ = bench.train(config, adapter=adapters_[0])
    torch.manual_seed(99)
    np.random.seed(99)
    noisy, _ = bench.train(
        config, lambda adapter: {"noise": float(torch.rand(()))}, adapter=adapters_[1]
    )
    assert same_weights(quiet, noisy)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_objective_changes_the_language_model(bench, objective):
    before = bench.lm.checksum()
    with bench.lm.unchanged():
        weights, _ = bench.train(BASE.replace(objective=objective))
    assert bench.lm.checksum() == before
    assert all(parameter.grad is None for parameter in bench.lm.model.parameters())
    assert not same_weights(weights, weights_of(bench.adapter(BASE)))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_compression_within_the_adapter_is_not_trained(bench, objective):
    weights, _ = bench.train(BASE.replace(objective=objective))
    assert torch.equal(weights["components"], bench.compression.components)
    assert torch.equal(weights["mean"], bench.compression.mean)


# ---------------------------------------------------------------- checkpoints


def stop_objective(monkeypatch, objective: str, at: int) -> None:
    """Let the objective raise when it is called for the `at`-th time."""
    original, calls = OBJECTIVES[objective], iter(range(1_000))

    def interrupted(adapter, batch, context):
        if next(calls) == at:
            raise Interrupted
        return original(adapter, batch, context)

    def on_tokens(adapter, batch: TokenCounts, context: ObjectiveContext):
        return interrupted(adapter, batch, context)

    def on_examples(adapter, batch: ExampleBatch, context: ObjectiveContext):
        return interrupted(adapter, batch, context)

    monkeypatch.setitem(
        OBJECTIVES, objective, on_tokens if objectives.reads_tokens(original) else on_examples
    )


RESUMED = ["option1_reconstruction", "option3_teacher_forced", "option2_on_policy"]


@pytest.mark.parametrize("objective", RESUMED)
@pytest.mark.parametrize("at", [1, 2, 5, 7])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    bench, tmp_path, monkeypatch, objective, at
):
    config = BASE.replace(objective=objective, temperature=1.0, gold_fraction=0.0)
    whole, expected = bench.train(config)
    checkpoint = tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_objective(patch, objective, at)
        bench.train(config, checkpoint=checkpoint)
    assert checkpoint.exists() == (at >= 2)
    fresh = bench.adapter(config)
    if checkpoint.exists():  # all weights come from the checkpoint
        torch.nn.init.ones_(fresh.mlp[0].weight)
        assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == at - at % 2
    resumed, progress = bench.train(config, checkpoint=checkpoint, adapter=fresh)
    assert same_weights(resumed, whole)
    assert without_seconds(progress.curve) == without_seconds(expected.curve)
    assert (progress.selection, progress.step) == (expected.selection, expected.step)


@pytest.mark.parametrize("at", [0, 3, 6, 8])
def test_a_training_interrupted_while_it_is_measured_ends_where_an_uninterrupted_one_does(
    bench, tmp_path, at
):
    config = BASE.replace(objective="answer_ce")
    whole, expected = bench.train(config)
    rows = iter(expected.selection)

    def interrupted(adapter):
        if next(rows)["step"] == at:
            raise Interrupted
        return fingerprint(adapter)

    with pytest.raises(Interrupted):
        bench.train(config, interrupted, tmp_path / "checkpoint.pt")
    resumed, progress = bench.train(config, checkpoint=tmp_path / "checkpoint.pt")
    assert same_weights(resumed, whole)
    assert without_seconds(progress.curve) == without_seconds(expected.curve)
    assert progress.selection == expected.selection


def test_a_training_may_be_interrupted_again_and_again(bench, tmp_path, monkeypatch):
    config = BASE.replace(objective="option3_teacher_forced", checkpoint_every=1)
    whole, expected = bench.train(config)
    for _ in range(7):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            stop_objective(patch, config.objective, 1)
            bench.train(config, checkpoint=tmp_path / "checkpoint.pt")
    resumed, progress = bench.train(config, checkpoint=tmp_path / "checkpoint.pt")
    assert same_weights(resumed, whole) and progress.selection == expected.selection
    assert without_seconds(progress.curve) == without_seconds(expected.curve)


def test_a_finished_training_is_not_continued(bench, tmp_path, monkeypatch):
    config, checkpoint = BASE.replace(objective="answer_ce"), tmp_path / "checkpoint.pt"
    whole, expected = bench.train(config, checkpoint=checkpoint)
    stop_objective(monkeypatch, "answer_ce", 0)
    again, progress = bench.train(config, checkpoint=checkpoint)
    assert same_weights(again, whole) and progress == expected


@pytest.mark.parametrize("every, written", [(0, False), (3, True), (100, False)])
def test_a_checkpoint_is_written_as_often_as_the_config_says(bench, tmp_path, every, written):
    bench.train(
        BASE.replace(objective="answer_ce", checkpoint_every=every),
        checkpoint=tmp_path / "checkpoint.pt",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"] * written
    if written:
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert state["progress"]["step"] == 6 and len(state["progress"]["curve"]) == 6


@pytest.mark.parametrize(
    "change", [{"learning_rate": 2.0e-2}, {"seed": 1}, {"epochs": 3}, {"objective": "distill"}]
)
def test_a_checkpoint_of_another_config_is_refused_by_its_path(bench, tmp_path, change):
    config, checkpoint = BASE.replace(objective="answer_ce"), tmp_path / "checkpoint.pt"
    bench.train(config, checkpoint=checkpoint)
    adapter = bench.adapter(config.replace(**change))
    before = weights_of(adapter)
    with pytest.raises(store.RecordError, match=r"checkpoint\.pt: is no checkpoint of this config"):
        bench.train(config.replace(**change), checkpoint=checkpoint, adapter=adapter)
    assert same_weights(weights_of(adapter), before) and checkpoint.exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_by_its_path(bench, tmp_path, share):
    config, checkpoint = BASE.replace(objective="answer_ce"), tmp_path / "checkpoint.pt"
    bench.train(config, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[: int(share * checkpoint.stat().st_size)])
    with pytest.raises(store.RecordError, match=r"checkpoint\.pt: truncated or malformed"):
        bench.train(config, checkpoint=checkpoint)


@pytest.mark.parametrize("saved", [{"a": 1}, {}, [1, 2], torch.zeros(3), {"config": None}])
def test_a_file_that_is_no_checkpoint_at_all_is_refused_by_its_path_and_kept(
    bench, tmp_path, saved
):
    config, checkpoint = BASE.replace(objective="answer_ce"), tmp_path / "checkpoint.pt"
    torch.save(saved, checkpoint)
    adapter = bench.adapter(config)
    before, content = weights_of(adapter), checkpoint.read_bytes()
    with pytest.raises(
        store.RecordError, match=r"checkpoint\.pt: is no checkpoint of this config; delete it"
    ):
        bench.train(config, lambda adapter: pytest.fail("measured"), checkpoint, adapter)
    assert same_weights(weights_of(adapter), before) and checkpoint.read_bytes() == content


# ---------------------------------------------------------------- bad losses


@pytest.mark.parametrize(
    "objective, term",
    [
        ("option1_reconstruction", "reconstruction"),
        ("answer_ce", "cross_entropy"),
        ("distill", "kl"),
    ],
)
def test_a_poisoned_adapter_is_stopped_at_the_first_step_by_the_name_of_its_term(
    bench, objective, term
):
    config = BASE.replace(objective=objective)
    adapter = bench.adapter(config)
    torch.nn.init.constant_(adapter.skip.bias, math.nan)
    before = weights_of(adapter)
    with pytest.raises(
        TrainingError, match=rf"^step 0: {term}=nan .*expected a finite number.*learning_rate"
    ):
        bench.train(config, adapter=adapter)
    after = weights_of(adapter)
    assert all(torch.equal(after[name], before[name]) for name in before if name != "skip.bias")


@pytest.mark.parametrize(
    "bad, said", [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (3_001.0, "3001")]
)
def test_a_bad_term_stops_the_training_before_the_weights_change(bench, monkeypatch, bad, said):
    seen = []
    pretend(
        monkeypatch, [3.0, 2.0, 5.0, bad], lambda adapter, call: seen.append(weights_of(adapter))
    )
    config = BASE.replace(objective="answer_ce")
    adapter = bench.adapter(config)
    with pytest.raises(TrainingError, match=rf"^step 3: pretended={said} \(first step 3\)"):
        bench.train(config, adapter=adapter)
    assert same_weights(weights_of(adapter), seen[3]) and not same_weights(seen[3], seen[1])


@pytest.mark.parametrize(
    "first, highest", [(3.0, 3_000.0), (1.0, 1_000.0), (0.5, 1_000.0), (0.0, 1_000.0)]
)
def test_a_term_has_exploded_at_a_thousand_times_its_first_value_or_of_one(
    bench, monkeypatch, first, highest
):
    config = BASE.replace(objective="answer_ce", epochs=1)
    pretend(monkeypatch, [first, highest, highest / 2, highest])
    assert len(bench.train(config)[1].curve) == 4
    pretend(monkeypatch, [first, highest, highest * 1.001])
    with pytest.raises(TrainingError, match=r"^step 2: pretended="):
        bench.train(config)


def test_a_gradient_that_is_no_number_stops_the_training_though_the_loss_is_fine(
    bench, monkeypatch
):
    def answer_ce(adapter, batch: ExampleBatch, context: ObjectiveContext):
        nothing = (adapter.gain - adapter.gain.detach()).abs().sqrt()  # 0, with an infinite slope
        return {"pretended": Term(1.0 + nothing, 1)}

    monkeypatch.setitem(OBJECTIVES, "answer_ce", answer_ce)
    with pytest.raises(TrainingError, match=r"^step 0: gradient_norm="):
        bench.train(BASE.replace(objective="answer_ce"))


def test_a_learning_rate_that_is_far_too_high_is_stopped(bench):
    config = BASE.replace(objective="option1_reconstruction", learning_rate=1.0e6, epochs=5)
    with pytest.raises(TrainingError, match=r"^step [1-9]\d*: reconstruction="):
        bench.train(config)


def test_no_training_examples_are_refused(bench):
    empty = Encoded([], [], [], [], [], shortened=0, dropped=3)
    with pytest.raises(ValueError, match="train_examples=0: expected at least one"):
        train(bench.adapter(BASE), bench.context(BASE), empty, bench.counts, fingerprint)


def test_an_unknown_objective_is_refused_before_anything_is_measured(bench):
    with pytest.raises(ValueError, match=r"did you mean 'answer_ce'"):
        bench.train(
            BASE.replace(objective="answer_cee"), watch=lambda adapter: pytest.fail("measured")
        )


# ---------------------------------------------------------------- records


def test_a_step_records_every_term_with_its_weight_and_tokens(bench):
    config = BASE.replace(
        objective="option3_teacher_forced", reconstruction_weight=0.5, ce_weight=2.0
    )
    _, progress = bench.train(config)
    assert [row["step"] for row in progress.curve] == list(range(8))
    for step, row in enumerate(progress.curve):
        terms = {
            f"{term}{end}"
            for term in ("reconstruction", "cross_entropy")
            for end in ("", "_weighted", "_tokens")
        }
        assert set(row) == terms | {
            "loss",
            "gradient_norm",
            "learning_rate",
            "seconds",
            "examples",
            "step",
        }
        assert row["reconstruction_weighted"] == pytest.approx(0.5 * row["reconstruction"])
        assert row["cross_entropy_weighted"] == pytest.approx(2.0 * row["cross_entropy"])
        assert row["loss"] == pytest.approx(
            row["reconstruction_weighted"] + row["cross_entropy_weighted"]
        )
        batch = examples_at(config, bench.encoded, step)
        assert row["reconstruction_tokens"] == sum(map(len, batch.prompts))
        assert row["cross_entropy_tokens"] == sum(map(len, batch.answers))


@pytest.mark.parametrize("objective", ["as_found", "answer_ce", "distill", "option2_prompt_ce"])
def test_the_first_row_is_the_objective_of_the_first_batch_before_any_step(bench, objective):
    config = BASE.replace(objective=objective)
    _, progress = bench.train(config)
    batch = examples_at(config, bench.encoded, 0)
    terms = OBJECTIVES[objective](bench.adapter(config), batch, bench.context(config))
    for name, term in terms.items():
        assert progress.curve[0][name] == pytest.approx(term.value.item(), rel=1e-6)
        assert progress.curve[0][f"{name}_tokens"] == term.tokens


def test_the_learning_rate_warms_up_in_a_line_and_falls_in_a_cosine(bench):
    config = BASE.replace(
        objective="option1_reconstruction", epochs=5, warmup=0.2, learning_rate=1.0e-3
    )
    _, progress = bench.train(config)
    rates = [row["learning_rate"] for row in progress.curve]
    falling = [0.5 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert rates == pytest.approx([1.0e-3 * share for share in [0, 0.25, 0.5, 0.75, *falling]])
    assert max(rates) == 1.0e-3 and rates[-1] < 0.01 * max(rates)


def test_without_warm_up_the_first_step_has_the_full_rate(bench):
    _, progress = bench.train(BASE.replace(objective="option1_reconstruction", warmup=0.0))
    assert progress.curve[0]["learning_rate"] == BASE.learning_rate


def slope_of_five(monkeypatch) -> None:
    """Put in the place of `answer_ce` a loss whose gradient has the norm 5 (3 and 4 in two of its parameters)."""

    def answer_ce(adapter, batch: ExampleBatch, context: ObjectiveContext):
        return {"line": Term(3 * adapter.gain + 4 * adapter.output_norm.bias[0], 1)}

    monkeypatch.setitem(OBJECTIVES, "answer_ce", answer_ce)


@pytest.mark.parametrize("limit, share", [(0.5, 0.1), (5.1, 1.0), (1.0e-3, 2.0e-4)])
def test_the_recorded_gradient_norm_is_that_before_clipping(bench, monkeypatch, limit, share):
    slope_of_five(monkeypatch)
    config = BASE.replace(objective="answer_ce", max_grad_norm=limit)
    adapter = bench.adapter(config)
    _, progress = bench.train(config, adapter=adapter)
    assert [row["gradient_norm"] for row in progress.curve] == pytest.approx([5.0] * 8)
    assert float(adapter.gain.grad) == pytest.approx(3 * share, rel=1e-4)
    assert float(adapter.output_norm.bias.grad[0]) == pytest.approx(4 * share, rel=1e-4)


def test_a_tiny_limit_on_the_gradient_bounds_the_step(bench, monkeypatch):
    slope_of_five(monkeypatch)
    config = BASE.replace(objective="answer_ce", weight_decay=0.0, warmup=0.0, epochs=1)
    moved = []
    for limit in (1.0, 1.0e-12):  # far below AdamW's epsilon of 1e-8
        adapter = bench.adapter(config)
        before = adapter.gain.item()
        bench.train(config.replace(max_grad_norm=limit), adapter=adapter)
        moved.append(abs(adapter.gain.item() - before))
    assert 1.0e-2 < moved[0] < 4.1e-2  # four steps of at most the learning rate, down a cosine
    assert moved[1] < 1.0e-3 * moved[0]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weight_decay_shrinks_what_the_loss_does_not_hold(bench, monkeypatch, decay):
    def answer_ce(adapter, batch: ExampleBatch, context: ObjectiveContext):
        return {"line": Term(adapter.gain + 0 * adapter.skip.weight.sum(), 1)}

    monkeypatch.setitem(OBJECTIVES, "answer_ce", answer_ce)
    config = BASE.replace(
        objective="answer_ce", weight_decay=decay, warmup=0.0, batch_size=N, epochs=1
    )
    adapter = bench.adapter(config)
    before = adapter.skip.weight.detach().clone()
    bench.train(config, adapter=adapter)  # one step, by the learning rate times the decay
    torch.testing.assert_close(adapter.skip.weight.detach(), before * (1 - 1.0e-2 * decay))


@pytest.mark.parametrize(
    "every, steps", [(3, [0, 3, 6, 8]), (4, [0, 4, 8]), (0, [0, 8]), (100, [0, 8]), (8, [0, 8])]
)
def test_the_selection_split_is_measured_before_on_the_way_and_once_at_the_end(bench, every, steps):
    seen = []

    def watch(adapter):
        seen.append(fingerprint(adapter)["sum"])
        return fingerprint(adapter)

    config = BASE.replace(objective="answer_ce", selection_every=every)
    weights, progress = bench.train(config, watch)
    assert [row["step"] for row in progress.selection] == steps
    assert [row["sum"] for row in progress.selection] == seen and len(set(seen)) == len(seen)
    assert seen[0] == fingerprint(bench.adapter(config))["sum"]
    last = bench.adapter(config)
    last.load_state_dict(weights)
    assert seen[-1] == fingerprint(last)["sum"]


# ---------------------------------------------------------------- the scale of the terms

SEVERAL = ["as_found", "option3_teacher_forced"]
RULES = ["fixed", "equal_gradient_norms", "uncertainty"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("objective", SEVERAL)
def test_reading_the_gradients_changes_no_training(bench, objective, rule):
    """The terms are differentiated one by one then, so that the last bits may differ."""
    config = BASE.replace(objective=objective, balancing=rule, ce_weight=0.5)
    (plain, one), (read, two) = bench.train(config), bench.train(config.replace(gradients_every=1))
    assert not one.gradients and two.gradients
    for name, tensor in plain.items():
        torch.testing.assert_close(read[name], tensor, rtol=1e-5, atol=2e-6)
    for before, after in zip(without_seconds(one.curve), without_seconds(two.curve), strict=True):
        assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("every, steps", [(3, [0, 3, 6]), (1, range(8)), (8, [0]), (0, [])])
def test_the_gradients_are_read_as_often_as_the_config_says(bench, every, steps):
    _, progress = bench.train(
        BASE.replace(objective="option3_teacher_forced", gradients_every=every)
    )
    places = [(row["step"], row["term"]) for row in progress.gradients]
    assert places == [
        (step, term) for step in steps for term in ("reconstruction", "cross_entropy")
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("objective", SEVERAL)
def test_a_reading_agrees_with_the_curve_and_its_shares_add_up_to_one(bench, objective, rule):
    config = BASE.replace(
        objective=objective, balancing=rule, gradients_every=2, initialisation="random"
    )
    _, progress = bench.train(config)
    assert len(progress.gradients) == 8
    for one, other in zip(progress.gradients[::2], progress.gradients[1::2], strict=True):
        row = progress.curve[one["step"]]
        for share in ("gradient_share", "step_share"):
            assert one[share] + other[share] == pytest.approx(1, abs=1e-4)
        for name in ("cosine", "embedding_cosine"):
            assert one[name] == pytest.approx(other[name], abs=1e-5) and abs(one[name]) <= 1 + 1e-5
        pulls = [reading["weight"] * reading["gradient_norm"] for reading in (one, other)]
        length = math.sqrt(pulls[0] ** 2 + pulls[1] ** 2 + 2 * one["cosine"] * pulls[0] * pulls[1])
        assert row["gradient_norm"] == pytest.approx(length, rel=1e-3)
        for reading in (one, other):
            assert (
                reading["value"] == row[reading["term"]] and reading["embedding_gradient_norm"] > 0
            )
            assert row[f"{reading['term']}_weighted"] == pytest.approx(
                reading["weight"] * reading["value"]
            )


@pytest.mark.parametrize("objective", ["option1_reconstruction", "answer_ce", "distill"])
@pytest.mark.parametrize("rule", RULES)
def test_an_objective_of_one_term_is_neither_read_nor_balanced(bench, objective, rule):
    config = BASE.replace(objective=objective)
    plain, expected = bench.train(config)
    weights, progress = bench.train(config.replace(balancing=rule, gradients_every=1))
    assert same_weights(weights, plain) and not progress.gradients
    assert without_seconds(progress.curve) == without_seconds(expected.curve)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("limit", [0.05, 100.0])
def test_the_parts_of_a_recorded_step_add_up_to_the_step_taken(bench, monkeypatch, rule, limit):
    config = BASE.replace(
        objective="option3_teacher_forced",
        balancing=rule,
        gradients_every=3,
        max_grad_norm=limit,
        weight_decay=0.0,
    )
    adapter, before, checked = bench.adapter(config.replace(initialisation="random")), [], []
    readings, at_embeddings = loss_scale.readings, loss_scale.embedding_gradients

    def just_before(*arguments):
        before.append(loss_scale.flat(list(adapter.parameters())).detach().clone())
        return at_embeddings(*arguments)

    def just_after(*arguments):
        moved = loss_scale.flat(list(adapter.parameters())).detach() - before[-1]
        parts = sum(arguments[-1].parts().values())
        rate = float(moved.norm() / parts.norm())
        checked.append((rate, float((moved + rate * parts).norm() / moved.norm())))
        return readings(*arguments)

    monkeypatch.setattr(loss_scale, "embedding_gradients", just_before)
    monkeypatch.setattr(loss_scale, "readings", just_after)
    _, progress = bench.train(config, adapter=adapter)
    for (rate, off), row in zip(checked, progress.curve[::3], strict=True):
        assert rate == pytest.approx(row["learning_rate"], rel=1e-3) and off < 1e-3


@pytest.mark.parametrize("objective", SEVERAL)
def test_equal_gradient_norms_give_both_terms_the_same_pull_at_every_step(bench, objective):
    config = BASE.replace(objective=objective, balancing="equal_gradient_norms", gradients_every=1)
    _, progress = bench.train(config)
    pulls = [row["weight"] * row["gradient_norm"] for row in progress.gradients]
    assert pulls[::2] == pytest.approx(pulls[1::2], rel=1e-5) and min(pulls) > 0
    weights = [row["weight"] for row in progress.gradients]
    assert [
        one + other for one, other in zip(weights[::2], weights[1::2], strict=True)
    ] == pytest.approx([2.0] * 8)
    assert len(set(weights)) == 16


@pytest.mark.parametrize("objective", SEVERAL)
def test_uncertainty_learns_its_weights_beside_the_adapter_and_records_them(bench, objective):
    """Replayed from the recorded terms and learning rates: AdamW on two log variances, which do not decay."""
    _, progress = bench.train(
        BASE.replace(objective=objective, balancing="uncertainty", weight_decay=5.0)
    )
    factors = {"reconstruction": 0.5, "cross_entropy": 1.0}
    logs = {name: torch.nn.Parameter(torch.zeros(())) for name in factors}
    optimizer = torch.optim.AdamW(logs.values(), weight_decay=0.0)
    for row in progress.curve:
        assert row["log_variance"] == pytest.approx(
            sum(float(s.detach()) for s in logs.values()) / 2, abs=1e-5
        )
        for name, factor in factors.items():
            weighted = factor * math.exp(-float(logs[name].detach())) * row[name]
            assert row[f"{name}_weighted"] == pytest.approx(weighted, rel=1e-5)
            logs[name].grad = torch.tensor(0.5 - weighted)
        optimizer.param_groups[0]["lr"] = row["learning_rate"]
        optimizer.step()
        assert row["loss"] == pytest.approx(
            sum(row[f"{name}_weighted"] for name in (*factors, "log_variance"))
        )
    # About 8 nats ask for less weight, an error far below 1 for more.
    assert logs["cross_entropy"] > 0.02 and logs["reconstruction"] < -0.02


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("every", [0, 3])
def test_an_interrupted_training_keeps_its_readings_and_its_balance(
    bench, tmp_path, monkeypatch, rule, every
):
    config = BASE.replace(
        objective="option3_teacher_forced",
        balancing=rule,
        gradients_every=every,
        initialisation="random",
    )
    whole, expected = bench.train(config)
    checkpoint = tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_objective(patch, config.objective, 5)
        bench.train(config, checkpoint=checkpoint)
    assert 2 <= torch.load(checkpoint, weights_only=True)["progress"]["step"] < 8
    resumed, progress = bench.train(config, checkpoint=checkpoint)
    assert same_weights(resumed, whole)
    assert without_seconds(progress.curve) == without_seconds(expected.curve)
    assert progress.gradients == expected.gradients and len(progress.gradients) == (
        6 if every else 0
    )


# ---------------------------------------------------------------- passes, and memory that runs out

PASSED = ["answer_ce", "option3_teacher_forced", "option2_prompt_ce", "option2_on_policy"]


def count_passes(monkeypatch, objective: str, room: int = 1_000, at: int = 0) -> list[ExampleBatch]:
    """Let the objective run out of memory for more than `room` examples, from its `at`-th call on; the batches it has
    worked through."""
    original, seen, calls = OBJECTIVES[objective], [], iter(range(1_000))

    def short_of_memory(adapter, batch: ExampleBatch, context: ObjectiveContext):
        if next(calls) >= at and len(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        seen.append(batch)
        return original(adapter, batch, context)

    monkeypatch.setitem(OBJECTIVES, objective, short_of_memory)
    return seen


def assert_same_training(one: tuple[dict, Progress], other: tuple[dict, Progress]) -> None:
    """The same but for the rounding of sums in another order. AdamW divides by the size of a gradient, so that where it
    is next to nothing its rounding weighs more."""
    (weights, progress), (expected_weights, expected) = one, other
    for row, wanted in zip(
        without_seconds(progress.curve), without_seconds(expected.curve), strict=True
    ):
        assert row == pytest.approx(
            wanted, rel=1e-5, abs=1e-7
        )  # a divergence is a difference of numbers near 8
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("objective", PASSED)
def test_passes_of_any_size_train_what_the_whole_batch_does(bench, objective, size, packed):
    config = BASE.replace(objective=objective, packed=packed)
    assert_same_training(bench.train(config.replace(micro_batch_size=size)), bench.train(config))


def test_an_objective_that_passes_nothing_through_the_language_model_takes_its_tokens_at_once(
    bench, monkeypatch
):
    original, seen = OBJECTIVES["option1_reconstruction"], []

    def watched(adapter, batch: TokenCounts, context: ObjectiveContext):
        seen.append(len(batch))
        return original(adapter, batch, context)

    monkeypatch.setitem(OBJECTIVES, "option1_reconstruction", watched)
    bench.train(BASE.replace(objective="option1_reconstruction", micro_batch_size=1))
    assert len(seen) == 8 and min(seen) > 8


def test_a_pass_takes_as_many_examples_as_the_config_says_or_fewer(bench, monkeypatch):
    seen = count_passes(monkeypatch, "answer_ce")
    bench.train(BASE.replace(objective="answer_ce", micro_batch_size=3, epochs=1))
    assert sorted(map(len, seen[:3])) == [2, 3, 3] and [len(batch) for batch in seen[9:]] == [3, 3]


@pytest.mark.parametrize("size", [8, 100])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_where_a_batch_fits_one_pass_not_a_bit_changes(bench, objective, size):
    config = BASE.replace(objective=objective, temperature=1.0)
    (whole, expected), (passed, progress) = (
        bench.train(config),
        bench.train(config.replace(micro_batch_size=size)),
    )
    assert same_weights(whole, passed)
    assert without_seconds(progress.curve) == without_seconds(expected.curve)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("objective", PASSED)
def test_where_memory_runs_out_training_goes_on_in_halves_to_the_same_end(
    bench, monkeypatch, capsys, objective, at, packed
):
    """From the first step or the third one on; a message says it once."""
    config = BASE.replace(objective=objective, packed=packed)
    expected = bench.train(config)
    assert "memory" not in capsys.readouterr().out
    seen = count_passes(monkeypatch, objective, room=4, at=at)
    assert_same_training(bench.train(config), expected)
    sizes = [[8]] * at + [[4, 4], [4, 4], [4, 4], [3, 3]][at:] + [[4, 4], [4, 4], [4, 4], [3, 3]]
    assert [len(batch) for batch in seen] == [size for step in sizes for size in step]
    said = capsys.readouterr().out
    assert said.count(f"step {at}: memory runs out with 8 examples at a time; going on with 4") == 1
    assert said.count("memory runs out") == 1


def test_memory_may_run_out_again_and_again(bench, monkeypatch, capsys):
    config = BASE.replace(objective="answer_ce")
    expected = bench.train(config)
    seen = count_passes(monkeypatch, "answer_ce", room=1)
    assert_same_training(bench.train(config), expected)
    assert [len(batch) for batch in seen] == [1] * 2 * N
    said = capsys.readouterr().out
    assert [f"with {size} examples" in said for size in (8, 4, 2, 1)] == [True, True, True, False]
    assert said.count("memory runs out") == 3


def test_memory_that_runs_out_in_a_later_pass_loses_and_repeats_none(bench, monkeypatch):
    """The first half was worked through already when the second one fails."""
    config = BASE.replace(objective="answer_ce", micro_batch_size=4)
    expected = bench.train(config)
    original, calls = OBJECTIVES["answer_ce"], iter(range(1_000))

    def fails_once(adapter, batch: ExampleBatch, context: ObjectiveContext):
        if next(calls) == 3:
            raise torch.OutOfMemoryError
        return original(adapter, batch, context)

    monkeypatch.setitem(OBJECTIVES, "answer_ce", fails_once)
    assert_same_training(bench.train(config), expected)


@pytest.mark.parametrize(
    "fraction, kept",
    [(0.25, [2, 2, 2, 2]), (0.5, [4, 4, 4, 3]), (0.0, [0] * 4), (1.0, [8, 8, 8, 6])],
)
def test_on_policy_the_share_of_gold_answers_is_that_of_the_batch_in_passes_too(
    bench, monkeypatch, fraction, kept
):
    asked, own = [], objectives.generate_own

    def watched(adapter, prompts, context):
        asked.append(len(prompts))
        return own(adapter, prompts, context)

    monkeypatch.setattr(objectives, "generate_own", watched)
    seen = count_passes(monkeypatch, "option2_on_policy", room=2)
    bench.train(BASE.replace(objective="option2_on_policy", gold_fraction=fraction, epochs=1))
    sizes = [len(batch) for batch in seen]
    assert len(sizes) == len(asked) == 15 and max(sizes) == 2
    for step, gold in enumerate(kept):
        part = slice(4 * step, min(4 * step + 4, 15))
        assert sum(sizes[part]) - sum(asked[part]) == gold
        assert sum(sum(batch.keeps_gold) for batch in seen[part]) == gold


@pytest.mark.parametrize("at", [0, 3])
def test_one_example_that_does_not_fit_stops_the_training_by_its_step(bench, monkeypatch, at):
    count_passes(monkeypatch, "answer_ce", room=0, at=at)
    config = BASE.replace(objective="answer_ce")
    with pytest.raises(
        TrainingError,
        match=rf"^step {at}: memory runs out with one example at a time; try recomputed",
    ):
        bench.train(config)


def test_an_error_that_is_not_of_memory_is_no_reason_to_try_again(bench, monkeypatch):
    def answer_ce(adapter, batch: ExampleBatch, context: ObjectiveContext):
        raise RuntimeError("something else")

    monkeypatch.setitem(OBJECTIVES, "answer_ce", answer_ce)
    with pytest.raises(RuntimeError, match="something else"):
        bench.train(BASE.replace(objective="answer_ce"))


def test_where_memory_ran_out_an_interrupted_training_ends_as_an_uninterrupted_one_does(
    bench, tmp_path, monkeypatch
):
    config, checkpoint = (
        BASE.replace(objective="option3_teacher_forced"),
        tmp_path / "checkpoint.pt",
    )
    count_passes(monkeypatch, config.objective, room=4)
    whole = bench.train(config)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_objective(patch, config.objective, 12)
        bench.train(config, checkpoint=checkpoint)
    assert_same_training(bench.train(config, checkpoint=checkpoint), whole)


@pytest.mark.parametrize("rule", RULES)
def test_terms_are_balanced_over_the_whole_batch_and_not_pass_by_pass(bench, rule):
    config = BASE.replace(
        objective="option3_teacher_forced", balancing=rule, initialisation="random"
    )
    assert_same_training(bench.train(config.replace(micro_batch_size=3)), bench.train(config))


@pytest.mark.parametrize("rule", RULES)
def test_readings_of_the_gradients_fit_where_the_step_does(bench, monkeypatch, rule):
    config = BASE.replace(
        objective="option3_teacher_forced",
        gradients_every=3,
        balancing=rule,
        initialisation="random",
    )
    _, expected = bench.train(config)
    seen = count_passes(monkeypatch, config.objective, room=4)
    _, progress = bench.train(config)
    assert max(map(len, seen)) == 4 and len(progress.gradients) == len(expected.gradients) == 6
    for row, wanted in zip(progress.gradients, expected.gradients, strict=True):
        assert row.pop("term") == wanted.pop("term")
        assert row == pytest.approx(wanted, rel=1e-3, abs=1e-5)


# ---------------------------------------------------------------- learning


def test_the_reconstruction_loss_falls(bench):
    config = BASE.replace(objective="option1_reconstruction", epochs=10, initialisation="random")
    _, progress = bench.train(config)
    values = [row["reconstruction"] for row in progress.curve]
    assert len(values) == 40 and np.mean(values[-4:]) < 0.9 * np.mean(values[:4])


def test_the_answers_loss_falls_on_the_shipped_model(lm):
    config = StudyConfig(
        device="cpu", objective="answer_ce", batch_size=8, epochs=24, learning_rate=3.0e-3
    )
    encoded = encode(
        almanac.table(8, split="train", names="seen").to_pylist(), lm.tokenizer, config
    )
    counts = token_counts(encoded.prompts, len(lm.embedding_table))
    compression = fit_pca(lm.embedding_table, torch.from_numpy(counts), config.compressed_width)
    _, progress = Bench(lm, encoded, counts, compression).train(config)
    values = [row["cross_entropy"] for row in progress.curve]
    assert len(values) == 24 and values[-1] < 0.8 * values[0]


def test_reconstruction_brings_the_embeddings_nearer(bench):
    config = BASE.replace(objective="option1_reconstruction", epochs=10, initialisation="random")
    table, codebook = bench.lm.embedding_table, bench.compression.compress(bench.lm.embedding_table)
    used = torch.from_numpy(bench.counts.nonzero()[0])
    adapter = bench.adapter(config)
    before = (adapters.decode(adapter, codebook)[used] - table[used]).square().mean()
    bench.train(config, adapter=adapter)
    assert (adapters.decode(adapter, codebook)[used] - table[used]).square().mean() < 0.9 * before
