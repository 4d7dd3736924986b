"""What a report says about its run and about the committed records beside it."""

import json
import re

import pytest

from stage1.config import StudyConfig, load_preset
from stage1.report import scope
from stage1.store import ROOT

FULL = load_preset("full")


def test_a_run_is_named_by_its_model_its_data_and_its_budget():
    config = StudyConfig(language_model="owner/model", data="my.json", train_examples=1_500)
    assert scope.subject(config) == "language model `owner/model` on data `my.json`"
    budget = scope.budget(config.replace(seeds=3, warmup_steps=0))
    assert budget == "K = 24, 1,500 questions x 3 in batches of 64, without a warm-up, 3 seeds"
    assert "with random weights" in scope.subject(config.replace(shape_only=True))


@pytest.mark.parametrize(
    "change", [{"language_model": "owner/model"}, {"data": "my.json"}, {"answers": "long"}]
)
def test_records_of_another_model_or_corpus_are_not_about_this_run(change):
    words = scope.beside(FULL.replace(**change), FULL)
    assert "Nothing below was measured on it" in words
    assert scope.subject(FULL) in words and scope.subject(FULL.replace(**change)) in words


@pytest.mark.parametrize("change", [{"train_examples": 800}, {"compressed_width": 12}])
def test_records_of_another_budget_or_width_repeat_no_result(change):
    words = scope.beside(FULL.replace(**change), FULL)
    assert "it repeats no result below" in words and "Nothing below" not in words


def test_records_of_the_same_setting_say_so():
    assert "This run has the same setting" in scope.beside(FULL.replace(seeds=1), FULL)


def test_the_limits_are_those_of_the_corpus():
    assert "grammar" in scope.limits(FULL) and "seen in training" in scope.limits(FULL)
    of_other = scope.limits(FULL.replace(data="my.json"))
    assert "`my.json`" in of_other and "grammar" not in of_other


# Notebook 07 is about two language models by name, whatever the run.
OF_A_RUN = sorted((ROOT / "notebooks").glob("0[0-6]*.ipynb"))


@pytest.mark.parametrize("path", OF_A_RUN, ids=lambda p: p.name)
def test_no_fixed_text_of_a_notebook_describes_the_language_model(path):
    cells = json.loads(path.read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert not re.search(r"\d M parameters|\dM parameters|invented corpus|almanac|shipped", text), (
        path
    )
