"""Readings of the terms' gradients while an adapter trains; the loop calls it around every optimizer step."""

from typing import TYPE_CHECKING

from stage1.objectives import ExampleBatch, Terms, TokenCounts
from stage1.training.gradients import TermMoments, Vectors, readings
from stage1.training.microbatches import gradients_at_embeddings

if TYPE_CHECKING:
    from stage1.training.loop import Loop


def is_due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


class GradientObserver:
    """Keeps AdamW's moments for each term, and reads the terms' gradients every `gradients_every` steps.

    A single term has nothing to be told apart from, and is not observed.
    """

    def __init__(self, moments: TermMoments):
        self.moments = moments
        self.at_embeddings: Vectors = {}
        """Gradients at the embeddings, of the step under way where a reading is due."""

    def before_step(self, loop: "Loop", batch: ExampleBatch | TokenCounts, terms: Terms) -> None:
        """Take the gradients at the embeddings, which the step will change."""
        is_read = len(terms) > 1 and is_due(loop.config.gradients_every, loop.progress.step)
        self.at_embeddings = gradients_at_embeddings(loop, batch).gradients if is_read else {}

    def after_step(
        self, loop: "Loop", terms: Terms, gradients: Vectors, weighted: Vectors, norm: float
    ) -> None:
        """Follow each term's part of the step, clipped as the whole was, and write down a reading that is due."""
        if len(gradients) < 2 or not loop.config.gradients_every:
            return
        clip = min(1.0, loop.config.max_grad_norm / max(norm, 1.0e-12))
        applied = {name: clip * part for name, part in weighted.items()}
        self.moments.update(applied)
        if self.at_embeddings:
            rows = readings(terms, gradients, self.at_embeddings, applied, self.moments)
            loop.progress.gradients += [{"step": loop.progress.step} | row for row in rows]
