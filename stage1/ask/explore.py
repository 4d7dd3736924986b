"""Explore one prompt: live with widgets in Jupyter, and the same view as HTML anywhere else."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from IPython.display import HTML

from stage1.ask.inside import Explorer, Inside

WIDTH = "95%"
WIDGET = "application/vnd.jupyter.widget-view+json"
INK = "color:#1c1c1c;background:"
MARKS = {
    "wrong": (f"{INK}#fbd5c5", "nearest entry wrong"),
    "repaired": (f"{INK}#cdebc9", "wrong under the PCA inverse, right from the adapter"),
    "broken": (f"{INK}#ecc9ea", "right under the PCA inverse, wrong from the adapter"),
}
"""How a prompt token is marked, and the words for it."""
COMPRESSED = ("pca_inverse", "codebook")
"""Conditions that the ratio changes; an adapter keeps its own."""
RUBY = "ruby-position:under;white-space:nowrap"
SMALL = "font-size:.8em;opacity:.75"
BAR = "height:.8em;background:#0072b2"


@dataclass(frozen=True)
class View:
    """One prompt under one condition at one ratio; shown as widgets where Jupyter has them.

    Its fields are the arguments of `Explorer.look`.
    """

    explorer: Explorer
    context: str
    question: str
    condition: str = "pca_inverse"
    ratio: int | float = 8

    def html(self) -> str:
        """Return the answer, its first token's distribution and the marked prompt.

        Raises ValueError as `Explorer.look` does.
        """
        look, asked = self.explorer.look, (self.context, self.question)
        shown = look(*asked, self.condition, self.ratio)
        original = look(*asked, "embeddings", self.ratio)
        bars = self.explorer.likeliest(original, shown)
        parts = [self.heading(shown, original), distribution(bars, self.condition)]
        return "".join([*parts, count(shown), legend(shown), marked(shown)])

    def heading(self, shown: Inside, original: Inside) -> str:
        D, K = self.explorer.reader.D, shown.K
        size = "" if K is None else f", K = {K} of {D} ({D / K:.3g}x)"
        return (
            f"<p><b>{html.escape(shown.answer.text) or '(nothing)'}</b> from {shown.condition}"
            f"{size}, probability {shown.answer.probability:.3f}<br>"
            f"<b>{html.escape(original.answer.text)}</b> from the original embeddings, "
            f"probability {original.answer.probability:.3f}</p>"
        )

    def widgets(self) -> Any:
        """Return a box with a widget for each field and the view below, which follows them.

        Raises ImportError without ipywidgets.
        """
        import ipywidgets  # only in the extras `lab` and `test`

        fields, shown = self.fields(), ipywidgets.HTML(layout={"width": WIDTH})

        def update(change=None) -> None:
            given = {name: field.value for name, field in fields.items()}
            fields["ratio"].disabled = given["condition"] not in COMPRESSED
            shown.value = replace(self, **given).html_or_message()

        for field in fields.values():
            field.observe(update, "value")
        update()
        return ipywidgets.VBox([*fields.values(), shown])

    def fields(self) -> dict[str, Any]:
        """Return a widget for each field but the explorer; text counts once it is entered."""
        import ipywidgets

        late: dict = {"continuous_update": False, "layout": {"width": WIDTH}}
        stops = self.explorer.ratios()
        return {
            "context": ipywidgets.Textarea(self.context, description="passage", rows=5, **late),
            "question": ipywidgets.Text(self.question, description="question", **late),
            "condition": ipywidgets.Dropdown(
                options=self.explorer.conditions, value=self.condition, description="condition"
            ),
            "ratio": ipywidgets.SelectionSlider(
                options=[(f"{stop:g}x", stop) for stop in stops],
                value=min(stops, key=lambda stop: abs(stop - self.ratio)),
                description="ratio",
            ),
        }

    def html_or_message(self) -> str:
        """Return the view, or what is wrong with a field."""
        try:
            return self.html()
        except ValueError as error:
            return f"<p>{html.escape(str(error))}</p>"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        """Return HTML for pages and files, and widgets for a live notebook."""
        text = f"{self.question!r} from {self.condition}, ratio {self.ratio:g}"
        data = {"text/plain": text, "text/html": self.html()}
        try:
            widget = self.widgets()._repr_mimebundle_()
        except ImportError:
            return data
        return data | {WIDGET: widget[WIDGET]}


def mark(row: Mapping[str, Any]) -> str:
    """Return a prompt token's key in MARKS, or "" for a plain one."""
    before = row.get("pca_right", row["right"])
    if row["right"]:
        return "" if before else "repaired"
    return "broken" if before else "wrong"


def marked(inside: Inside) -> str:
    """Return the prompt as HTML, wrong tokens marked and under each its nearest entry."""
    return f'<p style="line-height:2.4">{"".join(map(token, inside.tokens.to_dict("records")))}</p>'


def token(row: Mapping[str, Any]) -> str:
    """Return a prompt token; if it is marked, its leading space stays outside."""
    text, name = row["token"], mark(row)
    bare = text.lstrip(" ")
    inner = html.escape(bare).replace("\n", "<br>")
    space = " " * (len(text) - len(bare))
    if not name:
        return space + inner
    style, word = MARKS[name]
    title = f"{word}; cosine to the original {row['cosine']:.2f}"
    below = "" if row["right"] else f'<rt style="{SMALL}">{html.escape(label(row["nearest"]))}</rt>'
    return f'{space}<ruby style="{RUBY};{style}" title="{title}">{inner}{below}</ruby>'


def label(text: str) -> str:
    """Return a token's text so that it is seen."""
    text = text.strip(" ") or repr(text)
    if "\N{REPLACEMENT CHARACTER}" in text:
        return "(byte)"
    return text if text.isprintable() else repr(text)


def passages(insides: Sequence[Inside], D: int, opened: int = 2) -> HTML:
    """Return marked prompts to fold, the first `opened` of them unfolded; D is the model's."""
    parts = [
        f"<details{' open' if place < opened else ''}><summary>{html.escape(inside.condition)}, "
        f"{D / (inside.K or D):.3g}x: {html.escape(inside.answer.text)}</summary>"
        f"{count(inside)}{legend(inside)}{marked(inside)}</details>"
        for place, inside in enumerate(insides)
    ]
    return HTML("".join(parts) or "<p>No adapter of this language model is committed.</p>")


def count(inside: Inside) -> str:
    """Return how many tokens are wrong, beside the PCA inverse for an adapter."""
    tokens = inside.tokens
    text = (
        f"For {inside.wrong} of {len(tokens)} prompt tokens the nearest vocabulary entry is wrong"
    )
    if "pca_right" in tokens:
        text += f"; for the PCA inverse of the same K it is {(~tokens['pca_right']).sum()}"
        text += (
            f" (mean cosine {tokens['pca_cosine'].mean():.2f}, now {tokens['cosine'].mean():.2f})"
        )
    return f"<p>{text}.</p>"


def legend(inside: Inside) -> str:
    present = {mark(row) for row in inside.tokens.to_dict("records")}
    shown = [f'<span style="{MARKS[n][0]}">{MARKS[n][1]}</span>' for n in MARKS if n in present]
    return f'<p style="{SMALL}">{" · ".join(shown)}</p>' if shown else ""


def distribution(bars: Mapping[str, Sequence[float]], condition: str) -> str:
    """Return the first answer token's probabilities as bars: original embeddings, condition."""
    rows = [
        f"<tr><td><code>{html.escape(label(text))}</code></td>"
        + "".join(f"<td>{bar(value)}</td>" for value in values)
        + "</tr>"
        for text, values in bars.items()
    ]
    head = f"<th>first token</th><th>original embeddings</th><th>{condition}</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def bar(value: float) -> str:
    """Return a probability and its bar; a box of its own, since pages align numbers right."""
    box = "display:flex;align-items:center;gap:.5em;width:10em"
    return (
        f'<div style="{box}">{value:.3f}<span style="{BAR};width:{6 * value:.2f}em"></span></div>'
    )
