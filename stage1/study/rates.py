"""Learning rates that were searched on the selection split, and which of them a config takes."""

import numpy as np
import pandas as pd

from stage1 import store
from stage1.config import StudyConfig
from stage1.fields import names_where

LEARNING_RATES = store.ASSETS / "learning_rates.csv"
FALLBACK_RATE = 1.0e-3


def learning_rate(config: StudyConfig) -> float:
    """The config's own, or the one with the highest F1 on the selection split among those that were tried.

    Trials are looked up for the same language model, objective, adapter and width: those of the config's preset,
    whatever budget it has been given since, or else those of the budget nearest in optimizer steps. Where nothing like
    it was tried, 0.001.
    """
    if config.learning_rate is not None:
        return config.learning_rate
    same = names_where(config, searched=True)
    trials = pd.read_csv(LEARNING_RATES)
    trials = trials[(trials[same] == [getattr(config, name) for name in same]).all(axis=1)]
    if (trials["preset"] == config.preset).any():
        trials = trials[trials["preset"] == config.preset]
    if trials.empty:
        return FALLBACK_RATE
    steps = config.epochs * config.train_examples / config.batch_size
    distance = (
        np.log(trials["epochs"] * trials["train_examples"] / trials["batch_size"]) - np.log(steps)
    ).abs()
    nearest = trials[distance == distance.min()]
    return float(nearest.groupby("learning_rate")["selection_f1"].mean().idxmax())
