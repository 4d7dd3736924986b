"""The cost of the real experiment and the tables of an 8B shape, from made-up measurements."""

import pandas as pd
import pytest

from stage1 import store
from stage1.config import load_preset
from stage1.report import at_shape, documents

STAGES = {
    "load": 7.0,
    "PCA": 1.0,
    "answers, pca_inverse": 0.01,
    "answers, codebook": 0.01,
    "answers, embeddings": 0.02,
    "checksum": 0.5,
    "warm-up": 0.004,
    "training": 0.01,
    "answers, adapter": 0.03,
    "record": 2.0,
}


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"stage": name, "unit": "one", "first_seconds": 0.0, "seconds_per_unit": each}
        for name, each in STAGES.items()
    ]
    table = pd.DataFrame(rows).assign(peak_GB=30.0, machine="GPU A, 16 cores")
    table.loc[table["stage"] == "training", ["first_seconds", "peak_GB"]] = 25.0, 60.0
    table.to_csv(tmp_path / "recipe_at_shape.csv", index=False)
    return tmp_path


def test_each_step_costs_the_sum_of_its_stages(folder):
    table = at_shape.cost_table(at_shape.Stages(pd.read_csv(folder / "recipe_at_shape.csv")))
    config = load_preset("llama31_8b")
    first = 7 + 1 + 0.01 * 2 * config.test_examples
    recipe = 2 * 0.5 + 25 + 0.01 * 30_000 + 0.03 * (4 * 500 + config.test_examples) + 2
    recipes = 2 * (7 + 1) + 2 * recipe + 0.004 * config.warmup_steps
    assert table["GPU hours"].tolist() == pytest.approx(
        [x / 3600 for x in (first, 8 + 0.02 * 4 * config.test_examples, recipes, 4 * recipes)],
        abs=0.006,
    )
    assert table["peak GB"].tolist() == [30.0, 30.0, 60.0, 60.0]
    assert table["GPU hours so far"].iloc[-1] == pytest.approx(table["GPU hours"].sum(), abs=0.02)
    price = at_shape.DOLLARS_PER_GPU_HOUR
    assert table["dollars"].sum() == pytest.approx(price * table["GPU hours"].sum(), abs=0.06)


def test_the_cost_names_machine_and_price(folder):
    text = at_shape.cost(folder)
    assert f"On one GPU A at an assumed {at_shape.DOLLARS_PER_GPU_HOUR:g} dollars" in text
    assert "| two recipes, one seed |" in text
    assert "| training | one | 25.0 | 0.01 | 60.0 |" in at_shape.stage_table(folder)


def test_a_missing_stage_or_table_is_named(folder):
    path = folder / "recipe_at_shape.csv"
    table = pd.read_csv(path)
    table.loc[table["stage"] == "training", "seconds_per_unit"] = float("nan")  # it failed
    table.to_csv(path, index=False)
    with pytest.raises(store.RecordError, match="lacks 'training'"):
        at_shape.cost(folder)
    text = documents.or_command(lambda: at_shape.peers(folder))
    assert text == "Not measured yet: run `python benchmarks/peers.py` on a GPU."


def test_rows_that_failed_are_shown_with_their_note(folder):
    rows = [
        {"path": "transformers", "batch": 32, "examples_per_s": 50.0, "ours_is_faster": 2.0},
        {"path": "Liger-Kernel", "note": "not installed"},
    ]
    table = pd.DataFrame(rows).assign(machine="GPU A, 16 cores")
    table.to_csv(folder / "peers.csv", index=False)
    text = at_shape.peers(folder)
    assert "| transformers | 32 | 50.0 |  | 2.0 |  |" in text
    assert "| Liger-Kernel |  |  |  |  | not installed |" in text


def test_the_warm_up_is_shown_beside_the_same_objective_prompt_by_prompt(folder):
    numbers = {"ms_per_step": 5.0, "seconds_of_schedule": 25.0, "table_fvu": 0.4, "peak_GB": 3.0}
    numbers |= {"flat_seconds": 12.0, "times_per_prompt": 6.0}
    numbers |= {"times_at_same_precision": 3.0, "times_per_step": 9.0}
    setting = {"batch": 8192, "steps": 5000, "rate": 0.03, "precision": "tf32"}
    setting |= {"mode": "captured", "optimizer": "AdamW"}
    direct = {"path": "per prompt", "precision": "float32", "ms_per_step": 45.0}
    rows = [
        direct | {"rows_per_step": 11_400.0},
        {"path": "table"} | setting | numbers,
        {"path": "table"} | setting | numbers | {"table_fvu": None, "flat_seconds": None},
    ]
    table = pd.DataFrame(rows).assign(machine="GPU A, 16 cores")
    table.to_csv(folder / "warmup_at_shape.csv", index=False)
    laws = [("english", "token", 0.62), ("shipped", "token", 0.81)]
    laws = pd.DataFrame(laws, columns=["language_model", "weighting", "exponent"])
    laws.to_csv(folder / "spectrum.csv", index=False)
    text = at_shape.warmup(folder)
    assert "proportional to i^-0.62" in text and "exponent is 0.81" in text
    assert "a step of 11,400 tokens takes 45.0 ms in float32." in text
    assert "| 8192 | 5000 | 0.03 | tf32 | captured | AdamW | 5.0 | 25.0 | 12.0 | 0.4 |" in text
    assert text.count("not run to the end") == 2
