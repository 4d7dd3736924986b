"""Examples from three sources: splits that share no article, seeded choices, and errors that say where."""

import json
import sys

import datasets
import pytest

from stage1.config import StudyConfig
from stage1.corpus.data import SPLITS, load_split, read_squad_json
from stage1.corpus.data import rows as data_rows
from stage1.corpus.grammar import grammar

ARTICLES = 12
PER_ARTICLE = 4  # questions, over two paragraphs


def squad(articles: int = ARTICLES) -> dict:
    """A small SQuAD v1.1 document; every second question has two gold answers."""

    def paragraph(article: int, p: int) -> dict:
        context = f"In town {article} the mayor {p} is Ada Bell and the river is the Usk."
        golds = [["Ada Bell", "Bell"], ["Usk"]]
        qas = [
            {
                "id": f"{article}-{p}-{q}",
                "question": f"Question {q}?",
                "answers": [{"text": text, "answer_start": context.index(text)} for text in texts],
            }
            for q, texts in enumerate(golds)
        ]
        return {"context": context, "qas": qas}

    data = [
        {"title": f"Title {a:02}", "paragraphs": [paragraph(a, 0), paragraph(a, 1)]}
        for a in range(articles)
    ]
    return {"version": "1.1", "data": data}


def rows(titles, prefix: str = "") -> datasets.Dataset:
    """A flat data set: two questions on each title."""
    examples = [
        {
            "id": f"{prefix}{title}-{q}",
            "title": title,
            "context": f"{title} lies by the Usk.",
            "question": f"Question {q}?",
            "answers": {"text": ["Usk"], "answer_start": [len(title) + 13]},
        }
        for title in titles
        for q in range(2)
    ]
    return datasets.Dataset.from_list(examples)


@pytest.fixture
def squad_file(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad()))
    return path


def config(data, **changes) -> StudyConfig:
    sizes = {"train_examples": 20, "selection_examples": 2, "test_examples": 2}
    return StudyConfig(data=str(data), **(sizes | changes))


def load_all(config: StudyConfig) -> dict[str, datasets.Dataset]:
    return {split: load_split(config, split) for split in SPLITS}


def assert_disjoint(splits: dict, column: str) -> None:
    values = [set(split[column]) for split in splits.values()]
    assert all(values) and len(set.union(*values)) == sum(map(len, values))


# ---------------------------------------------------------------- almanac


def test_the_splits_of_the_almanac_share_no_article_and_no_passage():
    splits = load_all(
        config("almanac", train_examples=600, selection_examples=120, test_examples=120)
    )
    assert [len(split) for split in splits.values()] == [600, 120, 120]
    for column in ("id", "title", "context"):
        assert_disjoint(splits, column)


@pytest.mark.parametrize("names", ["seen", "unseen"])
def test_only_the_test_split_may_have_unseen_names(names):
    held_out = {word for stock in grammar("unseen").names.values() for word in stock.words}
    splits = load_all(
        config(
            "almanac",
            train_examples=120,
            selection_examples=120,
            test_examples=120,
            test_names=names,
        )
    )
    found = {
        split: bool(held_out & set(" ".join(rows["context"]).replace(".", "").split()))
        for split, rows in splits.items()
    }
    assert found == {"train": False, "selection": False, "test": names == "unseen"}


# ---------------------------------------------------------------- SQuAD JSON


def test_a_squad_file_gives_flat_rows_with_all_gold_answers(squad_file):
    table = read_squad_json(squad_file).to_pylist()
    assert len(table) == ARTICLES * PER_ARTICLE
    first = table[0]
    assert (first["id"], first["title"], first["question"]) == ("0-0-0", "Title 00", "Question 0?")
    assert first["answers"] == {"text": ["Ada Bell", "Bell"], "answer_start": [25, 29]}


def test_the_splits_of_a_squad_file_share_no_article(squad_file):
    sizes = {"selection_examples": PER_ARTICLE, "test_examples": PER_ARTICLE}
    splits = load_all(config(squad_file, train_examples=PER_ARTICLE * (ARTICLES - 2), **sizes))
    assert_disjoint(splits, "title")
    assert_disjoint(splits, "id")


@pytest.mark.parametrize("split", SPLITS)
def test_the_data_seed_decides_which_examples_are_chosen(squad_file, split):
    chosen = [
        load_split(config(squad_file, data_seed=seed), split)["id"] for seed in (0, 0, 1, 2, 3)
    ]
    assert list(chosen[0]) == list(chosen[1])
    assert len({tuple(ids) for ids in chosen}) > 2


@pytest.mark.parametrize("source", ["almanac", "squad"])
def test_the_seed_of_an_adapter_changes_no_example(squad_file, source):
    data = squad_file if source == "squad" else "almanac"
    for split in SPLITS:
        chosen = [data_rows(config(data, seed=seed), split) for seed in (0, 7)]
        assert chosen[0] == chosen[1] != data_rows(config(data, data_seed=7), split)


@pytest.mark.parametrize("source", ["almanac", "squad"])
@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_the_examples_of_the_split_as_plain_dictionaries(squad_file, source, split):
    asked = config(squad_file if source == "squad" else "almanac", data_seed=3)
    rows = data_rows(asked, split)
    assert rows == load_split(asked, split).to_list() and type(rows[0]) is dict
    assert len(rows) == getattr(asked, f"{split}_examples")


def test_rows_of_the_almanac_do_without_the_library_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it fails
    assert len(data_rows(StudyConfig(test_examples=5), "test")) == 5


def test_rows_have_the_names_that_the_config_asks_for_in_the_test_split_alone():
    seen, unseen = (
        StudyConfig(train_examples=5, test_examples=5, test_names=names)
        for names in ("seen", "unseen")
    )
    assert data_rows(seen, "train") == data_rows(unseen, "train")
    assert data_rows(seen, "test") != data_rows(unseen, "test")


@pytest.mark.parametrize("split", ["selection", "test"])
def test_the_data_seed_decides_which_articles_are_held_out(squad_file, split):
    chosen = {
        frozenset(load_split(config(squad_file, data_seed=seed), split)["title"])
        for seed in range(5)
    }
    assert len(chosen) > 2


def test_the_chosen_examples_are_spread_over_the_articles(squad_file):
    assert len(set(load_split(config(squad_file), "train")["title"])) > 20 / PER_ARTICLE + 1


@pytest.mark.parametrize("split, available", [("train", 40), ("selection", 4), ("test", 4)])
def test_too_many_examples_are_refused_by_the_name_of_the_field(squad_file, split, available):
    field = f"{split}_examples"
    assert len(load_split(config(squad_file, **{field: available}), split)) == available
    with pytest.raises(ValueError, match=f"{field}={available + 1}: expected at most {available}"):
        load_split(config(squad_file, **{field: available + 1}), split)


def test_the_real_squad_sample_loads(squad_sample):
    splits = load_all(
        config(squad_sample, train_examples=3_000, selection_examples=100, test_examples=100)
    )
    assert_disjoint(splits, "title")
    assert max(len(answers["text"]) for answers in splits["test"]["answers"]) > 1


# ---------------------------------------------------------------- saved data sets


def test_the_validation_split_of_a_saved_dataset_becomes_the_test(tmp_path):
    shared = "Title 3"
    train, validation = (
        rows([f"Title {i}" for i in range(12)], "t"),
        rows([shared, "Other", "Third"], "v"),
    )
    datasets.DatasetDict(train=train, validation=validation).save_to_disk(tmp_path / "saved")
    splits = load_all(config(tmp_path / "saved", train_examples=18, test_examples=6))
    assert set(splits["test"]["id"]) == set(validation["id"])
    assert_disjoint(splits, "title")
    for split, examples in splits.items():
        assert (shared in examples["title"]) == (split == "test")


def test_the_seed_decides_which_examples_of_a_given_test_split_are_chosen(tmp_path):
    parts = {name: rows([f"{name} {i}" for i in range(12)]) for name in ("train", "validation")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    chosen = {
        tuple(load_split(config(tmp_path / "saved", data_seed=seed), "test")["id"])
        for seed in range(5)
    }
    assert len(chosen) > 2


def test_a_test_split_goes_before_a_validation_split(tmp_path):
    parts = {
        name: rows([f"{name} {i}" for i in range(12)]) for name in ("validation", "train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    splits = load_all(config(tmp_path / "saved"))
    assert {title.split()[0] for title in splits["test"]["title"]} == {"test"}
    assert {
        title.split()[0] for split in ("train", "selection") for title in splits[split]["title"]
    } == {"train"}


def test_a_saved_dataset_without_splits_is_split_by_article(tmp_path):
    rows([f"Title {i}" for i in range(12)]).save_to_disk(tmp_path / "saved")
    assert_disjoint(load_all(config(tmp_path / "saved", train_examples=20)), "title")


def test_a_saved_dataset_with_one_named_split_is_split_by_article(tmp_path):
    only = rows([f"Title {i}" for i in range(12)])
    datasets.DatasetDict(validation=only).save_to_disk(tmp_path / "saved")
    assert_disjoint(load_all(config(tmp_path / "saved")), "title")


# ---------------------------------------------------------------- errors


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"split='dev'.*train, selection, test"):
        load_split(StudyConfig(), "dev")
    with pytest.raises(ValueError, match=r"split='dev'.*train, selection, test"):
        data_rows(StudyConfig(), "dev")


@pytest.mark.parametrize(
    "data", ["alamanac", "./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "nowhere.json"]
)
def test_an_unknown_source_is_refused_by_name(data):
    with pytest.raises(FileNotFoundError) as raised:
        load_split(StudyConfig(data=data), "train")
    assert data.removeprefix("./") in str(raised.value) and "expected" in str(raised.value)


def test_a_hub_dataset_out_of_reach_gives_one_clear_error(offline):
    with pytest.raises(OSError, match="data='nobody/nothing' cannot be loaded from the hub"):
        load_split(StudyConfig(data="nobody/nothing"), "train")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"data": [',
        b'{"data": "\xff"}',
        b"[]",
        b"{}",
        b'{"data": 3}',
        b'{"data": ["a"]}',
        b'{"data": [{"title": "a"}]}',
        b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "q", "answers": []}]}]}]}',
    ],
)
def test_a_malformed_file_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json"):
        load_split(config(path), "train")


def broken_answers(tmp_path, answers) -> StudyConfig:
    document = squad()
    document["data"][5]["paragraphs"][1]["qas"][0]["answers"] = answers
    (tmp_path / "broken.json").write_text(json.dumps(document))
    return config(tmp_path / "broken.json")


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [{"text": "Ada Bell", "answer_start": 24}],
        [{"text": "Ada Bell", "answer_start": 25}, {"text": "Bob", "answer_start": 25}],
        [{"text": "Usk", "answer_start": 5_000}],
    ],
)
def test_a_question_whose_answers_are_not_in_its_context_is_named(tmp_path, answers):
    with pytest.raises(ValueError) as raised:
        load_split(broken_answers(tmp_path, answers), "train")
    assert "5-1-0" in str(raised.value) and "broken.json" in str(raised.value)


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "Ada Bell"},
        {"text": "Ada Bell", "answer_start": None},
        {"text": 4, "answer_start": 25},
    ],
)
def test_an_answer_that_is_no_text_with_an_offset_is_refused_with_the_file(tmp_path, answer):
    with pytest.raises(ValueError, match=r"broken\.json"):
        load_split(broken_answers(tmp_path, [answer]), "train")


def test_a_saved_dataset_with_unanswerable_questions_is_refused_by_the_question(tmp_path):
    examples = rows([f"Title {i}" for i in range(12)]).to_list()
    examples[7]["answers"] = {"text": [], "answer_start": []}
    datasets.Dataset.from_list(examples).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="Title 3-1"):
        load_all(
            config(tmp_path / "saved", train_examples=20, selection_examples=2, test_examples=2)
        )


def test_a_saved_dataset_that_lacks_a_column_is_refused_with_its_name(tmp_path):
    rows([f"Title {i}" for i in range(12)]).remove_columns("title").save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="title"):
        load_split(config(tmp_path / "saved"), "train")


def test_a_saved_dataset_without_a_column_is_refused_with_its_name(tmp_path):
    load_split(StudyConfig(train_examples=1), "train").remove_columns("title").save_to_disk(
        tmp_path / "saved"
    )
    with pytest.raises(
        ValueError, match=r"data='.*saved': split 'all' has no title; expected SQuAD v1.1 columns"
    ):
        load_split(StudyConfig(data=str(tmp_path / "saved")), "train")
