"""One question under every condition: the same answers as an evaluation, and their probability."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

import stage1
from stage1 import adapter as adapters
from stage1 import store, study
from stage1.ask import Reader
from stage1.ask import __main__ as command
from stage1.ask.folders import find
from stage1.compress import Kind
from stage1.config import StudyConfig, load_preset
from stage1.corpus import data, encode
from stage1.evaluation import evaluate

SMALL = {"device": "cpu", "train_examples": 400, "selection_examples": 0, "test_examples": 4}
CONFIG = load_preset("quick").replace(**SMALL)
UNTRAINED = ["text", "embeddings", "pca_inverse", "codebook"]


@pytest.fixture(scope="module")
def reader():
    return stage1.load(**SMALL)


@pytest.fixture(scope="module")
def examples():
    return data.rows(CONFIG, "test")


@pytest.fixture(scope="module")
def example(examples):
    return examples[0]["context"], examples[0]["question"]


def answers(reading) -> dict[str, str]:
    return dict(zip(reading.table["condition"], reading.table["answer"], strict=True))


# ---------------------------------------------------------------- the same code path


def test_importing_the_package_imports_no_torch():
    code = "import sys, stage1; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=10)


def test_answers_are_those_of_an_evaluation(reader, examples):
    tables = study.prepare(CONFIG, reader.lm).untrained()
    asked = [reader.ask(row["context"], row["question"], adapter=()) for row in examples]
    encoded = encode(examples, reader.lm.tokenizer, CONFIG)
    for name in UNTRAINED:
        scored = evaluate(reader.lm, encoded, name, tables[name], CONFIG, "")
        assert [answers(reading)[name] for reading in asked] == list(scored["prediction"])
    alone = encode([{**row, "context": ""} for row in examples], reader.lm.tokenizer, CONFIG)
    floor = evaluate(reader.lm, alone, "question_only", None, CONFIG, "")
    assert [answers(reading)["question_only"] for reading in asked] == list(floor["prediction"])


def test_answers_of_a_committed_adapter_are_those_in_its_record(reader):
    """The record was taken on another machine, so one answer of five may differ by rounding."""
    ((label, folder),) = find("distill", reader.own_folders).items()
    assert label == "full/distill-seed0"
    recorded = store.read_table(folder / "answers.parquet").head(5).set_index("id")["prediction"]
    rows = {row["id"]: row for row in data.rows(CONFIG.replace(test_examples=5), "test")}
    asked = {
        name: reader.ask(rows[name]["context"], rows[name]["question"], "distill").answer
        for name in recorded.index
    }
    assert sum(asked[name] == recorded[name] for name in asked) >= 4


def test_text_and_embeddings_agree_and_lookup_loses_nothing_at_any_ratio(reader, example):
    for ratio in (2, 8, 64):
        found = answers(reader.ask(*example, adapter=(), ratio=ratio))
        assert found["text"] == found["embeddings"] == found["codebook"]


def test_all_components_lose_nothing(reader, example):
    reading = reader.ask(*example, adapter=(), ratio=1)
    assert reading.condition == "pca_inverse"
    assert reading.answer == answers(reading)["embeddings"]


# ---------------------------------------------------------------- probabilities


def test_the_probability_is_the_product_of_the_greedy_tokens_probabilities(reader, example):
    reading, lm = reader.ask(*example, adapter=()), reader.lm
    prompt, _ = reader_prompt(reader, example)
    product, ids = 1.0, list(prompt)
    for text, probability in reading.tokens:
        with torch.inference_mode():
            logits = lm.model(torch.tensor([ids])).logits[0, -1].float()
        token = int(logits.argmax())
        assert lm.tokenizer.decode([token]) == text
        assert float(logits.softmax(-1)[token]) == pytest.approx(probability, rel=1e-4)
        product, ids = product * probability, [*ids, token]
    assert ids[-1] in lm.end_tokens
    assert reading.probability == pytest.approx(product, rel=1e-6)
    row = reading.table.set_index("condition").loc["embeddings"]
    assert row["tokens"] == len(reading.tokens) and row["ended"]
    assert row["per_token"] == pytest.approx(product ** (1 / len(reading.tokens)))


def reader_prompt(reader, example):
    return stage1.ask.reader.shorten(reader.lm.tokenizer, reader.config, *example)


def test_an_answer_that_does_not_end_says_so(example):
    reading = stage1.load(**SMALL, max_new_tokens=1).ask(*example, adapter=())
    row = reading.table.set_index("condition").loc["embeddings"]
    assert not row["ended"] and row["tokens"] == 1 and len(reading.tokens) == 1


# ---------------------------------------------------------------- adapters, ratios and cuts


def test_without_an_adapter_all_committed_ones_are_asked(reader, example):
    reading = reader.ask(*example)
    committed = {f"full/{path.name}" for path in store.records_folder().glob("full/adapters/*")}
    assert committed and set(answers(reading)) == {*UNTRAINED, "question_only", *committed}
    assert reading.condition == "embeddings"


def test_the_first_adapter_given_answers_and_lends_its_compression(reader, example):
    reading = reader.ask(*example, adapter=["answer_ce", "distill"])
    assert reading.condition == "full/answer_ce-seed0"
    assert set(answers(reading)) - {*UNTRAINED, "question_only"} == {
        "full/answer_ce-seed0",
        "full/distill-seed0",
    }
    assert reader.ask(*example, adapter="distill", ratio=16).condition == "full/distill-seed0"


@pytest.mark.parametrize("ratio, K", [(1, 192), (4, 48), (8, 24), (10.7, 18), (64, 3), (192, 1)])
def test_the_ratio_sets_k_of_the_untrained_conditions_alone(reader, example, ratio, K):
    table = reader.ask(*example, adapter="distill", ratio=ratio).table.set_index("condition")
    assert list(table.loc[["pca_inverse", "codebook"], "K"]) == [K, K]
    assert table.loc["full/distill-seed0", "K"] == 24
    assert table.loc["full/distill-seed0", "ratio"] == 8.0
    assert table.loc[["text", "embeddings", "question_only"], "K"].isna().all()


def test_a_passage_that_is_too_long_is_cut_and_the_result_says_how_much(reader, example):
    context, question = example
    reading = reader.ask(f"{context} {context * 3}", question, adapter=())
    assert reading.cut > 0 and len(reading.context) + reading.cut == 4 * len(context) + 1
    assert f"last {reading.cut} characters were cut" in str(reading)
    assert reader.ask(context, question, adapter=()).cut == 0


def test_the_result_prints_with_blanks_and_shows_text_as_text(reader, example):
    reading = reader.ask(*example, adapter=())
    (line,) = [row for row in str(reading).splitlines() if row.strip().startswith("embeddings")]
    assert line.rstrip().endswith("True") and reading.answer in line
    answers = {name: own._replace(text="<b>x</b>") for name, own in reading.answers.items()}
    assert "<b>" not in replace(reading, answers=answers)._repr_html_()


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"question": " \n"}, "question=' .*: expected a question, not empty"),
        ({"question": 3}, "question=3: expected text"),
        ({"context": None}, "context=None: expected text"),
        ({"question": "why " * 300}, "max_prompt_tokens=160: expected at least"),
        ({"adapter": "distil"}, "adapter='distil'.*full/as_found-seed0.*did you mean 'distill'"),
        ({"adapter": ["as_fond"]}, "adapter='as_fond'.*did you mean 'as_found'"),
        ({"ratio": 0.5}, "ratio=0.5: expected a number from 1 to 192"),
        ({"ratio": 200}, "ratio=200: expected a number from 1 to 192"),
        ({"ratio": True}, "ratio=True: expected a number"),
    ],
)
def test_bad_input_is_refused_by_name(example, changes, message, reader):
    asked = {"context": example[0], "question": example[1], "adapter": ()} | changes
    ask = getattr(Reader.ask, "__wrapped__", Reader.ask)  # without the tests' type checks
    with pytest.raises(ValueError, match=message):
        ask(reader, **asked)


def test_a_folder_without_an_adapter_is_refused(reader, example, tmp_path):
    with pytest.raises(ValueError, match=r"adapter='.*': expected a folder with adapter\.json"):
        reader.ask(*example, adapter=tmp_path)


# ---------------------------------------------------------------- one's own model and data


@pytest.fixture(scope="module")
def questions_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "questions.jsonl"
    rows = [
        {"context": f"In {i} the mayor is Ada Bell.", "question": "Who?", "answer": "Ada Bell"}
        for i in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def own_reader(tiny_folder, questions_file):
    return stage1.load(
        language_model=str(tiny_folder), data=str(questions_file), device="cpu",
        train_examples=20, compressed_width="D/8",
    )  # fmt: skip


def test_a_local_model_with_local_data_is_asked(own_reader):
    table = own_reader.ask("The river is the Usk.", "Which river?").table.set_index("condition")
    assert set(table.index) == {*UNTRAINED, "question_only"}
    assert table.loc["pca_inverse", "K"] == 4 and table.loc["pca_inverse", "ratio"] == 8
    assert table["probability"].between(0, 1).all()


def test_a_ratio_that_few_prompts_do_not_span_is_refused_with_the_reason(own_reader):
    narrow = replace(own_reader, pca=own_reader.pca.narrowed(10))
    with pytest.raises(
        ValueError, match=r"ratio=3: .* from 3\.2 to 32 .*prompts span 10 dimensions"
    ):
        narrow.ask("The river is the Usk.", "Which river?", ratio=3)
    assert narrow.ask("The river is the Usk.", "Which?", ratio=3.2).table["K"].max() == 10


def test_vocabulary_weighting_reads_no_data(tiny_folder):
    reader = stage1.load(
        language_model=str(tiny_folder), device="cpu", data="./nowhere", weighting="vocabulary",
        compressed_width=4,
    )  # fmt: skip
    assert reader.pca.width == reader.D
    assert not math.isnan(reader.ask("The river is the Usk.", "Which?").probability)


def test_english_is_asked_without_a_network(offline):
    words = r"^the PCA weighs all vocabulary entries the same, because .*data='rajpurkar/squad'"
    with pytest.warns(UserWarning, match=words):
        reader = stage1.load("squad", device="cpu")
    context = "The bridge over the Tamar was opened by Prince Albert in May 1859."
    table = reader.ask(context, "Who opened the bridge?").table.set_index("condition")
    assert set(table.index) >= {*UNTRAINED, "question_only"}
    assert table["probability"].between(0, 1).all()
    answers = table.loc[["text", "embeddings", "codebook"], "answer"]
    assert set(answers) == {"Prince Albert"}
    assert table.loc["pca_inverse", "K"] == reader.D / 8 and reader.pca.width == reader.D
    assert reader.pca.kind is Kind.PCA_VOCABULARY and reader.config.weighting == "vocabulary"


def test_only_the_hub_may_fail(tiny_folder, tmp_path, offline):
    """A missing or malformed file of one's own, or a wrong name, is an error all the same."""
    own = {"language_model": str(tiny_folder), "device": "cpu", "compressed_width": 4}
    (tmp_path / "bad.json").write_text("{")
    for given, error in (("bad.json", ValueError), ("none.json", FileNotFoundError)):
        with pytest.raises(error, match=given):
            stage1.load(data=str(tmp_path / given), **own)
    with pytest.raises(FileNotFoundError, match=r"data='\./nowhere'"):
        stage1.load(data="./nowhere", **own)


def test_an_adapter_of_another_model_is_refused(reader, own_reader, example, tmp_path):
    config = StudyConfig(compressed_width=4, initialisation="random", output_scaling="unit_rms")
    pca, table = own_reader.pca.narrowed(4), own_reader.lm.embedding_table
    counts = torch.ones(len(table), dtype=torch.int64)
    made = adapters.make(pca, table, counts, config)
    adapters.save(made, tmp_path, own_reader.config.replace(compressed_width=4), own_reader.lm)
    asked = own_reader.ask("The river is the Usk.", "Which river?", adapter=tmp_path)
    assert asked.condition == str(tmp_path) and asked.table["K"].max() == 4
    with pytest.raises(ValueError, match=r"language_model='shipped': expected '.*' with D=32"):
        reader.ask(*example, adapter=tmp_path)
    with pytest.raises(ValueError, match=r"language_model='.*': expected 'shipped' with D=192"):
        own_reader.ask("The river is the Usk.", "Which river?", adapter="full/distill-seed0")


# ---------------------------------------------------------------- time and command


def test_a_question_takes_less_than_two_seconds(reader, example):
    begin = time.process_time()
    reader.ask(*example)
    assert time.process_time() - begin < 2


def run(monkeypatch, *arguments: str) -> None:
    fields = [part for name, value in SMALL.items() for part in ("-p", name, str(value))]
    monkeypatch.setattr(sys, "argv", ["ask", *arguments, *fields])
    command.main()


def test_the_command_answers_a_test_question(monkeypatch, capsys, examples):
    run(monkeypatch, "--adapter", "distill", "--ratio", "16")
    shown = capsys.readouterr().out
    assert examples[0]["question"] in shown and examples[0]["answers"]["text"][0] in shown
    assert "from full/distill-seed0, probability" in shown and "pca_inverse" in shown


def test_the_command_answers_a_question_of_ones_own(monkeypatch, capsys, tmp_path, example):
    (tmp_path / "passage.txt").write_text(example[0])
    run(monkeypatch, f"@{tmp_path / 'passage.txt'}", example[1])
    assert "from embeddings, probability" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["passage", "question?", "--adapter", "distil"], "did you mean 'distill'"),
        (["passage", " "], "question=' ': expected a question"),
        (["@nowhere.txt", "question?"], "nowhere.txt"),
        (["passage", "question?", "-p", "datta", "x"], "did you mean 'data'"),
    ],
)
def test_the_command_ends_with_one_clear_line(monkeypatch, arguments, message):
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, *arguments)
    assert message in str(raised.value)
