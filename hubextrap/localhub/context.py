"""What an endpoint gets: the store, the accounts, the hub's settings, whom and what a request is about."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from hubextrap.localhub.access import Account, account_of, check_writer, may_see, no_such_repo
from hubextrap.localhub.buckets import Buckets
from hubextrap.localhub.jobs import Jobs
from hubextrap.localhub.lfs import DEFAULT_GITATTRIBUTES
from hubextrap.localhub.repository import KINDS, Change, HubRepo, Kind, settings_for
from hubextrap.localhub.signing import Signer
from hubextrap.localhub.store import Store
from hubextrap.localhub.wire import Call, Refusal


class HubContext:
    """A hub as its endpoints see it: all but the servers.

    Attributes:
        url: the value for HF_ENDPOINT.
        cdn_port: the port of the CDN; None without one.
        page_size: most items in one page of a tree or of commits.
        part_size: LFS objects larger than this many bytes are uploaded in parts of this size.
        tokens: whose each token is.
        jobs: what runs jobs; None where none are run.
        trusted: (repo, identity of a CI job) of every trusted publisher.
    """

    def __init__(self, root: Path, tokens: Mapping[str, str], cdn_expiry: float, xet: bool) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.url = ""
        self.cdn_port: int | None = None
        self.store = Store(root)
        self.buckets = Buckets(self.store)
        self.cdn_expiry = cdn_expiry
        self.page_size = 1000
        self.part_size = 1 << 30
        self.signer = Signer()
        self.xet = xet
        self.jobs: Jobs | None = None
        self.tokens = {token: Account(user) for token, user in tokens.items()}
        self.trusted: set[tuple[str, str]] = set()

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

    def move_repo(self, name: str, to: str, repo_type: Kind = "model") -> None:
        """Rename a repo; requests for its old name are redirected.

        Raises:
            FileExistsError: there is another one called ``to``.
            ValueError: ``to`` is not a valid name.
        """
        with self.store.lock:
            self.store.move(self.store.get(repo_type, name), to)
            self.trusted = {(to if repo == name else repo, identity) for repo, identity in self.trusted}

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

    def check_owner(self, call: Call, name: str) -> None:
        """Refuse who may not rename repos called ``name``, or make them of others. Raises Refusal."""
        account = self.account(call)
        check_writer(name, account)
        if account is not None and account.repo is not None:
            raise Refusal(403, f"Forbidden: this token may not rename or duplicate {account.repo}")

    def kind(self, call: Call) -> Kind:
        """The repo type in the path: models have none on pages."""
        return next((kind for kind in KINDS if call.groups.get("kind") == f"{kind}s"), "model")

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
            raise no_such_repo(account) from None
        if not may_see(repo, account):
            raise no_such_repo(account)
        found = repo.settings.name
        if name is None and found != wanted:
            moved = Refusal(307, f"Temporary Redirect. Redirecting to {call.for_repo(found)}")
            moved.headers["Location"] = call.for_repo(found)
            raise moved
        if found.lower() != wanted.lower():  # named in a body, which no redirect would change
            raise no_such_repo(account)
        if write:
            check_writer(found, account, repo)
        return repo

    def base(self, call: Call) -> str:
        """The hub's address as this client knows it."""
        return f"http://{call.headers['Host']}" if call.headers.get("Host") else self.url

    def page(self, call: Call, kind: Kind, name: str) -> str:
        """The repo's page."""
        prefix = "" if kind == "model" else f"{kind}s/"
        return f"{self.base(call)}/{prefix}{name}"

    def cdn_link(self, call: Call, repo: HubRepo, sha256: str) -> str | None:
        """A signed link to an LFS object on the CDN; None without a CDN."""
        if self.cdn_port is None:
            return None
        host = self.base(call).rpartition(":")[0]
        path = f"/lfs/{repo.settings.kind}s/{repo.settings.name}/{sha256}"
        return f"{host}:{self.cdn_port}{self.signer.sign(path, self.cdn_expiry)}"
