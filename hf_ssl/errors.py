# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Errors shown to the user as one sentence, without a traceback."""


class UserError(Exception):
    """An error that the user can fix; its text is one sentence that names the problem and the remedy."""


class RecipeError(UserError, ValueError):
    """An error in a recipe or command."""


class RunError(UserError, RuntimeError):
    """A run failed for a reason outside its recipe."""
