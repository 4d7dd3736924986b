"""The tables and sentences on several GPUs follow from the benchmark's table."""

import pandas as pd
import pytest

from stage1 import store
from stage1.report import several_gpus

STEP = {"part": "step", "case": several_gpus.STEP}
ROWS = [
    STEP | {"gpus": 1, "batch": 64, "examples_per_s": 100.0, "peak_GB": 54.0},
    STEP | {"gpus": 1, "batch": 32, "examples_per_s": 95.0},
    STEP
    | {"gpus": 2, "batch": 64, "examples_per_s": 185.0, "seconds": 0.346}
    | {"seconds_alone": 0.337, "all_reduce_s": 0.002},
    STEP | {"gpus": 2, "batch": 128, "examples_per_s": 197.0},
    {"part": "step", "case": "gradient", "difference": 0.2, "tolerance": 0.1},
    {"part": "agreement", "case": "loss", "difference": 0.0, "tolerance": 1e-5},
    {"part": "sharded", "case": "sharded", "gpus": 2, "batch": 64}
    | {"examples_per_s": 90.0, "peak_GB": 30.0},
    {"part": "adapters", "case": "grid", "gpus": 1, "per_minute": 20.0, "per_minute_training": 40},
    {"part": "adapters", "case": "grid", "gpus": 2, "per_minute": 30.0, "per_minute_training": 80},
    {"part": "kill", "case": "SIGKILL", "gpus": 2, "seconds": 0.4, "alive": 0, "resumes_at": 10},
]


@pytest.fixture
def table() -> pd.DataFrame:
    return several_gpus.with_times(pd.DataFrame(ROWS))


def test_every_rate_is_compared_with_that_of_one_gpu(table):
    times = table["times_one_gpu"].fillna(0).tolist()
    assert times == pytest.approx([1, 0.95, 1.85, 1.97, 0, 0, 0.9, 1, 1.5, 0])


def test_the_sentences_say_what_bounds_the_gain_and_what_is_outside_its_tolerance(table):
    text = " ".join(several_gpus.sentences(table))
    for expected in (
        "2 GPUs train 1.85 times as many examples per second as one at the same global batch of 64",
        "1.97 times at 64 per GPU (target 1.9)",
        "reads 32 examples, at 95 % of its rate with 64, which bounds the gain at 1.90",
        "the gradients over the processes takes 0.002 s",
        "the slower process takes 0.337 s",
        "1 of 2 comparisons are within tolerance. Outside: gradient.",
        "trains 90.0 examples per second at batch 64, 0.90 times one GPU's rate",
        "20 adapters per minute on one GPU and 30 on 2 (1.50 times, with the set-up",
        "2.00 times without",
        "the others are gone within 0.4 s, and the launcher",
        "resumes at step 10",
    ):
        assert expected in text
    assert "Not measured" not in text


def test_a_part_that_failed_is_named_and_leaves_the_others(table):
    failed = pd.DataFrame([{"part": "kill", "case": "kill", "error": "AssertionError: no"}])
    rest = pd.concat([table[table["part"] == "step"], failed])
    text = several_gpus.sentences(rest)
    assert len(text) == 3 and text[-1] == "Not measured: kill (kill): AssertionError: no."


def test_a_table_of_failures_alone_has_no_rates(table):
    failed = pd.DataFrame([{"part": "step", "case": "step", "gpus": 2, "error": "timed out"}])
    found = several_gpus.with_times(failed)
    assert several_gpus.rates(found).empty and several_gpus.checks(found).empty
    assert several_gpus.sentences(found) == ["Not measured: step (step): timed out."]


def test_tables_round_and_leave_empty_what_does_not_apply(table):
    rates = several_gpus.rates(table)
    assert rates["times_one_gpu"].tolist()[:3] == ["1.00", "0.95", "1.85"]
    assert rates["batch"].tolist()[-3:] == ["64", "", ""] and "error" not in rates
    checks = several_gpus.checks(table)
    assert checks["difference"].tolist() == ["2.0e-01", "0"]


def test_without_results_the_page_says_that_nothing_was_run(table, tmp_path):
    assert "has not been run" in several_gpus.summary(tmp_path)[0]
    table.to_csv(tmp_path / "several_gpus.csv", index=False)
    run = {"gpus": ["H", "H"], "date": "2026-01-01", "command": "python x"}
    store.write_json(tmp_path / "several_gpus.json", {"results": {"runs": [run, run]}})
    text = several_gpus.summary(tmp_path)
    assert text[0].startswith("Measured on 2 x H, 2026-01-01 (`python x` and `python x`)")
    assert text[1:] == several_gpus.sentences(table)
