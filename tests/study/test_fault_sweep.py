"""Sweeps over the gallery: what each holds, and the ladder from the original to the recipe."""

import sys
from itertools import pairwise

import pandas as pd
import pytest

from stage1 import gallery, store
from stage1.config import load_preset
from stage1.study import fault_sweep
from stage1.study.fault_sweep import REPAIRED, added, ladder, presets, removed
from stage1.study.sweep import grid

ORIGINAL, RECIPE = load_preset("original"), load_preset("recipe")


def same_but_for(one, other, *fields) -> bool:
    return one.replace(**{name: getattr(other, name) for name in fields}) == other


def test_each_fault_is_added_alone_and_nothing_else_changes():
    planned = added(RECIPE)
    assert list(planned) == ["recipe", *gallery.FAULTS]
    for name, config in list(planned.items())[1:]:
        assert config.faults == name and same_but_for(config, RECIPE, "faults")


def test_each_fault_of_the_original_is_removed_alone():
    planned = removed(ORIGINAL)
    whole = set(gallery.names(ORIGINAL.faults))
    assert planned["original"] == ORIGINAL and set(planned) == whole | {"original"}
    for name in whole:
        assert set(gallery.names(planned[name].faults)) == whole - {name}
        assert same_but_for(planned[name], ORIGINAL, "faults")


def test_the_ladder_repairs_one_thing_a_step_and_ends_at_the_recipe():
    planned = list(ladder(ORIGINAL, RECIPE).items())
    assert planned[0] == ("original", ORIGINAL)
    for (_, before), (name, after) in pairwise(planned):
        if name in gallery.FAULTS:
            gone = set(gallery.names(before.faults)) - set(gallery.names(after.faults))
            assert gone == {name} and same_but_for(after, before, "faults")
    last = planned[-1][1]
    assert last.faults == gallery.NONE and last.replace(preset="recipe") == RECIPE
    assert set(REPAIRED) == set(gallery.names(ORIGINAL.faults))


def test_faults_may_be_carried_by_all_runs_or_by_none():
    original, recipe = presets(also="pad_is_end")
    assert recipe.faults == "pad_is_end" and "pad_is_end" not in added(recipe)
    assert list(ladder(original, recipe).values())[-1].faults == "pad_is_end"
    original, recipe = presets(repaired="slice_of_generated_ids")
    assert "slice_of_generated_ids" not in gallery.names(original.faults)
    assert recipe.faults == gallery.NONE


def test_any_sweep_may_vary_the_faults():
    vary = {"objective": ["answer_ce"], "faults": ["none", "pad_is_end+no_end_token"]}
    faults = [config.faults for config in grid("smoke", vary)]
    assert faults == ["none", "no_end_token+pad_is_end"]
    with pytest.raises(ValueError, match="did you mean 'pad_is_end'"):
        grid("smoke", {"faults": ["pad_is_ed"]})


def test_a_rehearsal_is_small_and_keeps_all_that_differs():
    original, recipe = presets(rehearse=True)
    assert original.train_examples == recipe.train_examples == 60
    assert (original.warmup_steps, recipe.warmup_steps) == (0, 4)
    assert original.faults == ORIGINAL.faults and original.learning_rate == 5.0e-4


@pytest.mark.slow
def test_a_rehearsed_sweep_leaves_a_row_for_every_run(tmp_path, monkeypatch):
    monkeypatch.setattr(fault_sweep, "REPAIRED", REPAIRED[:1])
    monkeypatch.setattr(fault_sweep, "CHANGED", {})
    table = tmp_path / "ladder.csv"
    arguments = ["ladder", str(table), "--seeds", "1", "--processes", "1", "--rehearse"]
    monkeypatch.setattr(sys, "argv", ["fault_sweep", *arguments])
    fault_sweep.main()
    rows = pd.read_csv(table).set_index("faults")
    assert rows.index.tolist().count(ORIGINAL.faults) == 1 and len(rows) == 2
    assert rows.loc[ORIGINAL.faults, "f1"] == 0 and rows.loc[ORIGINAL.faults, "empty"] == 1
    assert store.read_json(table.with_suffix(".json"))["runs"] == 2
