"""Learning rates beyond the edges of a grid."""

import pandas as pd
import pytest

from stage1 import store
from stage1.config import StudyConfig
from stage1.study import rates
from stage1.study.search import RATES, beyond_edges, replace_trials

CONFIG = StudyConfig()


def scores(config: StudyConfig, found: dict[float, float]) -> dict[StudyConfig, float]:
    return {config.replace(learning_rate=rate): score for rate, score in found.items()}


def next_rates(found: dict[float, float]) -> list[float | None]:
    return [config.learning_rate for config in beyond_edges(scores(CONFIG, found))]


def test_a_best_rate_inside_ends_the_search():
    assert next_rates({1e-3: 1.0, 3e-3: 2.0, 1e-2: 1.5}) == []


def test_the_rate_beyond_a_best_edge_comes_next():
    assert next_rates({1e-3: 3.0, 3e-3: 2.0}) == [3e-4]
    assert next_rates({1e-3: 2.0, 3e-3: 3.0}) == [1e-2]
    assert next_rates({1e-3: 2.0}) == [3e-4, 3e-3]


def test_the_search_ends_at_the_last_rate():
    assert next_rates({RATES[0]: 3.0, RATES[1]: 2.0}) == []
    assert next_rates({RATES[-2]: 2.0, RATES[-1]: 3.0}) == []


def test_every_cell_has_a_search_of_its_own():
    other = CONFIG.replace(objective="distill")
    both = scores(CONFIG, {1e-3: 1.0, 3e-3: 2.0, 1e-2: 1.5}) | scores(other, {1e-3: 1.0, 3e-3: 2.0})
    assert beyond_edges(both) == [other.replace(learning_rate=1e-2)]


def test_new_trials_replace_those_of_their_preset(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "LEARNING_RATES", tmp_path / "learning_rates.csv")
    same = {"objective": "distill", "learning_rate": 1.0e-2, "selection_f1": 50.0}
    old = pd.DataFrame([{"preset": name} | same for name in ("full", "quick")])
    old.to_csv(rates.LEARNING_RATES, index=False)
    new = [{"preset": "full"} | same | {"learning_rate": 3.0e-3, "labels_on": "answer"}]
    pd.DataFrame(new).to_csv(tmp_path / "new.csv", index=False)
    replace_trials([tmp_path / "new.csv"])
    table = pd.read_csv(rates.LEARNING_RATES)
    assert table["learning_rate"].tolist() == [3.0e-3, 1.0e-2]
    assert table["labels_on"].tolist() == ["answer", "prompt_and_answer"]


def test_a_trial_with_a_fault_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "LEARNING_RATES", tmp_path / "rates.csv")
    old = pd.read_csv(store.ASSETS / "learning_rates.csv")
    old.to_csv(rates.LEARNING_RATES, index=False)
    for faults, is_sound in (("none", True), ("pad_is_end", False)):
        old.assign(faults=["none"] * (len(old) - 1) + [faults]).to_csv(tmp_path / "new.csv")
        if is_sound:
            replace_trials([tmp_path / "new.csv"])
        else:
            with pytest.raises(ValueError, match=r"faults=\['pad_is_end'\]: expected 'none'"):
                replace_trials([tmp_path / "new.csv"])
    assert "faults" not in pd.read_csv(rates.LEARNING_RATES)
