"""Self-distillation through time (SDTT; Deschenaux and Gulcehre 2410.21035): one step of a student for k of a teacher.

In the paper time runs from 1 to 0, a step of the student is dt long, and the teacher takes k steps of dt / k from x_t.
A step reveals each masked token with the same probability, L dt / k of L tokens on average. Here the time of a block is
its number n of masked tokens, and a step of the teacher reveals exactly `per_step` of them, chosen at random. One step
of the student, from n to n - k per_step, stands for k steps of the teacher: n, n - per_step, ..., n - k per_step. So dt
= k per_step / L, where L is the number of the block's tokens, and the grid is that of the counts: no step falls between
two of them, and none reveals nothing. Where fewer tokens are masked, steps reveal what is left.

The target of a masked token is what the teacher predicted in the step that revealed it, or in the last step if it is
masked still. The student predicts all masked tokens of the same x_t in one pass.

A round doubles dt: the student of one run becomes the teacher of the next, with twice the `per_step`,

    python train.py ... objective.teacher=runs/sdtt-1 trainer.init_from=runs/sdtt-1 objective.name.per_step=2

so that a round is a run, which names its teacher, resumes, and can be looked at. (Moving averages and the state of the
optimizer begin anew; of a run with `optim.ema_decay` the average is the teacher.)

What to expect: if the teacher's predictions are conditionals of one distribution, the mean of the later ones, over what
is revealed before, is the one that it makes now. Then `kl_forward`, which that mean minimises, has the teacher itself
as its best student, and `kl_reverse`, the paper's best, has the normalised geometric mean: it sharpens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybrid.device import send
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.divergences import DIVERGENCES
from hybrid.objectives.noise import NoiseKeys
from hybrid.objectives.objective import Loss, MaskedObjective
from hybrid.objectives.teacher import TeacherCanvas, check_steps, log_probs_of, teacher_targets
from hybrid.options import option, provided

if TYPE_CHECKING:
    from hybrid.data.batches import Batch


@dataclass(frozen=True)
class SelfDistillation(MaskedObjective):
    """SDTT: learn in one step what the teacher predicts in several, each given what the one before revealed."""

    divergence: str = option("kl_reverse", "from the teacher's predictions to the model's", choices=DIVERGENCES)
    teacher_steps: int = option(2, "steps of the teacher for one of the model")
    per_step: int = option(1, "tokens of a block that a step of the teacher reveals; in the next round twice as many")
    teacher: Transformer = provided()

    def __post_init__(self) -> None:
        check_steps(teacher_steps=self.teacher_steps, per_step=self.per_step)

    def loss(self, model: Transformer, batch: Batch, noise: NoiseKeys, block_size: int) -> Loss:
        masking = self.draw(batch, noise, block_size)
        masked = masking.masked
        start = TeacherCanvas.of(self.teacher, batch, masked, noise, block_size, model.banned_token_id)
        targets = teacher_targets(start, self.teacher_steps, self.per_step)
        hidden = two_stream_hidden(model, batch.tokens, masked, block_size, batch.documents)
        predictions = log_probs_of(model, hidden, self.teacher.banned_token_id)
        each = DIVERGENCES[self.divergence](targets, predictions)
        weights = send(masking.weight[masked] / masked.shape[1], each.device)
        return Loss((each * weights).sum())
