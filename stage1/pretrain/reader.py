"""Train a language model from scratch on real text and extractive questions, and score it.

    python -m stage1.pretrain.reader OUT --text wiki.jsonl.xz --questions train.json \\
        --development dev.json --width 512 --depth 10          # on one GPU
    python -m stage1.pretrain.reader OUT --shards FOLDER ...   # on prepared rows

The command prepares token rows (or reads those of `stage1.pretrain.shards`), trains, scores the
model on questions of SQuAD form and writes its card. It goes on from the last checkpoint in OUT.
"""

import argparse
import json
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import pandas as pd

from stage1 import store
from stage1.fields import require
from stage1.model.loading import choose_device
from stage1.pretrain import reader_card
from stage1.pretrain.options import add_options, config_from
from stage1.pretrain.reader_scores import check_development, score
from stage1.pretrain.reader_training import Training, train
from stage1.pretrain.recipe import PRESETS, ReaderConfig
from stage1.pretrain.shards import REPORT, ShardConfig, prepare, read_shards
from stage1.pretrain.train import save
from stage1.pretrain.transformer import exported

CHECKPOINT, CURVE, RECORD = "checkpoint.pt", "training_curve.csv", "training.json"


def run(folder: Path, shards: Path, config: ReaderConfig, development: str = "") -> dict | None:
    """Train, save and score; return the record, or None if training paused.

    Raises ValueError for a development set that the shards do not hold out.
    """
    tokenizer, rows, report = read_shards(shards)
    name, held_out = Path(development).name, report["config"]["held_out"]
    allowed = f"a file that the shards hold out: {held_out}"
    require(not development or name in held_out, "development", name, allowed)
    training = Training(config, tokenizer, rows)
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        training.load(checkpoint)
    if not train(training, checkpoint):
        return None
    model = exported(training.model, tokenizer, report["config"]["row"])
    save(model, tokenizer, folder)
    curve = pd.DataFrame(training.curve)
    store.write_atomically(folder / CURVE, partial(curve.round(6).to_csv, index=False))
    record = {
        "config": asdict(config),
        "shape": training.model.shape._asdict(),
        "attention": training.attention,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "rows_read": training.rows_per_kind,
        "tokens_read": config.steps * config.batch * training.rows.shape[1],
        "speed": {k: training.curve[-1][k] for k in ("tokens_per_s", "share_of_matmul_rate")},
        "seconds": training.seconds,
        "shards": report,
        "scores": score(folder, development, config.device) if development else [],
        "provenance": store.provenance(),
    }
    store.write_json(folder / RECORD, record)
    reader_card.write_card(folder)
    return record


def parsed() -> tuple[dict, ShardConfig | None, ReaderConfig]:
    """Return the options of the command and its configs; a preset's values are defaults.

    The development set is held out. Raises ValueError for options of the preparation beside
    prepared shards.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stage1.pretrain.reader", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where the model and its records go")
    parser.add_argument("--shards", type=Path, help="rows by stage1.pretrain.shards, not --text")
    parser.add_argument("--development", default="", help="SQuAD .json file to score on at the end")
    parser.add_argument("--preset", choices=PRESETS, help="a shape; options override it")
    add_options(parser, ReaderConfig, ShardConfig)
    preset = parser.parse_known_args()[0].preset
    parser.set_defaults(**PRESETS.get(preset, {}))
    options = vars(parser.parse_args())
    reader = config_from(ReaderConfig, options)
    if options["development"]:
        check_development(options["development"])
    if options["shards"]:
        for field in fields(ShardConfig):
            given, free = options[field.name], field.name in asdict(reader)
            unused = free or given == field.default
            require(unused, field.name, given, "none beside --shards, which fixes it")
        return options, None, reader
    development = [options["development"]] if options["development"] else []
    options["held_out"] = [*dict.fromkeys([*options["held_out"], *development])]
    return options, config_from(ShardConfig, options), reader


def prepare_once(folder: Path, config: ShardConfig) -> None:
    """Prepare rows, unless the folder holds those of the same options.

    Raises ValueError for those of others.
    """
    if not (folder / REPORT).exists():
        prepare(folder, config)
        return
    made = store.read_json(folder / REPORT)["config"]
    for name, value in config.described().items():
        allowed = f"the options that {folder} was made with, {name}={made.get(name)!r}"
        require(made.get(name) == value, name, value, allowed)


def main() -> None:
    options, text, config = parsed()
    folder = options["folder"]
    choose_device(config.device)  # raises for a missing GPU before any work
    shards = options["shards"] or folder / "shards"
    if text:
        prepare_once(shards, text)
    record = run(folder, shards, config, options["development"])
    if record is None:
        print("paused; the same command goes on from the checkpoint")
    else:
        shown = ("parameters", "tokens_read", "seconds", "speed", "scores")
        print(json.dumps({name: record[name] for name in shown}, indent=1))


if __name__ == "__main__":
    main()
