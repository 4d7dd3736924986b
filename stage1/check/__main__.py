"""Check a config before anything is trained.

python -m stage1.check quick
python -m stage1.check my.yaml -p language_model path/to/folder -p compressed_width D/8
"""

import argparse

from stage1.check import preflight
from stage1.check.findings import Preflight, StoppedError, stopping
from stage1.config import from_arguments


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stage1.check", description="Check a config.")
    parser.add_argument("config", help="name or path of a preset")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("FIELD", "VALUE"), dest="fields"
    )
    given = parser.parse_args()
    try:
        with stopping("config"):
            config = from_arguments(given.config, given.fields)
        found = preflight(config, stop=False)
    except StoppedError as error:
        found = Preflight([error.line])
    print(found)
    raise SystemExit(1 if found.stops else 0)


if __name__ == "__main__":
    main()
