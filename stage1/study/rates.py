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

    Only trials of the same language model, objective, adapter and width count, with a warm-up (of
    the same length, if that was tried) or without one: those of the config's preset at any budget,
    or else those of the nearest budget in optimizer steps. Without such trials the rate is 0.001.
    """
    if config.learning_rate is not None:
        return config.learning_rate
    same = names_where(config, searched=True)
    trials = with_defaults(pd.read_csv(LEARNING_RATES), same)
    trials = trials[(trials[same] == [getattr(config, name) for name in same]).all(axis=1)]
    trials = trials[(trials["warmup_steps"] > 0) == (config.warmup_steps > 0)]
    if (trials["warmup_steps"] == config.warmup_steps).any():
        trials = trials[trials["warmup_steps"] == config.warmup_steps]
    if (trials["preset"] == config.preset).any():
        trials = trials[trials["preset"] == config.preset]
    if trials.empty:
        return FALLBACK_RATE
    assert isinstance(config.batch_size, int)
    steps = config.epochs * config.train_examples / config.batch_size
    tried_steps = trials["epochs"] * trials["train_examples"] / trials["batch_size"]
    distance = (np.log(tried_steps) - np.log(steps)).abs()
    nearest = trials[distance == distance.min()]
    return float(nearest.groupby("learning_rate")["selection_f1"].mean().idxmax())
