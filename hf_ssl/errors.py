# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Failures that are one sentence for whoever runs a command, and no traceback."""


class RunError(RuntimeError):
    """A run failed through something outside of its recipe; the text is one sentence with the remedy."""
