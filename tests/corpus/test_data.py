"""Examples from three sources: splits that share no article, seeded choices, and clear errors."""

import json
import sys

import datasets
import pytest

from stage1.config import StudyConfig
from stage1.corpus.data import SPLITS, load_split, rows
from stage1.corpus.grammar import grammar
from stage1.corpus.squad_files import read_squad_json

ARTICLES = 12
PER_ARTICLE = 4
"""Questions on an article of `squad`, over two paragraphs."""
TITLES = [f"Title {i}" for i in range(ARTICLES)]


def squad() -> dict:
    """Return a small SQuAD v1.1 document; every second question has two gold answers."""

    def paragraph(article: int, p: int) -> dict:
        context = f"In town {article} the mayor {p} is Ada Bell and the river is the Usk."
        qas = []
        for q, golds in enumerate([["Ada Bell", "Bell"], ["Usk"]]):
            answers = [{"text": text, "answer_start": context.index(text)} for text in golds]
            qas.append({"id": f"{article}-{p}-{q}", "question": f"Question {q}?"})
            qas[-1]["answers"] = answers
        return {"context": context, "qas": qas}

    data = [
        {"title": f"Title {a:02}", "paragraphs": [paragraph(a, 0), paragraph(a, 1)]}
        for a in range(ARTICLES)
    ]
    return {"version": "1.1", "data": data}


def flat(titles, prefix: str = "") -> datasets.Dataset:
    """Return a flat data set with two questions on each title."""
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


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a data set, or several as splits, and returns its folder."""

    def save(dataset: datasets.Dataset | None = None, **splits: datasets.Dataset):
        (dataset or datasets.DatasetDict(splits)).save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"

    return save


def config(data, **changes) -> StudyConfig:
    sizes = {"train_examples": 20, "selection_examples": 2, "test_examples": 2}
    return StudyConfig(data=str(data), **(sizes | changes))


def load_all(config: StudyConfig) -> dict[str, datasets.Dataset]:
    return {split: load_split(config, split) for split in SPLITS}


def assert_disjoint(splits: dict, column: str = "title") -> None:
    values = [set(split[column]) for split in splits.values()]
    assert all(values) and len(set.union(*values)) == sum(map(len, values))


# ---------------------------------------------------------------- almanac


def test_the_splits_of_the_almanac_share_no_article_and_no_passage():
    sizes = {"train_examples": 600, "selection_examples": 120, "test_examples": 120}
    splits = load_all(config("almanac", **sizes))
    assert [len(split) for split in splits.values()] == [600, 120, 120]
    for column in ("id", "title", "context"):
        assert_disjoint(splits, column)


def test_the_almanac_has_the_features_of_squad():
    text, number = datasets.Value("string"), datasets.Value("int32")
    answers = {"text": datasets.List(text), "answer_start": datasets.List(number)}
    assert load_split(config("almanac"), "train").features == datasets.Features(
        {"id": text, "title": text, "context": text, "question": text, "answers": answers}
    )


@pytest.mark.parametrize("test", ["seen", "unseen"])
@pytest.mark.parametrize("selection", ["seen", "unseen"])
def test_names_may_be_unseen_in_the_splits_that_are_asked_for_them(selection, test):
    held_out = {word for stock in grammar("unseen").names.values() for word in stock.words}
    sizes = {f"{split}_examples": 120 for split in SPLITS}
    names = {"selection_names": selection, "test_names": test}
    has_unseen = {}
    for split, examples in load_all(config("almanac", **names, **sizes)).items():
        used = " ".join(examples["context"]).replace(".", "").split()
        has_unseen[split] = bool(held_out & set(used))
    expected = {"train": False, "selection": selection == "unseen", "test": test == "unseen"}
    assert has_unseen == expected


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


@pytest.mark.parametrize("split", ["selection", "test"])
def test_the_data_seed_decides_which_articles_are_held_out(squad_file, split):
    chosen = {
        frozenset(load_split(config(squad_file, data_seed=seed), split)["title"])
        for seed in range(5)
    }
    assert len(chosen) > 2


@pytest.mark.parametrize("source", ["almanac", "squad"])
def test_the_seed_of_an_adapter_changes_no_example(squad_file, source):
    data = squad_file if source == "squad" else "almanac"
    for split in SPLITS:
        first, other = (rows(config(data, seed=seed), split) for seed in (0, 7))
        assert first == other != rows(config(data, data_seed=7), split)


@pytest.mark.parametrize("source", ["almanac", "squad"])
@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_the_examples_of_the_split_as_plain_dictionaries(squad_file, source, split):
    asked = config(squad_file if source == "squad" else "almanac", data_seed=3)
    examples = rows(asked, split)
    assert examples == load_split(asked, split).to_list() and type(examples[0]) is dict
    assert len(examples) == getattr(asked, f"{split}_examples")


def test_rows_of_the_almanac_do_without_the_library_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it fails
    assert len(rows(StudyConfig(test_examples=5), "test")) == 5


def test_the_chosen_examples_are_spread_over_the_articles(squad_file):
    assert len(set(load_split(config(squad_file), "train")["title"])) > 20 / PER_ARTICLE + 1


@pytest.mark.parametrize("split, available", [("train", 40), ("selection", 4), ("test", 4)])
def test_too_many_examples_are_refused_by_the_name_of_the_field(squad_file, split, available):
    field = f"{split}_examples"
    assert len(load_split(config(squad_file, **{field: available}), split)) == available
    message = f"{field}={available + 1}: expected at most {available}; by article the source has "
    with pytest.raises(ValueError, match=f"{message}40 train, 4 selection, 4 test"):
        load_split(config(squad_file, **{field: available + 1}), split)


@pytest.mark.slow
def test_the_real_squad_sample_loads(squad_sample):
    sizes = {"train_examples": 3_000, "selection_examples": 100, "test_examples": 100}
    splits = load_all(config(squad_sample, **sizes))
    assert_disjoint(splits)
    assert max(len(answers["text"]) for answers in splits["test"]["answers"]) > 1


# ---------------------------------------------------------------- flat lists of questions

CONTEXT = "The mayor is Ada Bell and the river is the Usk."
FULL = {"text": ["Ada Bell", "Bell"], "answer_start": [13, 17]}


def write_rows(path, rows: list):
    whole = path.suffix == ".json"
    path.write_text(json.dumps(rows) if whole else "\n".join([*map(json.dumps, rows), "", ""]))
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    "answers, expected",
    [
        ({"answers": FULL}, FULL),
        ({"answers": {"text": ["Ada Bell", "Bell"]}}, FULL),
        ({"answers": ["Ada Bell", "Bell"]}, FULL),
        (
            {"answers": [{"text": "Usk", "answer_start": 43}]},
            {"text": ["Usk"], "answer_start": [43]},
        ),
        ({"answer": "Usk"}, {"text": ["Usk"], "answer_start": [43]}),
    ],
)
def test_a_flat_list_or_jsonl_gives_rows_in_squads_schema(tmp_path, suffix, answers, expected):
    row = {"id": "a", "title": "b", "context": CONTEXT, "question": "Who?"}
    path = write_rows(tmp_path / f"rows.{suffix}", [row | answers])
    assert read_squad_json(path).to_pylist() == [row | {"answers": expected}]


def test_items_without_id_and_title_are_numbered_and_grouped_by_passage(tmp_path):
    contexts = [CONTEXT, CONTEXT, f"Here, too: {CONTEXT}"]
    items = [{"context": text, "question": "Who?", "answer": "Ada Bell"} for text in contexts]
    table = read_squad_json(write_rows(tmp_path / "rows.jsonl", items)).to_pylist()
    assert [row["id"] for row in table] == ["1", "2", "3"]
    assert table[0]["title"] == table[1]["title"] != table[2]["title"]


def test_the_splits_of_a_jsonl_file_share_no_passage(tmp_path):
    items = [
        {"context": f"{i}. {CONTEXT}", "question": f"Who {q}?", "answer": "Ada Bell"}
        for i in range(20)
        for q in range(2)
    ]
    path = write_rows(tmp_path / "rows.jsonl", items)
    assert_disjoint(load_all(config(path)), "context")


@pytest.mark.parametrize(
    "item, found",
    [
        ("Who?", "item 2 of a flat list has a str; expected context, question and answers"),
        ({"question": "Who?", "answer": "x"}, "has question, answer; expected context"),
        ({"context": CONTEXT, "question": "Who?"}, "has context, question; expected"),
        ({"context": CONTEXT, "question": "Who?", "answers": {"gold": 3}}, "expected context"),
        ({"context": CONTEXT, "question": "Who?", "answer": 3}, "has context, question, answer;"),
        ({"context": CONTEXT, "question": "Who?", "answer": "Bob"}, "'Bob' is not in its context$"),
        ({"context": CONTEXT, "question": "Who?", "answers": []}, "question '2' has no answer"),
        (
            {"context": CONTEXT, "question": "Who?", "answers": FULL | {"answer_start": [13]}},
            "question '2' has 2 answers at 1 offsets",
        ),
        ({"title": "a", "paragraphs": []}, "has title, paragraphs; .*nested form"),
    ],
)
def test_an_item_that_is_no_question_is_named_with_what_was_found(tmp_path, item, found):
    good = {"context": CONTEXT, "question": "Who?", "answer": "Usk"}
    path = write_rows(tmp_path / "rows.jsonl", [good, item])
    with pytest.raises(ValueError, match=rf"rows\.jsonl.*{found}"):
        read_squad_json(path)


def test_a_nested_file_without_a_key_is_told_which(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": []}, {"paragraphs": [{}]}]}))
    with pytest.raises(ValueError, match=r"not in SQuAD v1\.1 form: no 'qas' in it$"):
        read_squad_json(path)


def test_a_malformed_line_is_named_by_its_number(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"context": "c"}\n\n{"context"\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: not JSON: line 3: "):
        read_squad_json(tmp_path / "rows.jsonl")


# ---------------------------------------------------------------- saved data sets


def test_the_validation_split_of_a_saved_dataset_becomes_the_test(saved):
    shared = "Title 3"
    train, validation = flat(TITLES, "t"), flat([shared, "Other", "Third"], "v")
    data = saved(train=train, validation=validation)
    splits = load_all(config(data, train_examples=18, test_examples=6))
    assert set(splits["test"]["id"]) == set(validation["id"])
    assert_disjoint(splits)
    for split, examples in splits.items():
        assert (shared in examples["title"]) == (split == "test")


def test_the_data_seed_decides_which_examples_of_a_given_test_split_are_chosen(saved):
    data = saved(**{name: flat([f"{name} {i}" for i in range(12)]) for name in ("train", "test")})
    chosen = {tuple(load_split(config(data, data_seed=seed), "test")["id"]) for seed in range(5)}
    assert len(chosen) > 2


def test_a_test_split_takes_precedence_over_a_validation_split(saved):
    names = ("validation", "train", "test")
    data = saved(**{name: flat([f"{name} {i}" for i in range(12)]) for name in names})
    for split, examples in load_all(config(data)).items():
        source = "test" if split == "test" else "train"
        assert {title.split()[0] for title in examples["title"]} == {source}


@pytest.mark.parametrize("name", [None, "validation"])
def test_a_saved_dataset_with_a_single_split_is_split_by_article(saved, name):
    data = saved(**{name: flat(TITLES)}) if name else saved(flat(TITLES))
    assert_disjoint(load_all(config(data)))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("load", [load_split, rows])
def test_an_unknown_split_is_refused(load):
    with pytest.raises(ValueError, match=r"split='dev'.*train, selection, test"):
        load(StudyConfig(), "dev")


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
        b'{"data": "\xff"}',
        b"[]",
        b"{}",
        b'{"data": 3}',
        b'{"data": ["a"]}',
        b'{"data": [{"title": "a"}]}',
        b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "answers": []}]}]}]}',
    ],
)
def test_a_malformed_file_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json"):
        load_split(config(path), "train")


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [{"text": "Ada Bell", "answer_start": 24}],
        [{"text": "Ada Bell", "answer_start": 25}, {"text": "Bob", "answer_start": 25}],
        [{"text": "Usk", "answer_start": 5_000}],
        [{"text": "Ada Bell", "answer_start": None}],
        [{"text": 4, "answer_start": 25}],
        [{"text": "Ada Bell"}],
    ],
)
def test_a_question_with_a_wrong_answer_is_named(tmp_path, answers):
    document = squad()
    document["data"][5]["paragraphs"][1]["qas"][0]["answers"] = answers
    (tmp_path / "broken.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"broken\.json") as raised:
        load_split(config(tmp_path / "broken.json"), "train")
    missing = any("answer_start" not in answer for answer in answers)
    assert ("'answer_start'" if missing else "5-1-0") in str(raised.value)


def test_a_saved_dataset_with_an_unanswerable_question_is_refused_by_the_question(saved):
    examples = flat(TITLES).to_list()
    examples[7]["answers"] = {"text": [], "answer_start": []}
    with pytest.raises(ValueError, match="Title 3-1"):
        load_all(config(saved(datasets.Dataset.from_list(examples))))


def test_a_saved_dataset_without_a_column_is_refused_with_its_name(saved):
    data = saved(flat(TITLES).remove_columns("title"))
    expected = r"data='.*saved': split 'all' has no title; expected SQuAD v1.1 columns"
    with pytest.raises(ValueError, match=expected):
        load_split(config(data), "train")
