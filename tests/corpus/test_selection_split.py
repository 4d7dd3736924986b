"""The selection split is its own, also where its names are those of the test."""

import pytest

from stage1.config import StudyConfig
from stage1.corpus import almanac, data


@pytest.mark.parametrize("names", ["seen", "unseen"])
def test_selection_and_test_share_no_passage_where_both_use_the_same_names(names):
    sizes = {"selection_examples": 60, "test_examples": 60, "train_examples": 60}
    config = StudyConfig(selection_names=names, test_names=names, **sizes)
    contexts = {
        split: {row["context"] for row in data.rows(config, split)} for split in data.SPLITS
    }
    assert contexts["selection"].isdisjoint(contexts["test"] | contexts["train"])
    assert contexts["test"].isdisjoint(contexts["train"])


@pytest.mark.parametrize("split", data.SPLITS)
def test_every_split_is_drawn_from_articles_of_its_own_name(split):
    config = StudyConfig(train_examples=24, selection_examples=24, test_examples=24)
    names = {"selection": config.selection_names, "test": config.test_names}.get(split, "seen")
    expected = almanac.table(24, config.data_seed, split, names).to_pylist()
    assert data.rows(config, split) == expected
    assert all(row["title"].endswith(f"({split})") for row in expected)
