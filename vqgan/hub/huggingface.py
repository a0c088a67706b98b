"""Models on the Hugging Face Hub, by `owner/name` or `owner/name@revision`.

Looking a name up: the Hub's cache first, which needs no network and is not refreshed (`hf download NAME` does that),
then the Hub, which has five seconds to answer; HF_HUB_OFFLINE leaves it out. A path that was mistyped looks like a name
too: what begins like a path (`vqgan.hub.missing_folder`) is never looked up, unless a revision is given. Nothing that
is fetched can execute code: weights are safetensors.
"""

import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vqgan.hub.missing_folder import looks_local, no_such_folder

CARD_FILE = "README.md"
_PART = r"\w(?:[\w.-]*\w)?"
_NAME = re.compile(rf"(?!.*(?:--|\.\.))(?P<name>(?:(?P<owner>{_PART})/)?{_PART})(?:@(?P<revision>\S+))?", re.ASCII)
_PATIENCE = 5.0
"""Seconds for the Hub to say that it has a model."""


class NotOnHubError(ValueError):
    """A name that gives no model; the message is one line that says what was tried and what to do."""


def is_hub_name(text: str) -> bool:
    """Whether `text` has the form owner/name or owner/name@revision; a path may have it too."""
    found = _NAME.fullmatch(text)
    return found is not None and found["owner"] is not None


def fetch_model(name: str, files: Sequence[str], beside: Sequence[str]) -> Path:
    """The folder in the Hub's cache that holds `files` (patterns, of which one must be there) of a model.

    What is not in the cache is fetched, with what matches `beside`. Old models have names without an owner, which are
    looked up too. Raises NotOnHubError.
    """
    found = _NAME.fullmatch(name)
    revision = found["revision"] if found is not None else None
    if looks_local(name) and not revision:
        again = f"; for the Hugging Face Hub's model of that name give {name}@main" if is_hub_name(name) else ""
        raise NotOnHubError(no_such_folder(name) + again)
    if found is None:
        raise NotOnHubError(f"{no_such_folder(name)}; nor is it a name on the Hugging Face Hub (owner/name)")
    model = found["name"]
    # Imported on use: it takes a fraction of a second, and most models are folders.
    from huggingface_hub import snapshot_download

    which: dict[str, Any] = {"revision": revision, "allow_patterns": [*files, *beside]}
    reason = "no such model"
    for in_cache in (True, False):
        try:
            if not in_cache:
                _ask(model, revision)
            folder = Path(snapshot_download(model, local_files_only=in_cache, **which))
        except Exception as error:  # of several libraries, down to the HTTP client
            reason = _reason(error, revision)
            continue
        if any(True for pattern in files for _ in folder.glob(pattern)):
            return folder
        reason = f"it has none of {', '.join(files)}"
    at_revision = f" --revision {revision}" if revision else ""
    raise NotOnHubError(
        f"{no_such_folder(name)}; and the Hugging Face Hub gives no model of that name ({reason}): give a folder, or "
        f"fetch the Hub's where there is a network: hf download {model}{at_revision}"
    )


def push_model(
    name: str,
    save: Callable[[Path], None],
    card: Callable[[str], str],
    *,
    private: bool,
    token: str | None,
    commit_message: str,
) -> str:
    """Upload what `save` writes into a folder, as one commit. Returns the model's address.

    The repository is made where there is none, `private` or not; one that is there stays as visible as it is, and a
    card that it has is left alone. `card` is given the name with its owner. Raises what huggingface_hub raises: no
    token (`hf auth login`), no right to write there, not a name.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    # First of all, so that a missing token shows before anything large is written.
    address = api.create_repo(name, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        if not api.file_exists(address.repo_id, CARD_FILE):
            (Path(folder) / CARD_FILE).write_text(card(address.repo_id), encoding="utf-8")
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=commit_message)
    return str(address)


def _ask(model: str, revision: str | None) -> None:
    """Raise what stands in the way of a download, within `_PATIENCE`: a download itself would retry for minutes.

    In a thread, because looking up a host's address knows no time-out.
    """
    from huggingface_hub import HfApi

    which: dict[str, Any] = {"revision": revision} if revision else {}
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(model, timeout=_PATIENCE, **which)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if not outcome:
        raise TimeoutError(f"no answer in {_PATIENCE:g} seconds")
    if outcome[0] is not None:
        raise outcome[0]


def _reason(error: Exception, revision: str | None) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return "it is not in the cache, and HF_HUB_OFFLINE is set"
    if isinstance(error, GatedRepoError):
        return "access is restricted: ask for it on the model's page, then hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return "it has no such model; a private one needs hf auth login"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision}"
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
