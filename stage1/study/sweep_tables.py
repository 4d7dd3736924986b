"""The tables of a sweep: columns of settings, scores of answers, where the runs come from."""

from collections.abc import Mapping, Sequence

import pandas as pd

from stage1 import store
from stage1.config import StudyConfig
from stage1.fields import options
from stage1.study.rates import learning_rate

ANSWER_COLUMNS = ["id", "title", "f1", "em", "ended", "tokens", "right_first", "right_later"]
"""Columns of every answer that a table of scores keeps."""


def recorded_fields(configs: Sequence[StudyConfig]) -> list[str]:
    """Return the fields that a sweep writes as columns: `recorded` ones and those that vary."""
    fields = []
    for name, option in options(StudyConfig).items():
        if option.recorded or len({getattr(config, name) for config in configs}) > 1:
            fields.append(name)
    return fields


def columns(config: StudyConfig, fields: Sequence[str]) -> dict:
    """Return these fields of a config, with the learning rate that it takes."""
    values = {name: getattr(config, name) for name in fields}
    if config.batch_size == "auto":  # the rate is looked up for the batch size that is measured
        return values | {"learning_rate": config.learning_rate}
    return values | {"learning_rate": learning_rate(config)}


def prefixed(prefix: str, values: Mapping) -> dict:
    return {f"{prefix}_{name}": value for name, value in values.items() if name != "step"}


def in_float32(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype(dict.fromkeys(table.select_dtypes("float64").columns, "float32"))


def with_categories(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype(dict.fromkeys(table.select_dtypes(["object", "string"]), "category"))


def gathered(
    configs: Sequence[StudyConfig], name: str, kept: Sequence[str] | None = None
) -> pd.DataFrame:
    """Concatenate the runs' tables of that name, measures in float32, with each run's columns."""
    fields, tables = recorded_fields(configs), []
    for config in configs:
        path = store.adapter_folder(config) / f"{name}.parquet"
        if path.exists():  # a diverged run has none, nor has a single term gradient readings
            table = store.read_table(path)
            table = in_float32(table[list(kept or table)])
            tables.append(table.assign(**columns(config, fields)))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def answer_scores(configs: Sequence[StudyConfig]) -> pd.DataFrame:
    """Return the scores of every answer of every run. Raises RecordError if all runs diverged."""
    table = gathered(configs, "answers", ANSWER_COLUMNS)
    if table.empty:
        raise store.RecordError("no run left answers: all of them diverged")
    return with_categories(table)


def origins(configs: list[StudyConfig]) -> dict:
    """Return the fields that all runs share and the distinct provenances of their records."""
    paths = [store.adapter_folder(config) / "record.json" for config in configs]
    records = [store.read_json(path) for path in paths if path.exists()]
    common = {
        name: value
        for name, value in records[0]["config"].items()
        if all(record["config"].get(name) == value for record in records)
    }
    provenances = []
    for record in records:
        if record["provenance"] not in provenances:
            provenances.append(record["provenance"])
    return {"runs": len(records), "config": common, "provenance": provenances}
