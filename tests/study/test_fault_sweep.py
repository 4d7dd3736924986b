"""Sweeps over the gallery: what each holds, and the ladder from the original to the recipe."""

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pandas as pd
import pytest

from stage1 import gallery, store
from stage1.config import load_preset
from stage1.study import fault_sweep, pool
from stage1.study import sweep as sweeps
from stage1.study.fault_sweep import REPAIRED, TABLES, added, ladder, planned, presets, removed
from stage1.study.sweep import grid
from stage1.training import loop
from stage1.training.microbatches import TrainingError

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


def test_a_sweep_may_be_limited_to_some_faults_and_refuses_those_it_does_not_hold():
    original, recipe = presets(also="pad_is_end")
    some = fault_sweep.plan("added", original, recipe, "mask_of_ones+labels_on_padding")
    assert list(some) == ["recipe", "labels_on_padding", "mask_of_ones"]
    assert some["mask_of_ones"].faults == "pad_is_end+mask_of_ones"
    with pytest.raises(ValueError, match="only='oracle_norm': expected one of no_end_token"):
        fault_sweep.plan("removed", original, recipe, "oracle_norm")


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


@pytest.mark.parametrize("table", TABLES)
def test_the_command_of_a_table_makes_what_is_planned_for_it(table, monkeypatch):
    calls = []
    monkeypatch.setattr(fault_sweep, "sweep", lambda *given: calls.append(given))
    _, _, module, *arguments = fault_sweep.command(table).split()
    monkeypatch.setattr(sys, "argv", [module, *arguments, "--seeds", "1"])
    fault_sweep.main()
    ((kind, configs, path, *_),) = calls
    assert (kind, configs) == ("runs", list(planned(table).values()))
    assert path.as_posix() == f"records/faults/{table}.csv"


def test_the_page_on_the_original_lists_the_command_of_every_table():
    page = (store.ROOT / "docs/original.md").read_text()
    for table in TABLES:
        assert f"    {fault_sweep.command(table)} --processes 8\n" in page


@pytest.fixture
def toy_sweep(tiny_config, tmp_path, monkeypatch):
    """Return a function that runs the ladder's first steps at toy size, and the table's path."""
    small = ("language_model", "compressed_width", "device")
    changes = {name: getattr(tiny_config, name) for name in small}
    changes |= {"train_examples": 16, "selection_examples": 4, "test_examples": 8, "epochs": 1,
                "batch_size": 8, "max_new_tokens": 2, "threads": 1}  # fmt: skip
    toy = [load_preset(name).replace(**changes) for name in ("original", "recipe")]
    monkeypatch.setattr(fault_sweep, "presets", lambda *given: toy)
    monkeypatch.setattr(fault_sweep, "REPAIRED", REPAIRED[:2])
    monkeypatch.setattr(fault_sweep, "CHANGED", {})
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    table = tmp_path / "ladder.csv"
    arguments = ["fault_sweep", "ladder", str(table), "--seeds", "2", "--together", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    return fault_sweep.main, table


def test_an_interrupted_sweep_leaves_rows_and_goes_on_with_the_same_command(toy_sweep, monkeypatch):
    main, table = toy_sweep
    work, done = sweeps.work, []

    def interrupted(*given):
        done.append(given)
        if len(done) > 1:
            raise KeyboardInterrupt("stopped")
        return work(*given)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="5 of 6 runs failed"):
        patch.setattr(sweeps, "work", interrupted)
        main()
    assert len(pd.read_csv(table)) == 1 and not table.with_suffix(".parquet").exists()
    main()
    assert len(pd.read_csv(table)) == 6 and store.read_json(table.with_suffix(".json"))["runs"] == 6


def test_a_diverged_setting_is_a_row_and_the_tables_are_written(toy_sweep, monkeypatch):
    main, table = toy_sweep
    take_step, carrier = loop.take_step, "first_gold_only"

    def diverging(state, batch):
        if carrier not in state.context.config.faults:
            raise TrainingError("step 0: cross_entropy=nan")
        return take_step(state, batch)

    monkeypatch.setattr(loop, "take_step", diverging)
    main()
    rows = pd.read_csv(table)
    assert rows["diverged"].notna().sum() == 2 and rows["f1"].notna().sum() == 4
    assert not rows.loc[rows["diverged"].notna(), "faults"].str.contains(carrier).any()
    assert len(store.read_table(table.with_suffix(".parquet"))) == 4 * 8
    assert store.read_json(table.with_suffix(".json"))["runs"] == 4


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
