"""Answer a question under every condition.

python -m stage1.ask "The mayor of Brell is Ada Bell." "Who is the mayor of Brell?" --ratio 16
"""

import argparse
from pathlib import Path

from stage1 import store
from stage1.ask.reader import first_question, make
from stage1.config import from_arguments


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stage1.ask",
        description="Ask the frozen model a question under every condition. Without a passage, it "
        "is asked the first test question.",
    )
    parser.add_argument("context", nargs="?", help="the passage, or @FILE")
    parser.add_argument("question", nargs="?")
    parser.add_argument("--preset", default="quick", help="name or path of a preset")
    parser.add_argument("--adapter", action="append", help="folder or committed name; repeatable")
    parser.add_argument("--ratio", type=float, help="D/K of the PCA inverse and the lookup")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("FIELD", "VALUE"), dest="fields"
    )
    given = parser.parse_args()
    if given.context is not None and given.question is None:
        parser.error("expected a passage and a question, or neither")
    return given


def main() -> None:
    given = arguments()
    try:
        reader = make(from_arguments(given.preset, given.fields))
        context, question = given.context, given.question
        if context is None:
            context, question, golds = first_question(reader.config)
            print(f"{context}\n\n{question}  (gold: {' or '.join(golds)})\n")
        elif context.startswith("@"):
            context = Path(context[1:]).read_text("utf-8")
        print(reader.ask(context, question, given.adapter, given.ratio))
    except (OSError, TypeError, ValueError, store.RecordError) as error:
        raise SystemExit(f"stage1.ask: {error}") from error


if __name__ == "__main__":
    main()
