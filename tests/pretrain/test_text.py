"""Sources of text and questions: formats, cleaning, and errors that name the place."""

import gzip
import json
import lzma

import pytest

from stage1.pretrain.questions import by_context, read_questions
from stage1.pretrain.text import (
    TEXT_KINDS,
    check_sources,
    cleaned,
    is_hub_id,
    paragraphs,
    read_documents,
    text_of,
)

LONG = "This line has more than six words in it."
ROW = {"context": "The tower is in Paris.", "question": "Where is it?", "answer": "Paris"}


def write(path, text, opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return str(path)


def squad(answer="Paris", start=16):
    answers = [{"text": answer, "answer_start": start}]
    qas = [{"id": "1", "question": "Where is it?", "answers": answers}]
    paragraph = {"context": ROW["context"], "qas": qas}
    return json.dumps({"data": [{"title": "Tower", "paragraphs": [paragraph]}]})


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("opener, suffix", [(open, ""), (lzma.open, ".xz"), (gzip.open, ".gz")])
def test_json_lines_hold_strings_or_objects_packed_or_not(tmp_path, opener, suffix):
    lines = f"{json.dumps('first')}\n{json.dumps({'text': 'second', 'id': 2})}\n"
    source = write(tmp_path / f"a.jsonl{suffix}", lines, opener)
    assert [*read_documents(source)] == ["first", "second"]


def test_a_text_file_is_one_document_and_a_folder_is_all_of_its_files(tmp_path):
    write(tmp_path / "b.txt", "one\ntwo")
    write(tmp_path / "a.md", "zero")
    write(tmp_path / "ignored.csv", "no")
    assert [*read_documents(str(tmp_path))] == ["zero", "one\ntwo"]


def test_a_malformed_line_is_named(tmp_path):
    source = write(tmp_path / "a.jsonl", '"good"\n{"broken\n')
    with pytest.raises(ValueError, match=r"a.jsonl:2: not JSON"):
        list(read_documents(source))


@pytest.mark.parametrize("value", [{"body": "x"}, 3, None, {"text": 4}])
def test_a_line_without_text_is_named(value):
    with pytest.raises(ValueError, match=r"a:1: found .*expected a string, or an object with 'te"):
        text_of(value, "a:1")


def test_short_lines_are_no_paragraphs():
    assert paragraphs(f"History.\n{LONG}\n\n") == [LONG]


def test_cleaning_normalises_and_removes_what_a_tokenizer_would_read_as_special():
    assert cleaned("e\u0301t\u00e9\u200b \x07 a<eos> <bos>b\ufeff") == "\u00e9t\u00e9 a b"


def test_sources_are_checked_before_they_are_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"text='missing.jsonl': no such file; expected"):
        check_sources(["missing.jsonl"], "text", TEXT_KINDS)
    table = write(tmp_path / "a.csv.xz", "x", lzma.open)
    with pytest.raises(ValueError, match=r"a file of kind '.csv'; expected .jsonl, .txt, .md"):
        check_sources([table], "text", TEXT_KINDS)
    check_sources(["owner/name", str(tmp_path)], "text", TEXT_KINDS)


@pytest.mark.parametrize("source, is_id", [("a/b", True), ("./a/b", False), ("/a", False)])
def test_a_hub_id_is_an_owner_and_a_name(source, is_id):
    assert is_hub_id(source) == is_id


def test_a_hub_dataset_is_streamed(monkeypatch):
    import datasets

    calls = []

    def load_dataset(*given, **options):
        calls.append((given, options))
        return [{"text": "one"}, {"text": "two"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [*read_documents("owner/name")] == ["one", "two"]
    assert calls == [(("owner/name",), {"split": "train", "streaming": True})]


# ---------------------------------------------------------------- questions


def test_questions_come_from_json_lines_and_from_squad_files(tmp_path):
    lines = write(tmp_path / "a.jsonl.xz", json.dumps(ROW), lzma.open)
    nested = write(tmp_path / "b.json.gz", squad(), gzip.open)
    one, other = [*read_questions(lines), *read_questions(nested)]
    assert one == other == tuple(ROW.values())


def test_questions_of_a_hub_dataset_have_squads_columns(monkeypatch):
    import datasets

    row = {"context": ROW["context"], "question": "Where?", "answers": {"text": ["Paris"]}}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [row])
    (question,) = read_questions("owner/name")
    assert question.answer == "Paris"


@pytest.mark.parametrize("row", [{**ROW, "answer": "Rome"}, {**ROW, "answer": ""}])
def test_an_answer_outside_its_context_is_refused(tmp_path, row):
    source = write(tmp_path / "a.jsonl", f"{json.dumps(ROW)}\n{json.dumps(row)}")
    with pytest.raises(ValueError, match=r"a.jsonl:2: answer '.*' is not in its context"):
        list(read_questions(source))


@pytest.mark.parametrize("row", [{"context": "x"}, [1], {**ROW, "answer": None}])
def test_a_row_that_is_no_question_is_named(tmp_path, row):
    source = write(tmp_path / "a.jsonl", json.dumps(row))
    with pytest.raises(ValueError, match=r"a.jsonl:1: .*expected 'context', 'question', and 'an"):
        list(read_questions(source))


@pytest.mark.parametrize("text", ["{", "[]", '{"data": [{}]}', squad(start=3)])
def test_a_malformed_squad_file_is_named(tmp_path, text):
    source = write(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match=r"a.json: (not in SQuAD v1.1 form|question '1')"):
        list(read_questions(source))


def test_questions_on_one_passage_stay_together(tmp_path):
    rows = [ROW, {**ROW, "context": "Paris again."}, {**ROW, "question": "In which city?"}]
    source = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    groups = by_context(read_questions(source))
    assert [len(group) for group in groups.values()] == [2, 1]
