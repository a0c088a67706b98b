"""A Hub in a folder: what huggingface_hub would send to the network or fetch from it goes to and comes from there."""

import inspect
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.errors import RepositoryNotFoundError


class FakeHub:
    """Models in `folder`/owner/name, and a cache beside them. `asked` and `commits` tell what was wanted of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models, self.cache = folder / "models", folder / "cache"
        self.asked: list[str] = []
        self.commits: list[tuple[str, str]] = []
        self.private: dict[str, bool] = {}
        self.tokens: list[str | None] = []

        def create_repo(api: Any, repo_id: str, *, private: bool, exist_ok: bool) -> RepoUrl:
            self.tokens.append(api.token)
            repo_id = repo_id if "/" in repo_id else f"me/{repo_id}"
            assert exist_ok
            self.private.setdefault(repo_id, private)
            (self.models / repo_id).mkdir(parents=True, exist_ok=True)
            return RepoUrl(f"https://huggingface.co/{repo_id}")

        def file_exists(_: Any, repo_id: str, filename: str) -> bool:
            return (self.models / repo_id / filename).is_file()

        def upload_folder(_: Any, *, repo_id: str, folder_path: str, commit_message: str) -> None:
            shutil.copytree(folder_path, self.models / repo_id, dirs_exist_ok=True)
            self.commits.append((repo_id, commit_message))

        def model_info(_: Any, repo_id: str, *, timeout: float, revision: str = "main") -> SimpleNamespace:
            assert 0 < timeout <= 10
            self.asked.append(f"{repo_id}@{revision}")
            if not (self.models / repo_id).is_dir():
                answer: Any = SimpleNamespace(headers={}, request=None)
                raise RepositoryNotFoundError("404\nRepository Not Found", response=answer)
            return SimpleNamespace(id=repo_id)

        def snapshot_download(
            repo_id: str, *, revision: str | None, local_files_only: bool, allow_patterns: Sequence[str]
        ) -> str:
            kept = self.cache / repo_id / (revision or "main")
            if local_files_only and not kept.is_dir():
                raise FileNotFoundError("not in the cache")
            if not local_files_only:
                for path in (self.models / repo_id).rglob("*"):
                    name = path.relative_to(self.models / repo_id)
                    if path.is_file() and any(fnmatch(str(name), pattern) for pattern in allow_patterns):
                        (kept / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, kept / name)
            return str(kept)

        for replacement in (create_repo, file_exists, upload_folder, model_info):
            _stand_in(HfApi, replacement, monkeypatch)
        _stand_in(huggingface_hub, snapshot_download, monkeypatch)

    def fetched(self, name: str) -> list[str]:
        """The files of a model's main branch that came down."""
        folder = self.cache / name / "main"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _stand_in(owner: Any, replacement: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `replacement` in the place of what has its name, which must know all of its arguments by name."""
    known = inspect.signature(getattr(owner, replacement.__name__)).parameters
    assert set(inspect.signature(replacement).parameters) - {"_", "api"} <= set(known)
    monkeypatch.setattr(owner, replacement.__name__, replacement)
