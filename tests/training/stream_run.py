# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl` with a log: before each step, every process appends "step index index ..." to the file of its rank.

Usage: stream_run.py LOG_FOLDER COMMAND ...
"""

import sys
from pathlib import Path

import hf_ssl.training.setup as loop
from hf_ssl.cli import main


def run(folder: str, *command: str) -> None:
    class LoggedLoader(loop.TrainLoader):
        def __init__(self, source, views, *, start_step: int, rank: int, **options):
            super().__init__(source, views, start_step=start_step, rank=rank, **options)
            self.start_step, self.log = start_step, Path(folder, f"{rank}.log")

        def __iter__(self):
            with self.log.open("a") as log:
                for step, batch in enumerate(super().__iter__(), self.start_step):
                    log.write(" ".join(map(str, [step, *batch["index"].tolist()])) + "\n")
                    log.flush()
                    yield batch

    loop.TrainLoader = LoggedLoader
    main(list(command))


if __name__ == "__main__":
    run(*sys.argv[1:])
