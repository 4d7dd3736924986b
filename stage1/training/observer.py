"""Readings of the terms' gradients during training; the loop calls it around every step."""

from typing import TYPE_CHECKING

from stage1.loss_parts import Batch, Terms
from stage1.training.gradients import TermMoments, Vectors, readings
from stage1.training.microbatches import gradients_at_embeddings

if TYPE_CHECKING:
    from stage1.training.loop import Loop


def is_due(every: int, step: int) -> bool:
    """Return whether something done every so many steps (0: never) is done at this one."""
    return every > 0 and step % every == 0


class GradientObserver:
    """Keeps AdamW's moments per term, and reads the gradients every `gradients_every` steps.

    A single term is not observed: there is nothing to compare it with.
    """

    def __init__(self, moments: TermMoments):
        self.moments = moments
        self.at_embeddings: Vectors = {}
        """Gradients at the embeddings in the current step; empty where no reading is due."""

    def before_step(self, loop: "Loop", batch: Batch, terms: Terms) -> None:
        """Take the gradients at the embeddings, before the step changes them."""
        is_read = len(terms) > 1 and is_due(loop.config.gradients_every, loop.progress.step)
        self.at_embeddings = gradients_at_embeddings(loop, batch).gradients if is_read else {}

    def after_step(
        self, loop: "Loop", terms: Terms, gradients: Vectors, weighted: Vectors, norm: float
    ) -> None:
        """Update each term's moment with its clipped gradient, and record a reading if due."""
        if len(gradients) < 2 or not loop.config.gradients_every:
            return
        clip = min(1.0, loop.config.max_grad_norm / max(norm, 1.0e-12))
        applied = {name: clip * gradient for name, gradient in weighted.items()}
        self.moments.update(applied)
        if self.at_embeddings:
            rows = readings(terms, gradients, self.at_embeddings, applied, self.moments)
            loop.progress.gradients += [{"step": loop.progress.step} | row for row in rows]
