# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`train.push_to_hub`: push the model to the Hub during training. Network errors never stop the run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from accelerate import Accelerator

from ..disk import first_line
from ..errors import UserError
from ..hub.push import PushError, create_repo, push
from ..logs import get_logger
from ..recipe import TrainConfig


logger = get_logger(__name__)


def write_report(folder: Path) -> Path | None:
    """Write `report.html` of a finished run. Returns None if that fails, or without the extra `[report]`."""
    try:
        from ..report import report
    except ImportError:
        return None
    try:
        large = (folder / "model" / "model.safetensors.index.json").exists()
        return report([folder], pictures=not large)
    except Exception as error:
        logger.warning(f"The report could not be written: {first_line(error)}")
        return None


class Publisher:
    """Pushes every `train.push_every`-th checkpoint from the main process, in the background, one at a time.

    Raises:
        UserError: the token or repository name is invalid; checked before training starts.
    """

    def __init__(self, train: TrainConfig, accelerator: Accelerator):
        self.repo_id, self.every, self.private = train.push_to_hub, train.push_every, train.push_private
        self.folder = train.folder / "model"
        self.is_main_process = accelerator.is_main_process
        self._thread: Thread | None = None
        self._checkpoints = 0
        if self.repo_id and self.is_main_process:
            try:
                create_repo(self.repo_id, self.private)
            except PushError as error:
                if error.status in (400, 401, 403, 404):
                    raise UserError(f"train.push_to_hub: {error}") from error
                logger.warning(f"{error} Training starts anyway; the push is retried at every checkpoint.")

    def due(self) -> bool:
        """Whether to push this checkpoint; call it once per checkpoint on every process."""
        self._checkpoints += 1
        return self.repo_id is not None and self._checkpoints % self.every == 0

    def start(self, export: Callable[[Path], object], step: int) -> None:
        """Export to a separate folder and push it in the background; skipped while an earlier push is running."""
        if self.repo_id is None or not self.is_main_process or (self._thread is not None and self._thread.is_alive()):
            return
        folder = self.folder.with_name(".pushed")
        try:
            export(folder)
        except UserError as error:
            logger.warning(f"Step {step} was not pushed: {error}")
            return
        self._thread = Thread(target=self._push, args=(self.repo_id, folder, step), daemon=True)
        self._thread.start()

    def finish(self, step: int) -> None:
        """Push the finished model, after any push still running."""
        if self.repo_id is None or not self.is_main_process:
            return
        if self._thread is not None:
            self._thread.join()
            shutil.rmtree(self.folder.with_name(".pushed"), ignore_errors=True)
        if not self._push(self.repo_id, self.folder, step):
            logger.warning(
                f"The model is in {self.folder}; run `hf-ssl push {self.folder} {self.repo_id}` to try again."
            )

    def _push(self, repo_id: str, folder: Path, step: int) -> bool:
        try:
            address = push(folder, repo_id, private=self.private, message=f"Step {step}")
        except Exception as error:  # network errors must not stop a run
            logger.warning(str(error) if isinstance(error, UserError) else f"The push failed: {error!r}")
            return False
        logger.info(f"Pushed step {step} to {address}")
        return True
