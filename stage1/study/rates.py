"""The learning rate of a config: its own, or one that was searched on the selection split."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stage1 import store
from stage1.config import StudyConfig
from stage1.fields import names_where

LEARNING_RATES = store.ASSETS / "learning_rates.csv"
FALLBACK_RATE = 1.0e-3


def with_defaults(trials: pd.DataFrame, fields: Sequence[str]) -> pd.DataFrame:
    """Return the trials with the config's defaults in fields that were not yet there for them."""
    defaults = {name: getattr(StudyConfig(), name) for name in fields}
    missing = {name: defaults[name] for name in fields if name not in trials}
    return trials.assign(**missing).fillna(defaults)


def learning_rate(config: StudyConfig) -> float:
    """Return the config's learning rate, or else the searched one with the highest selection F1.

    Of its trials, those of the config's preset at any budget count, or else those of the nearest
    budget in optimizer steps. Without trials the rate is 0.001.
    """
    if config.learning_rate is not None:
        return config.learning_rate
    tried = trials(config)
    if (tried["preset"] == config.preset).any():
        tried = tried[tried["preset"] == config.preset]
    if tried.empty:
        return FALLBACK_RATE
    assert isinstance(config.batch_size, int)
    steps = config.epochs * config.train_examples / config.batch_size
    tried_steps = tried["epochs"] * tried["train_examples"] / tried["batch_size"]
    distance = (np.log(tried_steps) - np.log(steps)).abs()
    nearest = tried[distance == distance.min()]
    return float(nearest.groupby("learning_rate")["selection_f1"].mean().idxmax())


def trials(config: StudyConfig) -> pd.DataFrame:
    """Return the trials of the config's language model, objective, adapter and width K.

    They have a warm-up if the config has one, of the length nearest to its own (as a ratio).
    """
    same = names_where(config, searched=True)
    table = with_defaults(pd.read_csv(LEARNING_RATES), same)
    table = table[(table[same] == [getattr(config, name) for name in same]).all(axis=1)]
    table = table[(table["warmup_steps"] > 0) == (config.warmup_steps > 0)]
    distance = np.log(table["warmup_steps"].clip(1) / max(1, config.warmup_steps)).abs()
    return table[distance == distance.min()]
