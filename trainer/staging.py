"""Checkpoints of the Hugging Face trainers, written aside and then renamed: whatever bears the name is whole.

Not here: the names, and which may go (`trainer.checkpoints`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer

from agent.disk import commit, sync_tree
from trainer.checkpoints import STATE, UNFINISHED, checkpoint_name, remove_old_checkpoints, remove_whole

_Trainer: Any = object  # a trainer in truth: TRL's, after this class in the order of bases


class StagedCheckpoints(_Trainer):  # type: ignore[misc]
    """Mixed in before a trainer of TRL; its `__init__` must set the two attributes before that of the base class.

    Attributes:
        checkpoint_state: what a checkpoint must hold besides weights and optimiser, as JSON.
        checkpoints_kept: how many stay.
    """

    checkpoint_state: Callable[[], dict[str, Any]]
    checkpoints_kept: int
    _staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        name = checkpoint_name(self.state.global_step)
        self._staging = folder / f"{UNFINISHED}{name}"  # one for all processes: each adds its random state
        self._staging.mkdir(parents=True, exist_ok=True)
        try:
            Trainer._save_checkpoint(self, model, trial)  # TRL adds a card of its own
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (self._staging / name / STATE).write_text(json.dumps(self.checkpoint_state()))
                sync_tree(self._staging / name)
                remove_whole(folder / name)
                commit(self._staging / name, folder / name)
                remove_old_checkpoints(folder, self.checkpoints_kept)
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
