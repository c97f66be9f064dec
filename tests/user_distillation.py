"""A module of a user's own, for `run.imports`: an objective that learns from a teacher."""

from dataclasses import dataclass

from torch.nn.functional import kl_div

from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives import OBJECTIVES, Loss, MaskedObjective
from hybrid.options import option, provided


@dataclass(frozen=True)
class FromTeacher(MaskedObjective):
    """KL(teacher || model) at the masked tokens."""

    temperature: float = option(1.0, "of both")
    teacher: Transformer = provided()

    def loss(self, model, batch, noise, block_size):
        masked = self.draw(batch, noise, block_size).masked
        ours, theirs = (
            m.head(two_stream_hidden(m, batch.tokens, masked, block_size)).div(self.temperature).log_softmax(-1)
            for m in (model, self.teacher)
        )
        return Loss(kl_div(ours, theirs, log_target=True, reduction="sum") / self.draws)


OBJECTIVES["from_teacher"] = FromTeacher
