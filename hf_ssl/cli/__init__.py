# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`hf-ssl`: parses, and calls one function a command.

Exit codes: 0 done, 1 the run failed, 2 a mistake in the command or the recipe, 128+n stopped by signal n.
"""

import errno
import logging
import signal
import sys

from ..errors import RunError, UserError
from .parser import build_parser


_UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP)  # paths that no command can use


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script."""
    if argv is None:  # a command of its own: Ctrl-C ends it at once, without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    args = build_parser().parse_args(argv)
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
