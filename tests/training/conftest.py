"""The bench on which the training tests train."""

import pytest
from training_bench import Bench, N, make_bench, random_examples


@pytest.fixture(scope="session")
def bench(loaded_once) -> Bench:
    return make_bench(loaded_once, random_examples(N), width=4)
