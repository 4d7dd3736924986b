"""Training on real text at toy size: losses, exact resume, a whole run, and its errors."""

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from toy_text import write_sources

from stage1 import store
from stage1.config import StudyConfig
from stage1.model import loading
from stage1.pretrain import reader, reader_card, reader_scores, reader_training
from stage1.pretrain import shards as preparation
from stage1.pretrain.reader_training import Training, train
from stage1.pretrain.recipe import ReaderConfig, parameters
from stage1.pretrain.shards import ShardConfig, prepare, read_shards
from stage1.pretrain.speed import Meter, matmul_rate
from stage1.pretrain.transformer import exported

TINY = ReaderConfig(width=32, depth=2, heads=2, steps=12, batch=4, questions_from=0.2, device="cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def shards(paths, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    config = ShardConfig(
        text=(paths["text"],),
        questions=(paths["questions"],),
        held_out=(paths["development"],),
        vocabulary=600,
        row=192,
    )
    prepare(folder, config)
    return folder


@pytest.fixture
def training(shards):
    """Return a function that makes the state of a training by a changed recipe."""
    tokenizer, rows, _ = read_shards(shards)
    return lambda **changes: Training(replace(TINY, **changes), tokenizer, rows)


def weights(training: Training) -> torch.Tensor:
    return parameters_to_vector(training.model.parameters())


# ---------------------------------------------------------------- steps


def test_the_loss_is_the_weighted_cross_entropy_within_documents(training):
    state = training(answer_weight=5.0)
    kind = sum(len(x) for x in read_rows(state)[:2])
    codes = state.rows[[0, 1, kind, kind + 1]]  # text and questions
    state.backward(codes, state.supervision(codes).weights.sum())
    ids, answer = codes.long() & 0x7FFF, codes < 0
    assert answer.any() and not answer[:2].any()
    logits = state.model.hidden(ids, state.documents(ids), torch.float32) @ state.model.head.T
    nll = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    targets = ids[:, 1:].flatten()
    real = (targets != state.pad) & (targets != state.begin)
    weight = real * torch.where(answer[:, 1:].flatten(), 5.0, 1.0)
    state.reading()
    row = state.curve[0]
    assert row["loss"] == pytest.approx(((weight * nll).sum() / weight.sum()).item(), rel=1e-4)
    assert row["cross_entropy"] == pytest.approx(nll[real].mean().item(), rel=1e-4)
    answered = nll[answer[:, 1:].flatten()].mean().item()
    assert row["answer_cross_entropy"] == pytest.approx(answered, rel=1e-4)
    gradients = [p.grad.clone() for p in state.model.parameters()]
    state.model.zero_grad()
    ((weight * nll).sum() / weight.sum()).backward()
    for found, parameter in zip(gradients, state.model.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-6)


def read_rows(state: Training) -> list:
    sizes = state.identity["rows"]
    return list(state.rows.split([*sizes.values()]))


def test_the_number_of_microbatches_changes_no_gradient(training):
    figures = []
    for parts in (1, 2, 4):
        state = training(microbatches=parts)
        codes = state.rows[state.order[-1]]
        assert (codes < 0).any(1).tolist() == [False, False, True, True]
        total = state.supervision(codes).weights.sum()
        for part in codes.chunk(parts):
            state.backward(part, total)
        figures.append([state.sums, *(p.grad for p in state.model.parameters())])
    for other in figures[1:]:
        torch.testing.assert_close(other, figures[0], rtol=1e-3, atol=1e-6)


def test_some_steps_lower_the_loss(training, tmp_path, monkeypatch):
    monkeypatch.setattr(reader_training, "READ_EVERY", 20)
    state = training(steps=40)
    assert train(state, tmp_path / "checkpoint.pt")
    curve = pd.DataFrame(state.curve)
    assert curve["step"].tolist() == [20, 40]
    assert curve["cross_entropy"].iloc[-1] < curve["cross_entropy"].iloc[0] - 1
    assert curve["tokens_per_s"].iloc[-1] > 0 and curve["share_of_matmul_rate"].iloc[-1] > 0
    assert curve["answer_accuracy"].iloc[-1] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"muon_rate": 1e-3}, {"adam_rate": 1e-3}, {"weight_decay": 0.0},
        {"answer_weight": 1.0}, {"questions_from": 0.5}, {"cloze_from": 0.1}, {"cloze_to": 1.0},
        {"decay": 0.9},
        {"warmup": 0.5}, {"questions_share": 0.1}, {"tied": True}, {"dropout": 0.1},
    ],
)  # fmt: skip
def test_every_part_of_the_recipe_has_an_effect(training, change):
    first, other = training(steps=6), training(steps=6, **change)
    for state in (first, other):
        for _ in range(6):
            state.take_step()
    assert not torch.equal(weights(first), weights(other))


def test_dropout_differs_by_step_and_without_it_nothing_is_drawn(training):
    state, before = training(), torch.get_rng_state()
    state.take_step()
    assert torch.equal(torch.get_rng_state(), before)
    state = training(dropout=0.5, muon_rate=1e-9, adam_rate=1e-9)
    state.order[:] = state.order[0].clone()  # the same rows in every step
    losses = []
    for _ in range(3):
        state.take_step()
        losses.append(state.sums[2].item())
        state.sums.zero_()
    assert len(set(losses)) == 3


@torch.no_grad()
def test_an_exported_reader_leaves_nothing_out(training, shards):
    state, (tokenizer, _, _) = training(dropout=0.5), read_shards(shards)
    ids = state.rows[:2].long() & 0x7FFF
    llama = exported(state.model, tokenizer, 192).train()
    documents = torch.ones(192, 192, dtype=torch.bool).tril()[None, None]
    logits = state.model.hidden(ids, documents, torch.float32) @ state.model.head.T
    torch.testing.assert_close(llama(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_resumed_training_ends_bit_for_bit_as_an_unbroken_one(
    training, tmp_path, monkeypatch, dropout
):
    monkeypatch.setattr(reader_training, "READ_EVERY", 5)
    unbroken, path = training(dropout=dropout), tmp_path / "checkpoint.pt"
    assert train(unbroken, tmp_path / "other.pt")
    calls = 0
    while True:
        state = training(dropout=dropout, pause_after=1e-9)  # pauses at every reading
        torch.manual_seed(calls)
        if path.exists():
            state.load(path)
        calls += 1
        if train(state, path):
            break
        assert state.step < TINY.steps
    assert calls == 3 and state.step == TINY.steps
    assert torch.equal(weights(state), weights(unbroken))
    for one, other in zip(state.optimizers, unbroken.optimizers, strict=True):
        torch.testing.assert_close(
            one.state_dict()["state"], other.state_dict()["state"], rtol=0, atol=0
        )
    columns = ["step", "loss", "cross_entropy", "answer_cross_entropy"]
    one, other = (pd.DataFrame(s.curve)[columns] for s in (state, unbroken))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert state.curve[-1]["seconds"] > state.curve[0]["seconds"] > 0


def test_a_checkpoint_of_another_recipe_is_refused(training, tmp_path):
    path = tmp_path / "checkpoint.pt"
    training().save(path)
    with pytest.raises(store.RecordError, match="another muon_rate; expected the same command"):
        training(muon_rate=1e-3).load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(store.RecordError, match="truncated or malformed"):
        training().load(path)


def test_a_checkpoint_with_anything_but_plain_values_is_refused(training, tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"identity": training().identity, "step": Path("code")}, path)
    with pytest.raises(store.RecordError, match="truncated or malformed"):
        training().load(path)


def test_a_write_that_fails_leaves_the_last_checkpoint(training, tmp_path, monkeypatch):
    path, state = tmp_path / "checkpoint.pt", training()
    state.save(path)

    def fail(_, target):
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        state.save(path)
    training().load(path)


# ---------------------------------------------------------------- the command


def command(monkeypatch, folder, *options: str) -> None:
    monkeypatch.setattr("sys.argv", ["reader", str(folder), *options])
    reader.main()


def test_one_command_prepares_trains_scores_and_writes_a_card(paths, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reader_training, "READ_EVERY", 5)
    folder = tmp_path / "made" / "reader"
    options = [
        "--text", paths["text"], "--questions", paths["questions"],
        "--development", paths["development"], "--vocabulary", "600", "--row", "192",
        "--width", "32", "--heads", "2", "--depth", "1", "--steps", "12", "--batch", "4",
        "--device", "cpu", "--licences", "All of it is made up.",
    ]  # fmt: skip
    command(monkeypatch, folder, *options, "--pause-after", "1e-9")
    assert "paused" in capsys.readouterr().out and not (folder / "training.json").exists()
    command(monkeypatch, folder, *options)
    assert {path.name for path in folder.iterdir()} >= {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "training.json", "training_curve.csv", "shards",
    }  # fmt: skip
    record = json.loads((folder / "training.json").read_text())
    assert record["shards"]["config"]["held_out"] == ["development.json"]
    assert record["tokens_read"] == 12 * 4 * 192 == 192 * sum(record["rows_read"].values())
    scores = {score["condition"]: score for score in record["scores"]}
    assert list(scores) == ["text", "question_only"]
    assert scores["text"]["questions"] == 12
    for score in scores.values():
        assert score["f1"]["low"] <= score["f1"]["mean"] <= score["f1"]["high"]
    card = (folder / "README.md").read_text()
    assert f"{record['parameters']:,} parameters" in card and "question_only" in card
    assert "All of it is made up." in card and "development.json" in card
    assert "/development.json" not in (folder / "training.json").read_text()  # names alone
    lm = loading.load(StudyConfig(language_model=str(folder), device="cpu"))
    assert sum(p.numel() for p in lm.model.parameters()) == record["parameters"]
    assert pd.read_csv(folder / "training_curve.csv")["step"].tolist() == [5, 10, 12]


@pytest.fixture
def english() -> Path:
    """The folder of the English reader of the package."""
    return Path(loading.IN_PACKAGE["english"])


def test_the_card_of_the_english_reader_is_the_one_its_records_give(english, tmp_path):
    copied = tmp_path / english.name
    shutil.copytree(english, copied)
    text = (copied / "README.md").read_text()
    assert reader_card.write_card(copied).read_text() == text and text.startswith("# english-lm\n")
    text_scores, floor = store.read_json(english / "training.json")["scores"]
    for score in (text_scores, floor):
        f1 = f"{score['f1']['mean']:.1f} [{score['f1']['low']:.1f}, {score['f1']['high']:.1f}]"
        row = f"| {score['condition']} | {score['questions']} | {100 * score['ended']:.1f}% |"
        assert row in text and f"| {f1} |" in text


def test_the_documented_commands_make_the_english_readers(english, tmp_path, monkeypatch):
    record, calls = store.read_json(english / "training.json"), []
    wider = store.read_json(store.ROOT / "records/english/d512/training.json")
    page = (store.ROOT / "docs" / "readers.md").read_text().replace("\\\n", " ")
    commands = [
        line.split()[3:]
        for line in page.splitlines()
        if "stage1.pretrain" in line and "dev-v1.1-half.json" in line
    ]
    monkeypatch.setattr(
        preparation, "prepare", lambda *given: calls.append(given) or {"megabytes": 0}
    )
    monkeypatch.setattr(reader, "run", lambda *given: calls.append(given))
    monkeypatch.setattr(reader, "choose_device", str)
    monkeypatch.setattr(reader, "check_development", str)
    monkeypatch.chdir(tmp_path)
    for kind in ("text", "questions", "held_out"):
        for name in record["shards"]["config"][kind]:
            Path(name).touch()
    programs = preparation.main, reader.main, reader.main
    for main, arguments in zip(programs, commands, strict=True):
        monkeypatch.setattr("sys.argv", ["command", *arguments])
        main()
    (folder, shards), *trained = calls
    expected = record["shards"]["config"] | {"licences": []}
    assert shards.described() == expected
    for made, (_, same_folder, config, _) in zip((record, wider), trained, strict=True):
        assert folder == same_folder and config == ReaderConfig(**made["config"])


def test_shards_and_presets_stand_for_options(shards, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(reader, "run", lambda *given: calls.append(given))
    preset = ["--preset", "d768", "--width", "128", "--device", "cpu"]
    command(monkeypatch, tmp_path, "--shards", str(shards), *preset)
    config = ReaderConfig(width=128, depth=12, device="cpu")
    assert calls == [(tmp_path, shards, config, "")]


@pytest.mark.parametrize(
    "options, error",
    [
        (["--vocabulary", "700"], "vocabulary=700: expected the options that .* made with, .*=600"),
        (["--text", "other.jsonl"], "text='other.jsonl'|no such file"),
    ],
)
def test_shards_of_other_options_are_not_taken_for_these(
    paths, shards, tmp_path, monkeypatch, options, error
):
    given = ["--text", paths["text"], "--questions", paths["questions"], "--row", "192"]
    (tmp_path / "shards").symlink_to(shards)
    held_out = ["--held-out", paths["development"], "--vocabulary", "600", "--device", "cpu"]
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        command(monkeypatch, tmp_path, *given, *held_out, *options)


def test_preparation_options_do_not_go_with_prepared_shards(shards, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="vocabulary=700: expected none beside --shards"):
        options = ["--vocabulary", "700", "--device", "cpu"]
        command(monkeypatch, tmp_path, "--shards", str(shards), *options)


def test_a_development_set_that_was_not_held_out_is_refused(paths, shards, tmp_path, monkeypatch):
    options = ["--shards", str(shards), "--development", paths["questions"], "--device", "cpu"]
    with pytest.raises(ValueError, match=r"development='questions\.json': expected a file that"):
        command(monkeypatch, tmp_path, *options)


@pytest.mark.parametrize(
    "options, error",
    [
        (["--development", "no.json"], "development='no.json': expected an existing"),
        (["--width", "63"], "width=63: expected an even multiple of heads=1"),
        (["--text", "no.jsonl"], "text='no.jsonl': no such file"),
        ([], "text=.*expected at least one source"),
    ],
)
def test_bad_options_fail_before_any_work(tmp_path, monkeypatch, options, error):
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        command(monkeypatch, tmp_path, "--device", "cpu", *options)
    assert not any(tmp_path.iterdir())


def test_a_missing_gpu_is_named_before_any_work(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda': no GPU is visible"):
        command(monkeypatch, tmp_path, "--text", paths["text"])
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_reader_learns_to_copy_the_answer_from_passages_it_has_not_seen(tmp_path):
    """A letter in a passage: the whole way from sources to F1, where one shifted label gives 4."""
    letter_questions(tmp_path / "train.json", "train", 4_000)
    development = letter_questions(tmp_path / "development.json", "development", 100)
    (tmp_path / "text.txt").write_text("\n".join(letter(random.Random(i))[0] for i in range(300)))
    shards = ShardConfig(
        text=(str(tmp_path / "text.txt"),),
        questions=(str(tmp_path / "train.json"),),
        vocabulary=400,
        row=96,
        question_passes=1,
    )
    prepare(tmp_path / "shards", shards)
    config = replace(
        TINY, width=64, steps=240, batch=12, questions_from=0.0, questions_share=1.0, cloze_from=0.0
    )
    reader.run(tmp_path / "lm", tmp_path / "shards", config)
    text, floor = reader_scores.score(tmp_path / "lm", str(development), "cpu")
    assert text["f1"]["mean"] > 80 and floor["f1"]["mean"] < 20 and text["shortened"] == 0


def letter(rng: random.Random) -> tuple[str, str]:
    answer, *others = (rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(4))
    return f"Here we saw that it was {answer} today in {''.join(others)}.", answer


def letter_questions(path: Path, seed: str, count: int) -> Path:
    rng = random.Random(seed)
    paragraphs = []
    for i in range(count):
        context, answer = letter(rng)
        answers = [{"text": answer, "answer_start": context.index(f" {answer} ") + 1}]
        qas = [{"id": str(i), "question": "Which was it?", "answers": answers}]
        paragraphs.append({"context": context, "qas": qas})
    path.write_text(json.dumps({"data": [{"title": "letters", "paragraphs": paragraphs}]}))
    return path


# ---------------------------------------------------------------- scores and speed


def test_scores_are_those_of_the_studys_evaluation(paths, tmp_path, monkeypatch):
    examples = reader_scores.squad_rows(Path(paths["development"]))

    def evaluate(lm, encoded, condition, table, config):
        assert table is None and config.max_prompt_tokens == 512 - reader_scores.ANSWER_TOKENS
        texts = lm.tokenizer.batch_decode(encoded.prompts)
        right = [
            100.0 * (example["context"] in t) for example, t in zip(examples, texts, strict=True)
        ]
        columns = {"ended": True, "f1": right, "em": right, "title": encoded.titles}
        return pd.DataFrame(columns, index=range(len(encoded)))

    monkeypatch.setattr(reader_scores, "evaluate", evaluate)
    folder = str(loading.SHIPPED)
    text, floor = reader_scores.score(Path(folder), paths["development"], "cpu")
    assert text["questions"] == len(examples)
    assert (text["f1"]["mean"], floor["f1"]["mean"]) == (100.0, 0.0)


def test_a_meter_counts_finished_steps_after_the_first_ones(monkeypatch):
    clock = iter([10.0, 14.0])
    monkeypatch.setattr("stage1.pretrain.speed.time.perf_counter", lambda: next(clock))
    meter, cpu = Meter(tokens_per_step=100, multiplied=5, rate=60_000.0), torch.device("cpu")
    for _ in range(Meter.UNCOUNTED - 1):
        meter.step(cpu)
    assert math.isnan(meter.read(cpu)["tokens_per_s"])
    for _ in range(9):
        meter.step(cpu)
    assert meter.read(cpu) == {"tokens_per_s": 200.0, "share_of_matmul_rate": 0.1}


def test_the_matmul_rate_is_a_rate_of_this_machine():
    assert 1e8 < matmul_rate(torch.device("cpu")) < 1e14


def test_the_record_counts_the_parameters_of_the_shape(training):
    model = training().model
    assert parameters(model.shape) == sum(p.numel() for p in model.parameters())
