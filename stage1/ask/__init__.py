"""Questions of one's own to the frozen model, under every condition at once.

reader = stage1.load()  # the shipped model; keywords are fields of StudyConfig
reader.ask(context, question, adapter="distill", ratio=8)
"""

from stage1.ask.reader import Reader, Reading, load

__all__ = ["Reader", "Reading", "load"]
