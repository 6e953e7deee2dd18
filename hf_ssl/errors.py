# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Failures that are one sentence for whoever runs a command, and no traceback."""


class UserError(Exception):
    """Something that whoever runs a command can mend; its text is one sentence that names the thing and the remedy."""


class RecipeError(UserError, ValueError):
    """A mistake in a recipe or a command."""


class RunError(UserError, RuntimeError):
    """A run failed through something outside of its recipe."""
