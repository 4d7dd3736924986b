"""Prepare text and questions for training: a folder of token rows, which training alone needs.

    python -m stage1.pretrain.shards FOLDER --text wiki.jsonl.xz --questions squad.json \\
        --held-out dev.json

Text and questions are cleaned, rid of duplicates and of what they share with the held-out
questions; then a tokenizer is trained on them, and three kinds of rows are written: `text`, `cloze`
(questions made from paragraphs) and `questions`. It needs no GPU.
"""

import argparse
import random
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from stage1 import store
from stage1.corpus import squad_files
from stage1.fields import require
from stage1.pretrain import packing
from stage1.pretrain.held_out import HeldOut
from stage1.pretrain.options import add_options, config_from
from stage1.pretrain.packing import Rows
from stage1.pretrain.questions import squad_rows
from stage1.pretrain.rows import byte_level_bpe
from stage1.pretrain.selection import Kept, cloze_groups, question_groups, tokenizer_texts
from stage1.pretrain.text import TEXT_KINDS, check_sources

KINDS = ("text", "cloze", "questions")
SOURCES = ("text", "questions", "held_out")
SHARD_BYTES = 30_000_000
"""Largest file of rows, so that a folder can be carried in parts."""
REPORT = "report.json"


@dataclass(frozen=True)
class ShardConfig:
    """What goes into the rows; every field is an option of the command."""

    text: tuple[str, ...] = ()
    """Sources of plain text: .jsonl, .txt, .md, folders of these, hub datasets."""
    questions: tuple[str, ...] = ()
    """Sources of extractive questions: SQuAD .json, .jsonl, hub datasets."""
    held_out: tuple[str, ...] = ()
    """SQuAD .json files whose passages and questions must not be trained on."""
    licences: tuple[str, ...] = ()
    """What the model card says on the sources' licences, a line each."""
    vocabulary: int = 16_384
    """Entries of the BPE tokenizer, special tokens included; at most 32,768."""
    row: int = 512
    """Length of a training row (tokens)."""
    cloze_paragraphs: int = 100_000
    """Paragraphs that cloze questions are made from, at most."""
    question_passes: int = 2
    """Times that the questions are written, each with another order of those on one passage."""
    tokenizer_characters: int = 60_000_000
    """Characters of text and questions that the tokenizer is trained on."""
    documents: int = 0
    """Documents that are read of every source of text; 0 stands for all."""
    seed: int = 0

    def __post_init__(self):
        for name, least in (("vocabulary", 300), ("row", 32), ("question_passes", 1)):
            require(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")
        for name in ("cloze_paragraphs", "documents"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        most = packing.LARGEST_VOCABULARY
        require(self.vocabulary <= most, "vocabulary", self.vocabulary, f"at most {most:,}")
        require(bool(self.text), "text", self.text, "at least one source of text")
        check_sources(self.text, "text", TEXT_KINDS)
        check_sources(self.questions, "questions", squad_files.KINDS)
        for path in self.held_out:
            require(Path(path).is_file(), "held_out", path, "an existing SQuAD .json file")

    def described(self) -> dict:
        """Return the fields as a report has them: a file's name stands for its path."""
        names = {f: [source_name(s) for s in getattr(self, f)] for f in SOURCES}
        return asdict(self) | names | {"licences": list(self.licences)}


def source_name(source: str) -> str:
    path = Path(source).expanduser()
    return path.name if path.exists() else source


def write_rows(folder: Path, name: str, rows: Rows) -> None:
    """Write rows as `<name>-00.npy`, `<name>-01.npy`, ... of at most 30 MB, and no others."""
    for path in folder.glob(f"{name}-*.npy"):
        path.unlink()
    size = max(1, SHARD_BYTES // (2 * rows.shape[1]))
    for number, start in enumerate(range(0, len(rows), size)):
        path = folder / f"{name}-{number:02d}.npy"
        store.write_atomically(path, partial(np.save, arr=rows[start : start + size]))


def read_shards(folder: Path) -> tuple[PreTrainedTokenizerFast, dict[str, Rows], dict]:
    """Return the tokenizer, the rows of every kind and the report of a folder.

    Raises FileNotFoundError for a folder that was not prepared to the end, and ValueError for one
    that lacks rows that its report counts.
    """
    if not (folder / REPORT).is_file():
        raise FileNotFoundError(
            f"shards={str(folder)!r}: no {REPORT}; expected a folder that "
            "`python -m stage1.pretrain.shards` has written"
        )
    report = store.read_json(folder / REPORT)
    rows = {}
    for name in KINDS:
        parts = [np.load(path) for path in sorted(folder.glob(f"{name}-*.npy"))]
        empty = np.zeros((0, report["config"]["row"]), dtype=np.uint16)
        rows[name] = np.concatenate([empty, *parts])
        expected = report["rows"][name]["rows"]
        require(len(rows[name]) == expected, f"rows of {name}", len(rows[name]), str(expected))
    return PreTrainedTokenizerFast.from_pretrained(str(folder)), rows, report


def counted(rows: Rows, pad: int) -> dict:
    real = int((packing.ids_of(rows) != pad).sum()) if len(rows) else 0
    answers = int(packing.is_answer(rows).sum())
    filled = real / rows.size if len(rows) else 0.0
    return {"rows": len(rows), "tokens": real, "answer_tokens": answers, "filled": filled}


def prepare(folder: Path, config: ShardConfig) -> dict:
    """Write tokenizer, rows and report; return the report.

    Raises ValueError for a source that is malformed or leaves nothing to train on.
    """
    begin = time.perf_counter()
    rng = random.Random(f"shards {config.seed}")
    held_out = HeldOut(row for path in config.held_out for row in squad_rows(Path(path)))
    of_text, of_questions = Kept(held_out), Kept(held_out)
    documents = list(of_text.documents(config.text, config.documents))
    questions = list(of_questions.questions(config.questions))
    read = time.perf_counter()
    sample = tokenizer_texts(documents, questions, config.tokenizer_characters, rng)
    tokenizer = byte_level_bpe(sample, config.vocabulary, config.row)
    tokenizer.save_pretrained(str(folder))
    pad, trained = tokenizer.pad_token_id, time.perf_counter()
    assert isinstance(pad, int)
    made = {
        "cloze": cloze_groups(documents, config.cloze_paragraphs, rng),
        "questions": question_groups(questions, config.question_passes, config.seed),
    }
    texts = ("\n".join(lines) for lines in documents)
    rows = {"text": packing.stream_rows(packing.text_documents(tokenizer, texts), config.row)}
    for name, groups in made.items():
        ready = packing.question_documents(tokenizer, groups, config.row)
        rows[name] = packing.packed_rows(ready, config.row, pad)
    require(len(rows["text"]) > 0, "text", config.text, f"at least {config.row} tokens in all")
    for name, array in rows.items():
        write_rows(folder, name, array)
    end = time.perf_counter()
    report = {
        "config": config.described(),
        "vocabulary": len(tokenizer),
        "paragraphs": of_text.counts,
        "questions": of_questions.counts,
        "rows": {name: counted(array, pad) for name, array in rows.items()},
        "megabytes": sum(array.nbytes for array in rows.values()) / 1e6,
        "seconds": {"read": read - begin, "tokenizer": trained - read, "rows": end - trained},
    }
    store.write_json(folder / REPORT, report)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stage1.pretrain.shards", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where tokenizer, rows and report go")
    add_options(parser, ShardConfig)
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    report = prepare(folder, config_from(ShardConfig, options))
    print(f"{report['megabytes']:.0f} MB of rows in {folder}")


if __name__ == "__main__":
    main()
