"""One process of a distributed training, here the only one."""

import json
import sys

import pytest
from filelock import FileLock, Timeout

from stage1 import store
from stage1.machine import processes
from stage1.study import worker


def test_a_worker_leaves_its_run_and_holds_the_adapters_lock_meanwhile(config, monkeypatch):
    run, locked = worker.run, []
    path = store.adapter_folder(config) / "record.json"

    def locked_run(given):
        with pytest.raises(Timeout):
            FileLock(path.parent / "training.lock").acquire(timeout=0)
        locked.append(given)
        return run(given)

    monkeypatch.setattr(processes, "end_with_parents", lambda: None)
    monkeypatch.setattr(worker, "run", locked_run)
    monkeypatch.setattr(sys, "argv", ["worker", json.dumps(config.to_dict())])
    worker.main()
    assert locked == [config] and store.read_json(path)["config"] == config.to_dict()
    FileLock(path.parent / "training.lock").acquire(timeout=0)
