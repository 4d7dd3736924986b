"""What is done to a page after it is rendered: checks, and classes that the style looks for."""

import re

from bs4 import BeautifulSoup, Tag

from stage1.config import load_preset
from stage1.report import scope

NUMBER = re.compile(
    r"[-+−]?\d[\d,]*\.?\d*(e[-+]?\d+)?( ?%| ± [\d.]+| \[[^]]+\]| [≠≈=?])?|nan|–", re.IGNORECASE
)
ACTIVE = ("script", "link", "iframe", "object", "embed")
SENTENCE, WIDEST = 70, 5
"""Characters from which a cell is read as a sentence; columns that still make a short card."""


def mark(soup: BeautifulSoup) -> None:
    """Mark columns of tables, and set apart what is of committed records."""
    for table in soup.find_all("table"):
        mark_columns(table)
        stack(table)
        break_heads(table)
    for paragraph in soup.find_all("p"):
        if paragraph.get_text().startswith("Record: "):
            paragraph["class"] = "source"
    set_records_apart(soup)


def set_records_apart(soup: BeautifulSoup) -> None:
    """Put cells tagged `records` that follow each other into a section that says of what they are.

    So no sentence on the committed records reads as one on the run of the page. Those of the
    English language model are tagged `english` besides.
    """
    for cell in soup.select(".celltag_records"):
        preset = "squad" if "celltag_english" in cell["class"] else "full"
        text, before = scope.records_label(load_preset(preset)), cell.find_previous_sibling()
        if before is not None and before.name == "section" and text in before.get_text():
            before.append(cell.extract())
            continue
        section = soup.new_tag("section", attrs={"class": "records"})
        label = soup.new_tag("p", attrs={"class": "label"})
        label.string = text
        cell.insert_before(section)
        section.extend([label, cell.extract()])


def stack(table: Tag) -> None:
    """Let a table of sentences be shown as a stack of cards on a phone, each cell with its head."""
    heads = [head.get_text(strip=True) for head in table.select("thead th")]
    cells = table.select("tbody td")
    longest = max((len(cell.get_text()) for cell in cells), default=0)
    if longest < SENTENCE or not 0 < len(heads) <= WIDEST:
        return
    attributes: dict = table.attrs
    attributes["class"] = [*attributes.get("class", []), "stack"]
    for row in table.select("tbody tr"):
        for head, cell in zip(heads, row.find_all(["td", "th"], recursive=False), strict=False):
            cell["data-head"] = head


def break_heads(table: Tag) -> None:
    """Let a name in a head break after its underscores: a narrow column may have a long name."""
    for text in [text for head in table.select("thead th") for text in head.find_all(string=True)]:
        first, *others = str(text).split("_")
        if others:
            parts = [first + "_", *(part + "_" for part in others[:-1]), others[-1]]
            breaks = [
                item
                for part in parts
                for item in (part, Tag(name="wbr", can_be_empty_element=True))
            ]
            text.replace_with(*breaks[:-1])


def check_self_contained(soup: BeautifulSoup, name: str) -> None:
    """Raise ValueError with the notebook's name if its page would run a script or load a file."""
    for tag in soup.find_all(True):
        if tag.name in ACTIVE or any(attribute.startswith("on") for attribute in tag.attrs):
            raise ValueError(f"{name}: an output has an active <{tag.name}>; pages run no scripts")
        if not str(tag.get("src", "data:")).startswith("data:"):
            raise ValueError(f"{name}: {tag['src']} is not embedded; show it as an output instead")
        style = tag.get_text() if tag.name == "style" else str(tag.get("style", ""))
        if match := re.search(r"@import|url\((?!['\"]?data:)", style):
            raise ValueError(f"{name}: a style has {match[0]}, which would load a file")


def mark_columns(table: Tag) -> None:
    """Add a class to the cells of columns of numbers and of long text, heads included.

    The style aligns numbers on the right and widens long text.
    """
    rows: list[list[Tag]] = []
    for row in table.find_all("tr"):
        cells = list(row.find_all(["td", "th"], recursive=False))
        if not any(cell.has_attr("colspan") for cell in cells):
            rows.append(cells[::-1])  # a head over several rows makes rows shorter on the left
    for column in zip(*rows, strict=False):
        texts = [cell.get_text(strip=True) for cell in column if cell.name == "td"]
        if any(texts) and all(map(NUMBER.fullmatch, filter(None, texts))):
            mark = "number"
        elif max(map(len, texts), default=0) > 30:
            mark = "long"
        else:
            continue
        for cell in column:
            cell["class"] = [*cell.get("class", []), mark]
