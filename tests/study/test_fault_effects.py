"""Every run that the sweeps over the gallery plan is possible, and its faults have an effect."""

import numpy as np
import pytest

from stage1 import gallery, store, study
from stage1.config import StudyConfig
from stage1.study import fault_sweep

PLANNED = {
    f"{table}, {setting}": config
    for table in fault_sweep.TABLES
    for setting, config in fault_sweep.planned(table).items()
}
ELSEWHERE = {
    "pad_is_end": "masks are made from lengths; it matters beside labels on padding",
    "explained_over_kept": "changes the variance that PCA is said to keep",
    "other_baseline": "changes retention",
    "mask_of_ones": "changes answers, which the tiny model gives alike whatever it reads",
    "f1_on_sets": "a score of answers that repeat a word",
    "first_gold_only": "a score of questions with several gold answers",
    "no_normalisation": "a score of answers in another case or with punctuation",
}
"""Faults that leave a record of a few answers as it is, and why."""
TINY = {"train_examples": 16, "selection_examples": 6, "test_examples": 12, "epochs": 2,
        "max_new_tokens": 3, "checkpoint_every": 0, "warmup_steps": 3, "batch_size": 8,
        "objective": "option3_teacher_forced"}  # fmt: skip


@pytest.mark.parametrize("name", PLANNED)
def test_a_planned_run_can_carry_its_faults(name):
    config = PLANNED[name]
    assert config.replace(seed=4).faults == gallery.canonical(config.faults)
    assert config.objective in gallery.LABELLED and not config.packed
    assert (config.architecture, config.projection) == ("film", "pca")


@pytest.fixture(scope="module")
def record_of(tiny_config, tmp_path_factory):
    """Return a function that returns what a tiny run with some faults measures."""
    runs = tmp_path_factory.mktemp("runs")

    def record_of(faults: str) -> dict:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STAGE1_RUNS", str(runs))
            record = store.read_json(study.run(tiny_config.replace(faults=faults, **TINY)))
        return {name: value for name, value in record["results"].items() if name != "seconds"}

    return record_of


def same(one: dict, other: dict) -> bool:
    try:
        np.testing.assert_equal(one, other)
    except AssertionError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", gallery.FAULTS)
def test_a_fault_added_to_a_sound_run_changes_what_it_measures(record_of, name):
    assert same(record_of(name), record_of(gallery.NONE)) == (name in ELSEWHERE)


@pytest.mark.parametrize(
    "name", [name for name, fault in gallery.FAULTS.items() if fault.needs_film]
)
@pytest.mark.parametrize(
    "changes",
    [{"architecture": "affine", "output_scaling": "calibrated"}, {"projection": "trained"}],
)
def test_a_fault_of_the_adapters_modules_is_refused_where_there_are_none(name, changes):
    field, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"{field}='{value}'.*{name}"):
        StudyConfig(faults=name).replace(**changes)
    StudyConfig().replace(**changes)
