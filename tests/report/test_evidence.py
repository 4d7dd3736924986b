"""The report's reasoning on made-up records: what wins, what is recommended and every verdict follow from them."""

import made_up
import pandas as pd
import pytest

from stage1 import store
from stage1.config import StudyConfig
from stage1.report import claims, decision, evidence
from stage1.report.evidence import AS_FOUND

MAIN = ("pca_inverse", "calibrated")


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Made-up records written as files and read back as the notebooks read them."""

    def load(config=None, **changes) -> evidence.Evidence:
        monkeypatch.setenv("STAGE1_RECORDS", str(made_up.write(tmp_path, **changes)))
        return evidence.load(config or StudyConfig(), weights="full", benchmarks=tmp_path / "full")

    return load


def verdict(e: evidence.Evidence, letter: str) -> str:
    return claims.CLAIMS[letter][1](e).verdict


def test_the_best_adapter_is_chosen_on_the_selection_split(read):
    e = read()
    assert e.adapter == MAIN
    runs = e.runs.copy()
    runs.loc[
        (runs[["initialisation", "output_scaling"]] == list(AS_FOUND)).all(axis=1), "selection_f1"
    ] = 99.0
    other = evidence.Evidence(**{**vars_of(e), "runs": runs})
    assert other.adapter == AS_FOUND, "whatever it has on the test questions"


def vars_of(e: evidence.Evidence) -> dict:
    return {name: getattr(e, name) for name in evidence.Evidence.__dataclass_fields__}


def test_the_table_holds_the_runs_of_the_best_adapter(read):
    e = read()
    assert list(e.table["f1"]) == sorted(e.table["f1"], reverse=True)
    row = e.table.set_index("objective").loc["option1_reconstruction"]
    runs = e.on(e.runs, "option1_reconstruction")
    assert row["f1"] == pytest.approx(runs["f1"].mean()) and row["seeds"] == len(runs) == 3
    assert row["f1_low"] < row["f1"] < row["f1_high"]
    assert row["retention"] == pytest.approx(100 * (row["f1"] - 3) / (99 - 3))
    assert e.table.set_index("objective").loc["option3_teacher_forced", "verdict"] == "target met"
    assert row["verdict"].startswith(("failure", "open")), (
        "50.2 with an interval that reaches below 50"
    )


@pytest.mark.parametrize(
    "f1, seconds, recommended",
    [
        ({}, {}, "option3_teacher_forced"),
        ({"option1_reconstruction": 90.0}, {}, "option1_reconstruction"),
        ({"option2_on_policy": 90.0}, {}, "option2_on_policy"),
        ({"option2_prompt_ce": 90.0}, {}, "option2_prompt_ce"),
        ({"option2_on_policy": 73.5}, {}, "option3_teacher_forced"),
        ({"option2_on_policy": 73.5}, {"option2_on_policy": 0.05}, "option2_on_policy"),
    ],
    ids=[
        "option 3",
        "option 1",
        "on-policy",
        "as written",
        "the cheaper of two alike",
        "the other one if it is cheaper",
    ],
)
def test_the_recommendation_follows_the_records(read, f1, seconds, recommended):
    e = read(f1=f1, seconds=seconds)
    assert e.recommended == recommended
    label = decision.LABELS[recommended]
    assert decision.answer(e)[0].startswith(f"Prefer {label}")
    assert decision.recommendation(e)[0].startswith(f"**Train with {label}.**")
    assert f"{e.mean(recommended):.1f}" in decision.answer(e)[0]
    assert all(decision.LABELS[name] in decision.recommendation(e)[0] for name in decision.LABELS)


def test_the_answer_says_what_matters_more(read):
    assert "decides more" in decision.answer(read())[1]
    assert "matter as much" in decision.answer(read(f1={"option2_on_policy": 9.0}))[1]


def test_the_criteria_are_those_of_the_config(read):
    e = read(config=StudyConfig(target_f1=80.0))
    assert (
        e.table.set_index("objective")
        .loc["option3_teacher_forced", "verdict"]
        .startswith("target missed")
    )
    assert "target missed" in decision.answer(e)[0]


@pytest.mark.parametrize(
    "letter, changes, expected",
    [
        ("b", {}, "refuted"),
        ("b", {"f1": {"option2_on_policy": 80.0}}, "confirmed"),
        ("c", {}, "depends"),
        ("c", {"f1": {"option3_teacher_forced": 80.0}}, "confirmed"),
        ("c", {"f1": {"option3_teacher_forced": 60.0}}, "refuted"),
        ("d", {}, "refuted"),
        ("e", {}, "confirmed"),
        ("e", {"f1": {"option3_teacher_forced": 80.0}}, "depends"),
        ("g", {}, "refuted"),
        ("h", {}, "refuted"),
        ("h", {"f1": {"option2_prompt_ce": 74.0}}, "confirmed"),
        ("i", {}, "confirmed"),
        ("i", {"f1": {"option2_on_policy": 73.0}}, "depends"),
        ("l", {}, "depends"),
        ("l", {"f1": {"option3_teacher_forced": 95.0}}, "refuted"),
        ("l", {"f1": dict.fromkeys(made_up.F1, 40.0)}, "confirmed"),
        ("m", {}, "depends"),
        ("n", {}, "refuted"),
        ("n", {"codebook": 60.0}, "confirmed"),
        ("o", {}, "depends"),
        ("o", {"largest": (100, 120)}, "confirmed"),
        ("o", {"largest": (25, 60)}, "refuted"),
    ],
)
def test_a_verdict_turns_with_the_records(read, letter, changes, expected):
    assert verdict(read(**changes), letter) == expected


def test_more_data_for_one_objective_alone_confirms_that_it_needs_more(read):
    e = read()
    sizes = e.sizes.copy()
    sizes.loc[
        (sizes["train_examples"] == 40_000) & (sizes["objective"] == "option1_reconstruction"), "f1"
    ] += 10
    assert verdict(evidence.Evidence(**{**vars_of(e), "sizes": sizes}), "g") == "confirmed"


def test_cheating_would_show_in_the_later_tokens(read):
    e = read()
    runs = e.runs.assign(right_first=0.3, right_later=0.9)
    assert verdict(evidence.Evidence(**{**vars_of(e), "runs": runs}), "a") == "confirmed"
    honest = e.runs.assign(right_first=0.9, right_later=0.9)
    assert verdict(evidence.Evidence(**{**vars_of(e), "runs": honest}), "a") == "refuted"


def test_magnitudes_in_the_stated_ranges_are_confirmed(read):
    e = read()
    inside = made_up.gradients({"reconstruction": 0.5, "cross_entropy": 3.0}, 0.5)
    assert verdict(evidence.Evidence(**{**vars_of(e), "gradients": inside}), "d") == "confirmed"


def test_every_claim_is_judged_with_numbers(read):
    table = claims.table(read())
    assert list(table[""]) == list("abcdefghijklmno")
    assert set(table["verdict"]) <= {"confirmed", "refuted", "depends", "open"}
    for _, row in table.iterrows():
        assert row[""] in "ko" or any(character.isdigit() for character in row["evidence"]), row[
            "claim"
        ]
        assert "nan" not in row["evidence"].lower(), row["evidence"]


def test_fvu_weights_are_placed_at_what_they_amount_to_as_mse(read):
    grid = read().grid
    fvu = grid[grid["reconstruction_term"] == "fvu"]
    assert (fvu["weight"] / fvu["reconstruction_weight"]).tolist() == pytest.approx(
        [50.0] * len(fvu)
    )
    assert set(grid["objective"]) == {"option3_teacher_forced"}


def test_a_missing_table_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch):
    folder = made_up.write(tmp_path)
    (folder / "full" / "weights.csv").unlink()
    monkeypatch.setenv("STAGE1_RECORDS", str(folder))
    with pytest.raises(
        store.RecordError, match=r"weights\.csv: no such table; `python -m stage1\.sweep` makes it"
    ):
        evidence.load(StudyConfig(), weights="full", benchmarks=folder / "full")


def test_rules_hold_the_fixed_weight_and_both_balancing_rules(read):
    rules = read().rules
    assert isinstance(rules, pd.DataFrame) and len(rules) == 4 * 3
    assert (rules["seeds"] == 3).all()
