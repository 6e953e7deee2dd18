# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Options shared by several commands."""

import argparse
import os

from ..recipe import shipped_data


def path(text: str) -> str:
    """Expand ~, which the shell does not do in --data=~/images."""
    return os.path.expanduser(text)


def dataset(text: str) -> str:
    """A dataset: a path, or "quickstart" for the photographs that ship with the package."""
    return shipped_data(path(text))


def add_own_method(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--method",
        dest="own_method",
        metavar="FILE.py:CLASS",
        help="your own method that the run was trained with; code named by a folder is never imported",
    )
