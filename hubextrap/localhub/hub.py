"""LocalHub: the store, the two servers, and set-up without HTTP."""

from __future__ import annotations

import secrets
import types
from collections.abc import Mapping
from datetime import datetime
from importlib import import_module
from pathlib import Path

import pygit2

from hubextrap.localhub import routes
from hubextrap.localhub.access import Account, account_of, check_owner, check_writer, may_see, no_such_repo
from hubextrap.localhub.api_commits import DEFAULT_GITATTRIBUTES, is_lfs
from hubextrap.localhub.faults import Faults, Request
from hubextrap.localhub.lfs import chunks_of
from hubextrap.localhub.repository import Change, HubRepo, Kind, NoSuchRevision, settings_for
from hubextrap.localhub.signing import Signer
from hubextrap.localhub.store import Store
from hubextrap.localhub.wire import Call, Refusal, Server


class LocalHub:
    """A Hub on a loopback port that the unmodified clients work against through HF_ENDPOINT.

    Args:
        root: folder that holds everything; a hub started on it again has the same repos.
        tokens: token → user name; ``add_token`` adds more.
        cdn: LFS files are answered with a redirect to a second port, as on the Hub.
        cdn_expiry: seconds for which a redirect's link is good.
        xet: offer the Xet endpoints, with one local store for each write token.

    Attributes:
        faults: put faults in force with ``faults.add(Fault(...))``.
        requests: what was asked, in order, of both servers.
        page_size: most items in one page of a tree or of commits.
        part_size: LFS objects larger than this many bytes are uploaded in parts of this size.
        tokens: whose each token is.
        trusted: (repo, identity of a CI job) of every trusted publisher.
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
    ) -> None:
        Path(root).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.store = Store(Path(root))
        self.faults = Faults()
        self.requests: list[Request] = []
        self.cdn_expiry = cdn_expiry
        self.page_size = 1000
        self.part_size = 1 << 30
        self.signer = Signer()
        self.xet = xet
        if xet:
            import_module("hf_xet")  # that it is missing shall be known at once
        self.tokens = {token: Account(user) for token, user in (tokens or {}).items()}
        self.trusted: set[tuple[str, str]] = set()
        self._server = Server(
            host, port, lambda call: routes.answer(self, routes.HUB_ROUTES, call), self.faults, self.requests
        )
        self._cdn: Server | None = None
        if cdn:
            self._cdn = Server(
                host, 0, lambda call: routes.answer(self, routes.CDN_ROUTES, call), self.faults, self.requests
            )

    @property
    def url(self) -> str:
        """The value for HF_ENDPOINT."""
        return self._server.url

    @property
    def cdn_port(self) -> int | None:
        """The port of the CDN; None without one."""
        return int(self._cdn.server_address[1]) if self._cdn else None

    def start(self) -> None:
        """Serve in background threads."""
        self._server.start()
        if self._cdn:
            self._cdn.start()

    def stop(self) -> None:
        """Stop serving and close every connection."""
        self._server.stop()
        if self._cdn:
            self._cdn.stop()

    def __enter__(self) -> LocalHub:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.stop()

    # Set-up without HTTP

    def add_token(self, user: str, *, read_only: bool = False) -> str:
        """A fresh token of ``user``."""
        token = f"hf_{secrets.token_hex(17)}"
        self.tokens[token] = Account(user, read_only)
        return token

    def create_repo(
        self,
        name: str,
        *,
        private: bool = False,
        gated: bool | str = False,
        repo_type: Kind = "model",
        author: str | None = None,
        date: datetime | None = None,
        sdk: str | None = None,
    ) -> None:
        """Create ``owner/name`` with a first commit on main that holds .gitattributes, as the Hub does.

        A space with an ``sdk`` has a README that says so too.

        Raises:
            FileExistsError: it exists.
            ValueError: the name is not valid.
        """
        with self.store.lock:
            repo = self.store.create(settings_for(repo_type, name, private, gated))
            files = [Change(".gitattributes", DEFAULT_GITATTRIBUTES)]
            if sdk:
                title = name.partition("/")[2]
                files.append(Change("README.md", f"---\ntitle: {title}\nsdk: {sdk}\n---\n".encode()))
            tree = repo.tree_with(None, files)
            user = author or name.partition("/")[0]
            repo.commit("refs/heads/main", tree, None, "initial commit", user, date)

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
        parent = repo.head(ref) if repo.ref_of(ref) else None
        changes = [self._change(repo, parent, path, content) for path, content in files.items()]
        with self.store.lock:
            if self.xet:
                repo.xet.keep((change.pointer for change in changes if change.pointer), repo.objects)
            parent = repo.head(ref) if repo.ref_of(ref) else None
            tree = repo.tree_with(parent, changes)
            return repo.commit(ref, tree, parent, message, name.partition("/")[0], date)

    def move_repo(self, name: str, to: str, repo_type: Kind = "model") -> None:
        """Rename a repo; requests for its old name are redirected.

        Raises:
            FileExistsError: there is another one called ``to``.
            ValueError: ``to`` is not a valid name.
        """
        with self.store.lock:
            self.store.move(self.store.get(repo_type, name), to)
            self.trusted = {(to if repo == name else repo, identity) for repo, identity in self.trusted}

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

    def _change(
        self, repo: HubRepo, parent: pygit2.Commit | None, path: str, content: bytes | Path | None
    ) -> Change:
        if content is None:
            return Change(path)
        tracked = repo.tracked_by_lfs(parent, path) if parent else None
        if isinstance(content, bytes):
            if not is_lfs(path, len(content), content[:512], tracked):
                return Change(path, content)
            pointer = repo.objects.add([content])
        else:
            with content.open("rb") as file:
                sample = file.read(512)
                file.seek(0)
                if not is_lfs(path, content.stat().st_size, sample, tracked):
                    return Change(path, file.read())
                pointer = repo.objects.add(chunks_of(file))
        return Change(path, pointer.encode(), pointer=pointer)

    # For the endpoints

    def account(self, call: Call) -> Account | None:
        """Who asks; None for anonymous requests. Raises Refusal for an unknown token."""
        return account_of(call.headers, self.tokens)

    def reader(self, call: Call) -> str:
        """The user who asks. Raises Refusal for anonymous requests and read-only tokens."""
        account = self.account(call)
        return check_writer((account.repo or f"{account.user}/") if account else "", account)

    def writer(self, call: Call, name: str, repo: HubRepo | None = None) -> str:
        """The user who asks, if he may write there. Raises Refusal."""
        return check_writer(name, self.account(call), repo)

    def owner(self, call: Call, name: str) -> str:
        """The user who asks, if repos called ``name`` are his. Raises Refusal."""
        return check_owner(name, self.account(call))

    def kind(self, call: Call) -> Kind:
        """The repo type in the path: models have none on pages."""
        kinds: dict[str, Kind] = {"datasets": "dataset", "spaces": "space"}
        return kinds.get(call.groups.get("kind", ""), "model")

    def repo(
        self, call: Call, kind: Kind | None = None, name: str | None = None, write: bool = False
    ) -> HubRepo:
        """The repo that the path (or ``kind`` and ``name``) names, if the account may see it, or write to it.

        Raises:
            Refusal: 401 or 404 if there is none or it is hidden, 401 or 403 if it may not be written, 307 if
                the path holds a name that it had before, or its name in other letter case.
        """
        account = self.account(call)
        wanted = name or call.groups["repo"]
        try:
            repo = self.store.find(kind or self.kind(call), wanted)
        except KeyError:
            raise no_such_repo(wanted, account) from None
        if not may_see(repo, account):
            raise no_such_repo(wanted, account)
        found = repo.settings.name
        if name is None and found != wanted:
            moved = Refusal(307, f"Temporary Redirect. Redirecting to {call.for_repo(found)}")
            moved.headers["Location"] = call.for_repo(found)
            raise moved
        if found.lower() != wanted.lower():  # named in a body, which no redirect would change
            raise no_such_repo(wanted, account)
        if write:
            check_writer(found, account, repo)
        return repo

    def head(self, repo: HubRepo, revision: str) -> pygit2.Commit:
        """The commit of ``revision``. Raises Refusal with RevisionNotFound."""
        try:
            return repo.head(revision)
        except NoSuchRevision:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound") from None

    def base(self, call: Call) -> str:
        """The hub's address as this client knows it."""
        return f"http://{call.headers['Host']}" if call.headers.get("Host") else self.url

    def page(self, call: Call, kind: Kind, name: str) -> str:
        """The repo's page."""
        prefix = "" if kind == "model" else f"{kind}s/"
        return f"{self.base(call)}/{prefix}{name}"

    def cdn_link(self, call: Call, repo: HubRepo, sha256: str) -> str | None:
        """A signed link to an LFS object on the CDN; None without a CDN."""
        if self._cdn is None:
            return None
        host = self.base(call).rpartition(":")[0]
        path = f"/lfs/{repo.settings.kind}s/{repo.settings.name}/{sha256}"
        return f"{host}:{self.cdn_port}{self.signer.sign(path, self.cdn_expiry)}"
