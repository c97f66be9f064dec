"""Plan how a run begins: at step 0 or from a checkpoint, and what it keeps of what is in its folder.

trainer.resume   what there is                     beginning       kept of the folder
never, auto      no run                            FRESH           it must be empty
auto             a run that has saved nothing      OVER            nothing; records are moved away
auto, a path     a checkpoint of this run          IN_PLACE        everything up to its step
a path           a checkpoint of another run       FROM_ANOTHER    it must be empty
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hybrid.checkpoints import finding
from hybrid.checkpoints.identity import recorded_model
from hybrid.checkpoints.recorded_data import SETTLED_BY_CONTENT, recorded_data, refuse_other_data
from hybrid.config import NO_MATTER, ROUNDING, Config, differences, load_config
from hybrid.config.schema import check_specs
from hybrid.data.config import DataConfig
from hybrid.options import RemovedEntry, path_of
from hybrid.runs.run_folder import CONFIG, check_place, folder_of, is_begun, is_occupied

log = logging.getLogger(__name__)
MAY_CHANGE = (*NO_MATTER, *ROUNDING, "trainer.", "eval.")
"""Settings that a resumed run may change without becoming another run."""
_CHANGE_THE_COURSE = ("trainer.steps", "trainer.batch_tokens", "run.seed")
"""Those of them after which it is not as if it had never stopped."""

Beginning = Enum("Beginning", ["FRESH", "OVER", "IN_PLACE", "FROM_ANOTHER"])


@dataclass(frozen=True)
class ResumePlan:
    """How a run begins in `folder`, as it was found when the plan was made."""

    folder: Path
    mode: str  # trainer.resume
    beginning: Beginning
    checkpoint: Path | None = None  # to continue from
    differs: tuple[str, ...] = ()  # settings that change the course of the run, in words

    @classmethod
    def of(cls, config: Config) -> ResumePlan:
        """Find out how a run begins.

        Raises:
            ValueError: its folder cannot be made, the checkpoint cannot be used, or it is of another model, of other
                data, of another objective or optimizer.
        """
        folder, mode = folder_of(config.run), config.trainer.resume
        check_place(folder)
        found = _checkpoint_to_resume(folder, mode)
        if found is None:
            # A run that was killed before its first save: nothing is lost by starting over in its folder.
            starts_over = mode == "auto" and is_begun(folder)
            return cls(folder, mode, Beginning.OVER if starts_over else Beginning.FRESH)
        is_own = _run_of(found) == folder.absolute()
        beginning = Beginning.IN_PLACE if is_own else Beginning.FROM_ANOTHER
        return cls(folder, mode, beginning, found, tuple(_compare(_run_of(found), config)))

    @property
    def run(self) -> Path | None:
        """The folder of the run that is continued."""
        return None if self.checkpoint is None else _run_of(self.checkpoint)

    @property
    def last_step(self) -> int | None:
        """The last step whose records are kept: -1 keeps none of them, None means that there are none."""
        if self.checkpoint is not None:
            return finding.step_of(self.checkpoint)
        return -1 if self.beginning is Beginning.OVER else None

    @property
    def recorded_start(self) -> Any:
        """The checkpoint whose weights the run that is continued had started from, as it says itself."""
        return None if self.run is None else recorded_model(self.run, "init_from")

    def check_data(self, description: Mapping[str, Any], config: DataConfig) -> None:
        """Compare the data with those of the run that is continued, and warn of what else differs.

        Raises:
            ValueError: another text, or another tokenizer, whatever their files are called.
        """
        if self.run is not None:
            refuse_other_data(self.run, description, config)
        for difference in self.differs:  # said when nothing refuses to go on any more
            log.warning("%s: the run goes on, but not as if it had never stopped", difference)

    def check_folder(self) -> None:
        """Raise a ValueError if the folder holds something that is not the run's own."""
        if self.beginning in (Beginning.FRESH, Beginning.FROM_ANOTHER) and is_occupied(self.folder):
            way_out = "" if self.mode != "never" else "go on with trainer.resume=auto, "
            raise ValueError(
                f"run.folder: {self.folder} is not empty; {way_out}choose another run.name, or remove the folder"
            )


def _checkpoint_to_resume(folder: Path, mode: str) -> Path | None:
    if mode == "never":
        return None
    if mode == "auto":
        has_saved = bool(finding.list_checkpoints(folder / "checkpoints"))
        return finding.find_checkpoint(folder) if has_saved else None
    found = finding.find_checkpoint(path_of("trainer.resume", mode))
    try:
        finding.step_of(found)
    except ValueError as error:  # a saved model, or one of others
        raise ValueError(f"trainer.resume: {error}; its weights are a start with trainer.init_from={mode}") from None
    return found


def _compare(run: Path, config: Config) -> list[str]:
    """Refuse to continue a run with settings that make it another one; return those that change its course."""
    if not (run / CONFIG).is_file():
        return []
    before = load_config(run / CONFIG, checked=False)
    try:
        check_specs(before)
    except RemovedEntry as error:
        raise ValueError(
            f"trainer.resume: {run} cannot go on: {error}. Its weights are a start for a new run (trainer.init_from)"
        ) from None
    changed = differences(before, config)
    content_decides = recorded_data(run) is not None  # in `check_data`, as soon as there are data
    for key, (old, new) in changed.items():
        if not key.startswith(MAY_CHANGE) and not (content_decides and key in SETTLED_BY_CONTENT):
            raise ValueError(
                f"{key}: {new!r}, but the run to resume has {old!r}; set it back, or start a new run with "
                "trainer.init_from"
            )
    return [
        f"{key}: {changed[key][1]!r} instead of {changed[key][0]!r}" for key in changed if key in _CHANGE_THE_COURSE
    ]


def _run_of(checkpoint_folder: Path) -> Path:
    """Find the run folder that a step folder belongs to."""
    return checkpoint_folder.absolute().parent.parent
