"""Checks before a training: what is OK, what warns, what stops, and the words for each."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from stage1 import check, study
from stage1.check import Level, PreflightError, lines, preflight
from stage1.check import __main__ as command
from stage1.config import StudyConfig, load_preset
from stage1.model import loading

SMALL = {
    "device": "cpu", "train_examples": 60, "selection_examples": 60, "test_examples": 24,
}  # fmt: skip
CHECKS = [
    "language model", "tokenizer", "text", "questions", "prompts", "answers", "compression",
    "learning rate", "task",
]  # fmt: skip


@pytest.fixture(scope="module")
def shipped():
    """A small study of the shipped model."""
    return study.prepare(load_preset("quick").replace(**SMALL))


@pytest.fixture(scope="module")
def own_config(tiny_folder, tmp_path_factory) -> StudyConfig:
    """A local Llama with random weights, and a local file of questions."""
    path = tmp_path_factory.mktemp("own") / "questions.jsonl"
    rows = [
        {"context": f"In {i} the mayor is Ada Bell.", "question": "Who?", "answer": "Ada Bell"}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return StudyConfig(
        preset="own", language_model=str(tiny_folder), data=str(path), device="cpu",
        train_examples=20, selection_examples=4, test_examples=4, batch_size=4, max_new_tokens=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def own(own_config):
    return study.prepare(own_config)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the local Llama, which a test may break."""
    return shutil.copytree(tiny_folder, tmp_path / "lm")


def changed(prepared, **changes):
    return replace(prepared, config=prepared.config.replace(**changes))


# ---------------------------------------------------------------- whole checks


def test_the_shipped_model_passes_every_check(shipped):
    found = preflight(shipped, timing=False)
    assert [line.what for line in found.lines] == CHECKS
    assert {line.level for line in found.lines} == {Level.OK}


def test_a_model_that_cannot_do_the_task_stops_unless_told_otherwise(own_config):
    with pytest.raises(PreflightError, match="this model cannot do this task: F1") as raised:
        preflight(own_config, timing=False)
    found = preflight(own_config, stop=False, timing=False)
    assert [line.what for line in found.stops] == ["task"]
    assert all(row in str(raised.value) for row in str(found).splitlines())


def test_nothing_is_measured_after_a_stop(own_config, monkeypatch):
    monkeypatch.setattr(lines, "time_and_memory", lambda study: pytest.fail("measured"))
    with pytest.raises(PreflightError):
        preflight(own_config)


def test_timing_adds_times_and_memory_and_prints_no_progress_bar(own_config, capsys):
    found = preflight(own_config, stop=False).lines[len(CHECKS) :]
    assert [line.what for line in found] == ["training", "memory", "answering"]
    assert "15 steps in about" in found[0].found
    assert "a report trains 7" in found[0].found and "7 conditions of 4 questions" in found[2].found
    assert capsys.readouterr().out == ""


def test_the_table_names_level_and_check_in_every_line_and_wraps():
    found = check.Preflight([check.Line(Level.WARNING, "prompts", "word " * 60)])
    first, *others = str(found).splitlines()
    assert first.startswith("warning  prompts") and others
    assert all(row.startswith(" " * 27) and len(row) <= 100 for row in others)
    assert "<b>" not in check.Preflight([check.Line(Level.OK, "a", "<b>")])._repr_html_()


# ---------------------------------------------------------------- single checks


def test_a_rehearsal_says_that_its_scores_mean_nothing_and_does_not_stop(own_config):
    rehearsal = study.prepare(own_config.replace(shape_only=True))
    line = lines.model(rehearsal.lm, rehearsal.config)
    assert line.level is Level.WARNING and "random weights" in line.found
    assert lines.task(rehearsal).level is Level.WARNING


def test_the_default_k_on_another_model_warns_with_the_ratio_it_gives(own, own_config):
    line = lines.compression(own)
    assert line.level is Level.WARNING
    assert line.found.startswith("1.33x: K=24 of D=32") and "compressed_width: D/8" in line.found
    ratio = lines.compression(study.prepare(own_config.replace(compressed_width="D/8"), own.lm))
    assert ratio.level is Level.OK and ratio.found.startswith("8x: K=4 of D=32")
    wide = lines.compression(study.prepare(own_config.replace(compressed_width=12), own.lm))
    assert wide.level is Level.OK and wide.found.startswith("2.67x: K=12 of D=32")


def test_a_learning_rate_that_nobody_tried_warns(own, shipped):
    line = lines.learning_rate(own)
    assert line.level is Level.WARNING
    assert "0.001 for option3_teacher_forced: none was ever tried for this model" in line.found
    assert "untried for 7 of 7 objectives" in line.found
    assert lines.learning_rate(changed(own, learning_rate=0.01)).found == "0.01, as given"
    assert "the best of" in lines.learning_rate(shipped).found


def test_shortened_prompts_warn_with_their_share(own_config, own):
    longest = max(map(len, own.encoded["train"].prompts))
    short = study.prepare(own_config.replace(max_prompt_tokens=longest - 2), own.lm)
    share = sum(part.shortened for part in short.encoded.values()) / 28
    line = lines.prompts(short)
    assert share > 0.05 and line.level is Level.WARNING and line.found.startswith(f"{share:.1%} ")
    assert lines.prompts(own).level is Level.OK


def test_prompts_longer_than_the_models_positions_warn(own):
    most = own.lm.model.config.max_position_embeddings
    line = lines.prompts(changed(own, max_prompt_tokens=most - 19))
    assert line.level is Level.WARNING and f"the model's {most:,} positions" in line.found
    assert lines.prompts(changed(own, max_prompt_tokens=most - 20)).level is Level.OK


def test_cut_answers_warn_in_training_and_in_generation(own):
    train = replace(own.encoded["train"], dropped=20)
    dropped = replace(own, encoded=own.encoded | {"train": train})
    assert lines.answers(own).level is Level.OK
    assert lines.answers(dropped).level is Level.WARNING
    assert lines.answers(dropped).found.startswith("50.0% of the training questions")
    line = lines.answers(changed(own, max_new_tokens=1))
    assert line.level is Level.WARNING and "100.0% of the test answers" in line.found


def test_a_missing_selection_split_or_a_single_test_article_warns(own):
    assert lines.questions(own).level is Level.OK
    none = replace(own, encoded=own.encoded | {"selection": own.encoded["selection"].first(0)})
    assert "none to choose settings by" in lines.questions(none).found
    one = replace(own, encoded=own.encoded | {"test": own.encoded["test"].first(1)})
    assert "one test article" in lines.questions(one).found


def test_answers_that_the_tokenizer_cannot_write_warn(own):
    golds = [["another text"] for _ in own.encoded["train"].golds]
    lost = replace(own, encoded=own.encoded | {"train": replace(own.encoded["train"], golds=golds)})
    assert lines.text(own).level is Level.OK
    assert "100.0% of the answers differ" in lines.text(lost).found
    assert lines.text(lost).level is Level.WARNING


def test_a_gap_between_five_and_twenty_points_warns(own, monkeypatch):
    """The passage is worth nothing, 10 points and 40 points."""
    for gain, expected in ((0.0, Level.STOP), (10.0, Level.WARNING), (40.0, Level.OK)):
        scores = iter((50.0 + gain, 50.0))
        real = lines.evaluate

        def scored(*arguments, real=real, scores=scores):
            return real(*arguments).assign(f1=next(scores))

        with monkeypatch.context() as patch:
            patch.setattr(lines, "evaluate", scored)
            assert lines.task(own).level is expected


def test_a_tokenizer_with_more_tokens_than_embeddings_stops(own_config, folder, tokenizer):
    config = json.loads((folder / "tokenizer.json").read_text())
    config["added_tokens"].append(config["added_tokens"][0] | {"id": 4096, "content": "<more>"})
    (folder / "tokenizer.json").write_text(json.dumps(config))
    found = preflight(own_config.replace(language_model=str(folder)), stop=False, timing=False)
    assert found.stops[-1].what == "tokenizer" and found.lines[-1] == found.stops[-1]
    assert "4,097 tokens, but the embedding table has 4,096 rows" in found.stops[-1].found


# ---------------------------------------------------------------- the command and its messages


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["check", *arguments])
    with pytest.raises(SystemExit) as raised:
        command.main()
    return raised.value.code, " ".join(capsys.readouterr().out.split())


def test_the_command_prints_the_table_and_succeeds(monkeypatch, capsys):
    fields = [part for name, value in SMALL.items() for part in ("-p", name, str(value))]
    code, shown = run(monkeypatch, capsys, "quick", *fields, "-p", "warmup_steps", "0")
    assert code == 0 and "OK task F1" in shown and "steps in about" in shown


def test_the_command_takes_a_yaml_file_and_fails_where_a_line_says_stop(
    monkeypatch, capsys, own_config, tmp_path
):
    fields = {
        name: value
        for name, value in own_config.to_dict().items()
        if name != "preset" and value != getattr(StudyConfig(), name)
    }
    (tmp_path / "own.yaml").write_text(json.dumps(fields))
    code, shown = run(monkeypatch, capsys, str(tmp_path / "own.yaml"))
    assert code == 1 and "stop task this model cannot do this task" in shown


def test_a_misspelled_field_is_one_line(monkeypatch, capsys):
    code, shown = run(monkeypatch, capsys, "quick", "-p", "trian_examples", "3")
    assert code == 1 and shown.startswith("stop config unknown parameter 'trian_examples'; did you")


def test_a_prompt_template_of_ones_own_is_one_line():
    """In a process of its own, without the tests' type checks."""
    template = "Read {context} and answer {question}"
    arguments = ["stage1.check", "quick", "-p", "prompt_template", template]
    ended = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    expected = f"stop config prompt_template={template!r}: expected one of 'plain', 'chat'"
    assert ended.returncode == 1 and " ".join(ended.stdout.split()) == expected


def without_end_token(folder):
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({n: v for n, v in values.items() if n != "eos_token"}))
    return "stop language model", "the tokenizer names no end token", "<eos>"


def under_another_name(folder):
    (folder / "tokenizer.json").rename(folder / "tokenizer_raw.json")
    return "stop language model", "has tokenizer_raw.json but no tokenizer.json"


@pytest.mark.parametrize("damage", [without_end_token, under_another_name])
def test_an_incomplete_tokenizer_is_one_line(monkeypatch, capsys, folder, damage):
    words = damage(folder)
    code, shown = run(monkeypatch, capsys, "quick", "-p", "language_model", str(folder))
    assert code == 1 and all(word in shown for word in words)
    assert "sentencepiece" not in shown


def test_a_list_that_holds_no_questions_is_one_line(monkeypatch, capsys, tmp_path):
    path = tmp_path / "flat.json"
    path.write_text(json.dumps(["Who is the mayor?"]))
    code, shown = run(monkeypatch, capsys, "quick", "-p", "data", str(path))
    assert code == 1 and "stop data" in shown
    assert "item 1 of a flat list has a str; expected context, question and answers" in shown


def test_the_model_is_loaded_once(monkeypatch, own_config):
    loads, real = [], loading.load
    monkeypatch.setattr(loading, "load", lambda config: loads.append(1) or real(config))
    preflight(own_config, stop=False, timing=False)
    assert loads == [1]
