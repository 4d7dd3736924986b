"""Convert a notebook's Markdown to HTML and its LaTeX formulas to MathML, which needs no script."""

import re
from xml.etree import ElementTree

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import (
    IPythonRenderer,
    MarkdownWithMath,
    MathBlockParser,
    MathInlineParser,
)

OPERANDS = dict.fromkeys(("mfrac", "mroot", "msub", "msup", "munder", "mover"), 2) | {
    "msubsup": 3,
    "munderover": 3,
}


def to_html(source: str, notebook: str, attachments: dict) -> str:
    """Return the Markdown as HTML. Raises ValueError with the notebook and the bad formula."""
    renderer = Renderer(notebook, attachments)
    return MarkdownWithMath(renderer, BlockParser(), InlineParser(hard_wrap=False)).render(source)


def mathml(formula: str, display: str) -> str:
    """Return the LaTeX formula as MathML, `display` "inline" or "block".

    Raises ValueError if it cannot be converted.
    """
    # without braces, the letter after \mathcal and the like would keep its plain form
    latex = re.sub(r"(\\math[a-z]+)\s+(\w)", r"\1{\2}", formula)
    try:
        converted = convert(latex.replace("{aligned}", "{split}"), display=display)
        converted = re.sub(r"\\([_%#$])", r"\1", converted)  # left escaped in \text{}
        check_converted(formula, ElementTree.fromstring(converted))
    except Exception as error:  # the converter's errors have no common class of their own
        raise ValueError(str(error) or type(error).__name__) from error
    # the bars of a norm, which TeX neither stretches nor spaces
    bar = r'<mo( stretchy="false")?>(?=(&#x02016;|&#x0007C;)</mo>)'
    return re.sub(bar, '<mo stretchy="false" lspace="0" rspace="0">', converted)


def check_converted(formula: str, tree: ElementTree.Element) -> None:
    """Raise ValueError for what the converter lets pass, such as an unknown command."""
    braces = re.sub(r"\\.", "", formula)
    if braces.count("{") != braces.count("}"):
        raise ValueError("its braces do not match")
    if unknown := [text for text in tree.itertext() if "\\" in text]:
        raise ValueError(f"it has {unknown[0]}, which is not supported")
    for element in tree.iter():
        name = element.tag.split("}")[-1]
        if len(element) != OPERANDS.get(name, len(element)):
            raise ValueError(f"an operand is missing ({name})")


class BlockParser(MathBlockParser):
    """Read a paragraph as a displayed formula if it fills its lines; `$$` in a code span stays."""

    SPECIFICATION = MathBlockParser.SPECIFICATION | {
        "multiline_math": r"^ {0,3}\$\$(?s:[^`]+?)(?<!\\)\$\$[ \t]*$"
    }


class InlineParser(MathInlineParser):
    """Read `$` as pandoc does: no space just inside, no digit after it, and no code within."""

    SPECIFICATION = MathInlineParser.SPECIFICATION | {
        "block_math_tex": r"(?<!\\)\$\$(?P<math_block_tex>[^`]+?)(?<!\\)\$\$",
        "inline_math_tex": (
            r"(?<![$\\])\$(?![\s$])(?P<math_inline_tex>(?:\\.|[^\\$`])+?)(?<!\s)\$(?![\d$])"
        ),
    }


class Renderer(IPythonRenderer):
    """Render Markdown as HTML with formulas as MathML."""

    def __init__(self, notebook: str, attachments: dict):
        super().__init__(escape=False, attachments=attachments)
        self.notebook = notebook

    def block_math(self, body: str) -> str:
        return self.formula(body, "block")

    def inline_math(self, body: str) -> str:
        return self.formula(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return self.formula(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def formula(self, body: str, display: str) -> str:
        try:
            return mathml(body.strip(), display)
        except ValueError as error:
            raise ValueError(
                f"{self.notebook}: the formula {body.strip()!r} cannot be shown: {error}"
            ) from error
