# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl`: parse the arguments and call the command's function.

Exit codes: 0 success, 1 the run failed, 2 error in the command or recipe, 128+n stopped by signal n.
"""

import argparse
import errno
import logging
import signal
import sys

from ..errors import RunError, UserError
from .parser import build_parser


_UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP)  # unusable paths


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    """Parse arguments; allow recipe overrides after options, which argparse would reject."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if unknown := [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(args, "overrides")]:
        keys = "; keys of a recipe are written like data.path=photos" if hasattr(args, "overrides") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{keys}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script."""
    if argv is None:  # console script: Ctrl-C exits immediately, without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    args = _parsed(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("hf_ssl").setLevel(logging.INFO)
    try:
        if getattr(args, "own_method", None):
            from ..methods import load_method

            load_method(args.own_method)
        args.command(args)
    except UserError as error:
        sys.stderr.write(f"hf-ssl: {error}\n")
        sys.exit(1 if isinstance(error, RunError) else 2)
    except OSError as error:
        if error.filename is None or error.errno not in _UNUSABLE:
            raise
        sys.stderr.write(f"hf-ssl: {str(error.filename)[:300]} cannot be used: {error.strerror}.\n")
        sys.exit(2)
