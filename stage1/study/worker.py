"""One process of a distributed training; `machine.processes.launch` starts it.

python -m torch.distributed.run --nproc-per-node=2 -m stage1.study.worker '{"objective": "distill"}'
"""

import json
import sys
from contextlib import nullcontext

from filelock import FileLock

from stage1 import store
from stage1.config import StudyConfig
from stage1.machine import processes
from stage1.study.runs import run


def main() -> None:
    """Train and test the adapter; a second training of the same adapter waits for the first."""
    config = StudyConfig(**json.loads(sys.argv[1]))
    processes.end_with_parents()
    folder = store.adapter_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "training.lock") if processes.rank() == 0 else nullcontext():
        processes.initialise(cpu=config.device == "cpu")
        run(config)
        processes.barrier()


if __name__ == "__main__":
    main()
