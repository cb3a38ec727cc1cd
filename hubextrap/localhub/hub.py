"""LocalHub: the two servers, and set-up without HTTP."""

from __future__ import annotations

import io
import secrets
from collections.abc import Mapping
from datetime import datetime
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path

import pygit2

from hubextrap.errors import HubExtrapError
from hubextrap.localhub import routes
from hubextrap.localhub.access import Account
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.faults import Faults, Request
from hubextrap.localhub.jobs import Jobs
from hubextrap.localhub.lfs import chunks_of, is_lfs
from hubextrap.localhub.repository import Change, HubRepo, Kind
from hubextrap.localhub.wire import Server


class LocalHub(HubContext):
    """A Hub on a loopback port that the unmodified clients work against through HF_ENDPOINT.

    Args:
        root: folder that holds everything; a hub started on it again has the same repos.
        tokens: token → user name; ``add_token`` adds more.
        cdn: LFS files are answered with a redirect to a second port, as on the Hub.
        cdn_expiry: seconds for which a redirect's link is good.
        xet: offer the Xet endpoints, with one local store for each write token.
        run_jobs: run the jobs of who may write, as processes of this machine that nothing shuts in; only on
            loopback.

    Attributes:
        faults: ``faults.add(Fault(...))`` lets something go wrong.
        requests: what was asked, in order, of both servers.
    """

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tokens: Mapping[str, str] | None = None,
        cdn: bool = False,
        cdn_expiry: float = 3600.0,
        xet: bool = False,
        run_jobs: bool = False,
    ) -> None:
        if run_jobs and not _is_loopback(host):
            raise HubExtrapError(
                f"{host} is not loopback, and jobs are run for nobody else: serve on 127.0.0.1 or run none"
            )
        super().__init__(Path(root), tokens or {}, cdn_expiry, xet)
        if xet:
            import_module("hf_xet")  # that it is missing shall be known at once
        self.faults = Faults()
        self.requests: list[Request] = []
        self._servers = [self._serving(host, port, routes.HUB_ROUTES)]
        self.url = self._servers[0].url
        if cdn:
            self._servers.append(self._serving(host, 0, routes.CDN_ROUTES))
            self.cdn_port = int(self._servers[1].server_address[1])
        if run_jobs:
            self.jobs = Jobs(self.store.root / "jobs")
            self.jobs.environment["HF_ENDPOINT"] = self.url
            if not xet:
                self.jobs.environment["HF_HUB_DISABLE_XET"] = "1"

    def _serving(self, host: str, port: int, of: routes.Routes) -> Server:
        return Server(host, port, lambda call: routes.answer(self, of, call), self.faults, self.requests)

    def start(self) -> None:
        """Serve in background threads."""
        for server in self._servers:
            server.start()

    def stop(self) -> None:
        """Stop serving and close every connection; jobs end too."""
        for server in self._servers:
            server.stop()
        if self.jobs is not None:
            self.jobs.stop()

    def __enter__(self) -> LocalHub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Set-up without HTTP

    def add_token(self, user: str, *, read_only: bool = False) -> str:
        """A fresh token of ``user``."""
        token = f"hf_{secrets.token_hex(17)}"
        self.tokens[token] = Account(user, read_only)
        return token

    def commit(
        self,
        name: str,
        files: Mapping[str, bytes | Path | None],
        revision: str = "main",
        message: str = "Upload files",
        date: datetime | None = None,
        repo_type: Kind = "model",
    ) -> str:
        """Write ``files`` (None deletes) on top of the branch ``revision`` and return the SHA.

        Weights, large and binary files become LFS objects as on the Hub. A branch that is not there is
        created with this commit as its first.
        """
        repo = self.store.get(repo_type, name)
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        with self.store.lock:
            parent = repo.head(ref) if repo.ref_of(ref) else None
            changes = [_change(repo, parent, path, content) for path, content in files.items()]
            if self.xet:
                repo.xet.keep((change.pointer for change in changes if change.pointer), repo.objects)
            tree = repo.tree_with(parent, changes)
            return repo.commit(ref, tree, parent, message, name.partition("/")[0], date)

    def branch(self, name: str, branch: str, from_: str = "main", repo_type: Kind = "model") -> None:
        """Create a branch at ``from_`` (branch, tag or SHA)."""
        self._create_ref(name, f"refs/heads/{branch}", from_, repo_type)

    def tag(self, name: str, tag: str, from_: str = "main", repo_type: Kind = "model") -> None:
        """Create a tag at ``from_`` (branch, tag or SHA)."""
        self._create_ref(name, f"refs/tags/{tag}", from_, repo_type)

    def grant(self, name: str, user: str, *, write: bool = False, repo_type: Kind = "model") -> None:
        """Let ``user`` into a gated or private repo, or let him write to it."""
        with self.store.lock:
            repo = self.store.get(repo_type, name)
            repo.settings.grants[user] = "write" if write else "read"
            repo.save_settings()

    def trust(self, name: str, id_token: str) -> None:
        """Give the CI job that shows ``id_token`` a token with which to write to this model repo alone."""
        self.trusted.add((name, id_token))

    def _create_ref(self, name: str, ref: str, start: str, kind: Kind) -> None:
        with self.store.lock:
            repo = self.store.get(kind, name)
            repo.create_ref(ref, repo.head(start))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _change(repo: HubRepo, parent: pygit2.Commit | None, path: str, content: bytes | Path | None) -> Change:
    if content is None:
        return Change(path)
    tracked = repo.tracked_by_lfs(parent, path) if parent else None
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        sample = file.read(512)
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if not is_lfs(path, size, sample, tracked):
            return Change(path, file.read())
        pointer = repo.objects.add(chunks_of(file))
    return Change(path, pointer.encode(), pointer=pointer)
