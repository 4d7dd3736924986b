"""Prepared rows: what is kept, what is left out, and how the folder is read again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_text import squad, write_sources

from stage1.pretrain import shards
from stage1.pretrain.packing import ids_of, is_answer
from stage1.pretrain.questions import squad_rows
from stage1.pretrain.shards import ShardConfig, prepare, read_shards

PLANTED = "Held-out people: "


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return a config of toy sources; the text holds a passage of the development set."""
    folder = tmp_path_factory.mktemp("sources")
    development = squad(folder / "development.json", "development")
    secret = squad_rows(development)[5]["context"]
    paths = write_sources(folder, planted=PLANTED + secret.upper())
    return ShardConfig(
        text=(paths["text"],),
        questions=(paths["questions"],),
        held_out=(paths["development"],),
        vocabulary=600,
        row=128,
        question_passes=2,
    )


@pytest.fixture(scope="module")
def prepared(sources, tmp_path_factory) -> tuple:
    folder = tmp_path_factory.mktemp("shards")
    report = prepare(folder, sources)
    return folder, report, *read_shards(folder)[:2]


def texts(prepared, kind: str) -> str:
    _, _, tokenizer, rows = prepared
    return tokenizer.decode(ids_of(rows[kind]).ravel())


def test_a_planted_test_passage_is_left_out_and_reported(prepared, sources):
    assert prepared[1]["paragraphs"]["shared with held-out"] >= 1
    assert PLANTED not in texts(prepared, "text") + texts(prepared, "cloze")
    unprotected = prepare(Path(prepared[0]) / "all", replace(sources, held_out=()))
    assert unprotected["paragraphs"]["shared with held-out"] == 0
    others = read_shards(Path(prepared[0]) / "all")
    assert PLANTED in others[0].decode(ids_of(others[1]["text"]).ravel())


def test_test_questions_and_questions_on_test_passages_are_left_out(sources, prepared, tmp_path):
    test = squad_rows(Path(sources.held_out[0]))[0]
    own = "The keeper of the lighthouse kept a garden in Lisbon."
    planted = [
        {"context": own, "question": test["question"].upper(), "answer": "Lisbon"},
        {"context": test["context"], "question": "What is by the river?", "answer": "shop"},
        {"context": own, "question": "Where was the garden?", "answer": "Lisbon"},
    ]
    path = tmp_path / "planted.jsonl"
    path.write_text("\n".join(map(json.dumps, planted)))
    config = replace(sources, questions=(*sources.questions, str(path)))
    counts = prepare(tmp_path / "shards", config)["questions"]
    before = prepared[1]["questions"]
    assert counts["shared with held-out"] == before["shared with held-out"] + 2
    assert counts["kept"] == before["kept"] + 1


def test_what_was_read_is_kept_or_has_a_reason(prepared):
    for name in ("paragraphs", "questions"):
        counts = dict(prepared[1][name])
        assert counts.pop("read") == sum(counts.values()) and counts["kept"] > 0


def test_duplicates_are_left_out(sources, prepared, tmp_path):
    twice = replace(sources, text=sources.text * 2, questions=sources.questions * 2)
    report = prepare(tmp_path, twice)
    for name in ("paragraphs", "questions"):
        assert report[name]["kept"] == prepared[1][name]["kept"]
        assert report[name]["read"] == 2 * prepared[1][name]["read"]


def test_rows_have_text_without_and_questions_with_answers(prepared):
    _, report, _, rows = prepared
    assert not is_answer(rows["text"]).any()
    for name in ("cloze", "questions"):
        assert is_answer(rows[name]).any(1).all()
        assert report["rows"][name]["answer_tokens"] == is_answer(rows[name]).sum()
        assert 0.5 < report["rows"][name]["filled"] <= 1
    assert report["megabytes"] == sum(array.nbytes for array in rows.values()) / 1e6


def test_every_question_is_written_once_per_pass(prepared):
    _, report, tokenizer, rows = prepared
    text = texts(prepared, "questions")
    assert text.count("Answer:") == 2 * report["questions"]["kept"]
    assert text.count("Context:") == (rows["questions"] == tokenizer.bos_token_id).sum()


def test_preparation_is_reproducible(sources, prepared, tmp_path):
    prepare(tmp_path, sources)
    for path in sorted(prepared[0].glob("*.npy")):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    tokenizers = [folder / "tokenizer.json" for folder in (prepared[0], tmp_path)]
    assert tokenizers[0].read_text() == tokenizers[1].read_text()


def test_rows_are_written_in_parts_and_read_in_order(tmp_path, prepared, monkeypatch):
    _, report, _, rows = prepared
    monkeypatch.setattr(shards, "SHARD_BYTES", 10 * 256)
    for name, array in rows.items():
        shards.write_rows(tmp_path, name, array)
    assert len(list(tmp_path.glob("text-*.npy"))) == -(-len(rows["text"]) // 10)
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "tokenizer.json").write_text((prepared[0] / "tokenizer.json").read_text())
    read = read_shards(tmp_path)[1]
    assert all(np.array_equal(read[name], rows[name]) for name in rows)
    shards.write_rows(tmp_path, "text", rows["text"][:10])
    assert [path.name for path in tmp_path.glob("text-*.npy")] == ["text-00.npy"]
    with pytest.raises(ValueError, match=r"rows of text=\d+: expected \d+"):
        read_shards(tmp_path)


def test_an_unprepared_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no report.json; expected a folder that"):
        read_shards(tmp_path)


def test_text_shorter_than_a_row_is_refused(sources, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("These are only a few words of text.")
    with pytest.raises(ValueError, match="expected at least 128 tokens in all"):
        prepare(tmp_path / "shards", replace(sources, text=(str(path),)))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"vocabulary": 40_000}, ValueError, "vocabulary=40000: expected at most 32,768"),
        ({"vocabulary": 10}, ValueError, "vocabulary=10: expected 300 or more"),
        ({"row": 8}, ValueError, "row=8: expected 32 or more"),
        ({"text": ()}, ValueError, r"text=\(\): expected at least one source"),
        ({"text": ("no.jsonl",)}, FileNotFoundError, "text='no.jsonl': no such file"),
        ({"questions": ("no.json",)}, FileNotFoundError, "questions='no.json': no such file"),
        ({"held_out": ("no.json",)}, ValueError, "held_out='no.json': expected an existing"),
        ({"documents": -1}, ValueError, "documents=-1: expected zero or more"),
    ],
)
def test_a_bad_config_is_refused_by_its_field(sources, change, error, message):
    with pytest.raises(error, match=message):
        replace(sources, **change)


def test_options_of_the_command_reach_the_config(sources, tmp_path, monkeypatch, capsys):
    calls = []
    made = {"megabytes": 3.2}
    monkeypatch.setattr(shards, "prepare", lambda *given: calls.append(given) or made)
    options = ["--text", *sources.text, *sources.text, "--vocabulary", "4096"]
    monkeypatch.setattr("sys.argv", ["shards", str(tmp_path), *options])
    shards.main()
    assert calls == [(tmp_path, ShardConfig(text=sources.text * 2, vocabulary=4096))]
    assert "3 MB" in capsys.readouterr().out
