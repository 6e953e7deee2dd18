# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Publish a repo folder on the Hugging Face Hub in a single commit."""

import os
import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError
from ..files import read_text
from ..recipe import RecipeError


# Files of an earlier push to delete if the folder no longer has them; other people's files are kept.
STALE = ["*.safetensors", "*.safetensors.index.json", "*.py", "pretraining/*", "classification/*"]

REMEDIES = {
    401: "you are not logged in, or the token is invalid: run `hf auth login` with a write token",
    403: "your token cannot write there: check the name, or create a token with write access",
    404: "the repository does not exist, or your token cannot see it",
    409: "someone else is changing the repository at the same time: run the same command again",
    413: "a file is too large for the Hub",
    429: "too many requests: wait a few minutes and run the same command again",
}


class PushError(UserError):
    """The Hub could not be reached or refused; the repository is unchanged.

    `status`: HTTP status, 400 for an invalid repository name, or None if there was no response.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


def push(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload model",
) -> str:
    """Publish a repo folder, or the one of a run, and return its URL.

    The repository's name is inserted into the card's code examples. Files are uploaded first, then a single commit
    publishes them all; after a failure, the same call only uploads what is missing. Files of an earlier push that the
    folder no longer has are removed in the same commit.

    Args:
        repo_id: "user/name" or "organization/name"; created if it does not exist.
        private: visibility of a new repository; default: the account's or organization's setting.
        revision: a branch, created if it does not exist.

    Raises:
        RecipeError: the folder is not an exported model.
        PushError: the Hub could not be reached or refused.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise RecipeError(f"There is no folder {folder}; pass a run's folder or an exported model.")
    folder = folder / "model" if (folder / "model").is_dir() else folder
    for names in (("config.json",), ("README.md",), ("model.safetensors", "model.safetensors.index.json")):
        if not any((folder / name).exists() for name in names):
            raise RecipeError(f"{folder} is not an exported model: {names[0]} is missing; see `hf-ssl export`.")
    read_text(folder / "README.md")  # fail before creating a repository
    create_repo(repo_id, private)
    api = HfApi()
    try:
        _name_in_card(folder / "README.md", repo_id)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message, delete_patterns=STALE
        )
    except (OSError, HTTPError, RuntimeError, ValueError) as error:
        raise push_error(error, repo_id) from error
    return commit.commit_url.split("/commit/")[0] + (f"/tree/{revision}" if revision else "")


def _name_in_card(card: Path, repo_id: str) -> None:
    """Insert the repository's name into the card's code examples."""
    text = read_text(card)
    named = text.replace('"REPO"', f'"{repo_id}"').replace("hf-hub:REPO", f"hf-hub:{repo_id}")
    if named != text:
        named = re.sub(r"^Replace `REPO` .+\n\n", "", named, flags=re.MULTILINE)
        partial = card.with_name(".partial_README.md")
        partial.write_text(named, encoding="utf-8")
        os.replace(partial, card)


def create_repo(repo_id: str, private: bool | None = None) -> None:
    """Create a repository if it does not exist; also tests the token.

    Raises:
        PushError: as in `push`.
    """
    try:
        validate_repo_id(repo_id)
        HfApi().create_repo(repo_id, private=private, exist_ok=True)
    except (OSError, HTTPError, HFValidationError) as error:
        raise push_error(error, repo_id) from error


def push_error(error: BaseException, repo_id: str) -> PushError:
    """Turn an error of the Hub into one that names the remedy."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    status = None if cause is None else cause.response.status_code
    said = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    remedy = REMEDIES.get(status)
    if isinstance(error, OfflineModeIsEnabled):
        remedy, said = "HF_HUB_OFFLINE is set: unset it and run the same command again", "offline"
    elif isinstance(error, HFValidationError):
        status, remedy = 400, "give it as user/name"
    elif status is not None and status >= 500:
        remedy = "the Hub has a problem: run the same command again later"
    elif remedy is None:
        remedy = "run the same command again: uploaded files are not sent twice"
    return PushError(f"{repo_id} was not published and is unchanged; {remedy} ({said}).", status)
