"""Folders of trained adapters, by path or by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stage1 import store
from stage1.fields import nearest, require

Names = str | Path | Sequence[str | Path] | None
"""One or several folders, or names of committed adapters."""


def committed_folders() -> dict[str, Path]:
    """Return the folders of all committed adapters, by `preset/objective-seed`."""
    found = sorted(store.records_folder().glob("*/adapters/*/adapter.json"))
    return {f"{path.parents[2].name}/{path.parent.name}": path.parent for path in found}


def find(names: Names, own: Mapping[str, Path]) -> dict[str, Path]:
    """Return the folders of adapters, by folder or by name: `distill` is `full/distill-seed0`.

    `own` are the committed adapters of the language model that is asked. Raises ValueError for a
    folder without an adapter and for an unknown name or one of several.
    """
    names = [] if names is None else [names] if isinstance(names, str | Path) else names
    return dict(find_one(name, own) for name in names)


def find_one(name: str | Path, own: Mapping[str, Path]) -> tuple[str, Path]:
    folder, known = Path(name).expanduser(), committed_folders()
    if folder.is_dir():
        present = (folder / "adapter.json").is_file()
        require(present, "adapter", str(name), "a folder with adapter.json, which training writes")
        return str(name), folder
    if str(name) in known:  # of another language model, too: its loading says so
        return str(name), known[str(name)]
    labels = [label for label in own if label.endswith((f"/{name}", f"/{name}-seed0"))]
    close = [part for label in own for part in (label, label.split("/")[1])]
    close += [part.rsplit("-", 1)[0] for part in close]
    allowed = f"a folder of a trained adapter, or one of {', '.join(own) or 'none committed'}"
    allowed += "" if labels else nearest(str(name), dict.fromkeys(close))
    require(len(labels) == 1, "adapter", str(name), allowed)
    return labels[0], own[labels[0]]
