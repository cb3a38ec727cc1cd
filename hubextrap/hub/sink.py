"""A sink that sends each finished shard to the Hub while the next one is computed."""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.errors import OutputError, PushError
from hubextrap.hub.commit import PushResult, commit_files, landed, refuse_overwriting
from hubextrap.hub.outgoing import OutgoingFile
from hubextrap.hub.push_errors import push_errors, refused_commit
from hubextrap.hub.target import check_target, create_repo, read_remote, refusal
from hubextrap.hub.uploading import preupload, there_already, uploads_over_xet, without_client_bars
from hubextrap.progress import SilentProgress
from hubextrap.tensors.sinks import LocalSink

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from types import TracebackType

    from hubextrap.hub.target import PushTarget, RemoteState
    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import FinishedShard, ShardWriter
    from hubextrap.tensors.journal import Journal

_SHARDS_ON_DISK = 2


class HubSink:
    """Shards go to the Hub's store as they are finished; ``commit`` makes them visible, all at once.

    At most two shards are on the disk: one being written, one being uploaded. A third ``open`` waits. To be
    used as a context manager; leaving it without a commit leaves the revision as it was. Thread-safe.
    """

    def __init__(
        self,
        target: PushTarget,
        *,
        scratch: Path | None = None,
        journal: Journal | None = None,
        progress: Progress | None = None,
        commits: bool = True,
        start: RemoteState | None = None,
    ) -> None:
        """
        Args:
            scratch: where the shards lie until they are uploaded; the system's temporary folder when None.
            journal: where each shard is recorded once its bytes are in the Hub's LFS store (over Xet it is
                not: the Hub does not say later whether it has them). What it records already is taken over
                where the Hub still has it, and struck from it where not.
            commits: False leaves the commit, and making the repo, to somebody else: see `uploaded`, `adopt`.
            start: the target as it was when the shards were begun, where that was before now.

        Raises:
            PushError: the target cannot be pushed to.
        """
        self.target = target
        self._progress = progress or SilentProgress()
        if commits:
            state = check_target(target)
        else:  # it was checked by whoever makes the commit, and many ask at the same time
            with push_errors(target.name):
                state = read_remote(target)
        self._start = start or (state if state.exists or not commits else create_repo(target))
        self._journal = journal
        self._files = self._adopted()
        self._slots = threading.Semaphore(_SHARDS_ON_DISK)
        self._uploads: list[Future[OutgoingFile]] = []
        self._looked_at = 0
        self._made: list[FinishedShard] = []
        self._others: list[FinishedShard] = []
        self._lost: Callable[[Collection[str]], str] | None = None
        self._resources = ExitStack()
        self._resources.enter_context(without_client_bars())
        scratch_folder = tempfile.TemporaryDirectory(prefix="hubextrap-", dir=scratch)
        self._folder = Path(self._resources.enter_context(scratch_folder))
        self._disk = LocalSink(self._folder)
        self._pool = self._resources.enter_context(ThreadPoolExecutor(1, thread_name_prefix="upload"))

    def __enter__(self) -> HubSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._resources.close()

    def open(self, file: str, size: int) -> ShardWriter:
        """Start a shard; waits while two are on the disk.

        Raises:
            PushError: an earlier shard could not be uploaded.
            OutputError: there is no room for it in the temporary folder.
        """
        self._slots.acquire()
        try:
            # one after the other, so those before the first that is not done have been looked at
            while self._looked_at < len(self._uploads) and self._uploads[self._looked_at].done():
                self._uploads[self._looked_at].result()
                self._looked_at += 1
            return _ShardOnItsWay(self, self._disk.open(file, size))
        except BaseException:
            self.release()
            raise

    def commit(self, side_files: Mapping[str, bytes], message: str) -> PushResult:
        """Wait for the uploads, then make the one commit of all shards and ``side_files`` (path → content).

        Raises:
            PushError: an upload or the commit failed, or somebody else changed the model there since the
                sink was made; the revision is as it was.
        """
        self._files |= {file.path: file for file in [upload.result() for upload in self._uploads]}
        files = [*self._files.values(), *(OutgoingFile(path, data) for path, data in side_files.items())]
        with push_errors(self.target.name):
            now = read_remote(self.target)
        if made := landed(self.target, files, self._start, now):
            return made
        refuse_overwriting(self.target, self._start, now, files)
        try:
            result = commit_files(self.target, files, message=message, state=now, progress=self._progress)
        except PushError as error:
            if self._lost is None or not (gone := self._no_longer_there(error, now)):
                raise
            named = ", ".join(gone[:5]) + (" …" if len(gone) > 5 else "")
            raise refusal(
                self.target,
                f"the Hub does not have {named} any more, which were sent ahead of the commit; "
                f"{self._lost(gone)}",
            ) from error
        if self._journal is not None:  # what is in a commit is there, whatever way it went
            for shard in self._made:
                if shard.file not in self._journal.finished:
                    with suppress(OutputError):
                        self._journal.record(shard)
        return result

    def uploaded(self) -> dict[str, bytes]:
        """Wait for the uploads; what of the shards the Hub takes only in a commit, by path.

        Raises:
            PushError: one failed.
        """
        done = [upload.result() for upload in self._uploads]
        operations = [file.operation for file in done]
        return {
            one.path_in_repo: one.path_or_fileobj
            for one in operations
            if isinstance(one.path_or_fileobj, bytes) and one.path_or_fileobj
        }

    def adopt(
        self,
        shards: Iterable[FinishedShard],
        small: Mapping[str, bytes],
        lost: Callable[[Collection[str]], str],
    ) -> None:
        """Take shards into the commit that others have uploaded.

        Args:
            small: what `uploaded` said of them.
            lost: is told of those that the Hub turns out not to have any more, by file; returns what makes
                them again, for the error.
        """
        self._lost = lost
        for shard in shards:
            self._others += [shard] * (shard.file not in small)
            self._files[shard.file] = (
                OutgoingFile(shard.file, small[shard.file], shard.sha256)
                if shard.file in small
                else OutgoingFile.uploaded(shard)
            )

    def accept(self, shard: FinishedShard) -> None:
        """Upload a shard that is whole on the disk, in the background, and then delete it."""
        self._made.append(shard)
        self._uploads.append(self._pool.submit(self._upload, shard))

    def release(self) -> None:
        """Let another shard take the place of one that has left the disk."""
        self._slots.release()

    def _no_longer_there(self, error: PushError, now: RemoteState) -> list[str]:
        """The shards that others have sent, and for want of which a commit was refused."""
        said = refused_commit(error)
        if said is None:
            return []
        sent = [
            one for one in self._others if not OutgoingFile.uploaded(one).same_as(now.files.get(one.file))
        ]
        if uploads_over_xet():  # which does not say what is there
            named = [one.file for one in sent if one.sha256 in said or one.file in said]
            return named or [one.file for one in sent if "lfs" in said.lower()]
        with push_errors(self.target.name):
            there = {one.file for one in there_already(self.target, now, sent)}
        return [one.file for one in sent if one.file not in there]

    def _adopted(self) -> dict[str, OutgoingFile]:
        """The shards of an earlier run that the Hub has, by path."""
        if self._journal is None or not self._journal.finished:
            return {}
        recorded = tuple(self._journal.finished.values())
        with push_errors(self.target.name):
            there = there_already(self.target, self._start, recorded)
        committed, stored = self._start.files, {shard.file for shard in there}
        there += [
            shard
            for shard in recorded
            if shard.file not in stored
            and (file := committed.get(shard.file)) is not None
            and (file.size, file.digest) == (shard.size, shard.sha256)
        ]
        self._journal.finished = {shard.file: shard for shard in there}
        return {shard.file: OutgoingFile.uploaded(shard) for shard in there}

    def _upload(self, shard: FinishedShard) -> OutgoingFile:
        path = self._folder / shard.file
        try:
            outgoing = OutgoingFile(shard.file, path, shard.sha256)
            with (
                push_errors(self.target.name),
                self._progress.stage(f"upload {shard.file}", shard.size) as stage,
            ):
                preupload(self.target, self._start, [outgoing.operation], free_memory=True)
                stage.advance(shard.size)
            if outgoing.operation.path_or_fileobj == b"":
                if self._journal is not None and not uploads_over_xet():
                    self._journal.record(shard)
                return outgoing
            return OutgoingFile(shard.file, path.read_bytes(), shard.sha256)  # small: it goes in the commit
        finally:
            path.unlink()
            self.release()


class _ShardOnItsWay:
    """A shard on the disk that goes to the sink's upload when it is finished."""

    def __init__(self, sink: HubSink, writer: ShardWriter) -> None:
        self._sink, self._writer = sink, writer
        self._open = True

    def write(self, offset: int, data: memoryview) -> None:
        self._writer.write(offset, data)

    def finish(self) -> FinishedShard:
        shard = self._writer.finish()
        self._open = False
        self._sink.accept(shard)
        return shard

    def abort(self) -> None:
        if self._open:
            self._open = False
            self._writer.abort()
            self._sink.release()
