"""Runs in the folders of a bucket: found, pinned by content, watched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness import Lines
from huggingface_hub import HfApi

from hubextrap.errors import HubExtrapError, ReferenceNotFound, TrajectoryError, UnsupportedCheckpoint
from hubextrap.localhub import LocalHub
from hubextrap.polling import Poller, place_of_run
from hubextrap.tensors import describe, open_source
from hubextrap.tensors.cache import check_download
from hubextrap.trajectory import Pins, find_series, find_trajectory, pin_checkpoints, resolve_checkpoint
from hubextrap.trajectory.bucket_files import pin_of_files
from hubextrap.trajectory.changes import changes_since
from hubextrap.trajectory.hub_file import HubFile
from hubextrap.trajectory.listing import looked_into

Model = Callable[..., dict[str, bytes]]
Put = Callable[[dict[str, bytes]], str]

pytestmark = pytest.mark.usefixtures("logged_in")


@pytest.fixture
def put(hub: LocalHub, repo_id: str, logged_in: str) -> Put:
    """Puts files into a private bucket, made at the first call; its address."""
    api = HfApi()

    def add(files: dict[str, bytes]) -> str:
        api.create_bucket(repo_id, private=True, exist_ok=True)
        api.batch_bucket_files(repo_id, add=[(content, path) for path, content in files.items()])
        hub.requests.clear()
        return f"hf://buckets/{repo_id}"

    return add


@pytest.fixture
def run(put: Put, model: Model) -> str:
    return put(
        model(1, "exp/step_100") | model(2, "exp/step_200") | {"exp/log.txt": b"x", "other/step_1/a": b"x"}
    )


def test_found_and_pinned(run: str, hub: LocalHub, repo_id: str, lines: Lines) -> None:
    found = find_trajectory(f"{run}/exp", progress=lines)
    assert found.series == "step_{step}"
    assert found.whole is not None
    assert found.whole.layout == "bucket"
    assert [(one.step, one.repo, one.revision, one.path) for one in found.checkpoints] == [
        (100, f"buckets/{repo_id}", "", "exp/step_100"),
        (200, f"buckets/{repo_id}", "", "exp/step_200"),
    ]
    assert [one.name for one in found.checkpoints] == [f"{run}/exp/step_100", f"{run}/exp/step_200"]
    assert len({one.commit for one in found.checkpoints}) == 2
    assert all(len(one.commit or "") == 40 for one in found.checkpoints)
    assert not lines.said
    paths = [request.path for request in hub.requests]
    assert paths[0] == f"/api/buckets/{repo_id}/tree/exp?recursive=true"
    assert set(paths[1:]) <= {f"/api/buckets/{repo_id}/tree/exp%2Fstep_{step}" for step in (100, 200)}

    whole = find_trajectory(run, series="exp/step_{step}")
    assert [one.name for one in whole.checkpoints] == [one.name for one in found.checkpoints]
    assert [one.commit for one in whole.checkpoints] == [one.commit for one in found.checkpoints]
    assert find_series(f"{run}/exp", pattern="step_{step}")[0].label == "bucket: step_{step}"


def test_one_checkpoint_by_its_address(run: str) -> None:
    one = resolve_checkpoint(f"{run}/exp/step_200")
    assert one == find_trajectory(f"{run}/exp").last
    assert pin_checkpoints([(one.name, 7)]).steps == (7,)
    described = describe(find_trajectory(f"{run}/exp")).last
    assert described.dtype == "BF16"
    assert described.date is not None


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/no", "nothing lies there in the bucket"),
        ("-no/exp", "no such bucket, or it is private"),
        ("/exp/../exp", "empty, '.' or '..' parts"),
        ("@main/exp", "do not support a revision"),
    ],
)
def test_references_that_lead_nowhere(run: str, place: str, said: str) -> None:
    for look in (find_trajectory, resolve_checkpoint):
        with pytest.raises(ReferenceNotFound, match=said):
            look(run + place)


def test_without_a_token(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(ReferenceNotFound, match=f"{run}/exp: no such bucket, or it is private"):
        find_trajectory(f"{run}/exp")


def test_a_folder_without_a_run(run: str) -> None:
    with pytest.raises(TrajectoryError, match="no checkpoints found"):
        find_trajectory(f"{run}/other")


def test_written_to_after_it_was_pinned(run: str, put: Put, model: Model) -> None:
    found = find_trajectory(f"{run}/exp")
    put({"exp/step_200/model.safetensors": model(9)["model.safetensors"]})
    with pytest.raises(HubExtrapError, match=r"exp/step_200: model.safetensors was written to since"):
        describe(found)


def test_what_the_pin_stands_for() -> None:
    files = [HubFile("x", 1, digest="11"), HubFile("y", 2, digest="22")]
    pin = pin_of_files(files)
    assert pin == pin_of_files(reversed(files))
    assert pin == pin_of_files([*files, HubFile("sub", 0, is_folder=True)])
    for other in (
        files[:1],
        [*files, HubFile("z", 0, digest="")],
        [files[0], HubFile("y", 3, digest="22")],
        [files[0], HubFile("y", 2, digest="23")],
        [files[0], HubFile("z", 2, digest="22")],
        [files[0], HubFile("huggingface/y", 2, digest="22")],
    ):
        assert pin_of_files(other) != pin


def test_what_loads_from_repos_alone_is_refused(run: str) -> None:
    one = resolve_checkpoint(f"{run}/exp/step_200")
    with pytest.raises(UnsupportedCheckpoint, match=f"hf buckets sync {run}/exp/step_200 FOLDER"):
        check_download(one, weights=True)


INNER = {
    "FSDP shards": ("model_world_size_1_rank_0.pt", "huggingface/config.json"),
    "torch DCP": ("pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp"),
    "sharded safetensors": ("shard-00001-model-00001-of-00001.safetensors", ".hf_metadata/config.json"),
}


@pytest.mark.parametrize("kind", INNER)
def test_files_in_inner_folders_are_pinned(kind: str, put: Put) -> None:
    """Each of them, and alike whether the run or the one checkpoint is named."""
    files = {f"raw/step_{step}/{file}": file.encode() for step in (1, 2) for file in INNER[kind]}
    run = put(files)
    one = find_trajectory(f"{run}/raw").last
    assert one == resolve_checkpoint(f"{run}/raw/step_2")
    assert one.weights == kind
    for file in INNER[kind]:
        put({f"raw/step_2/{file}": b"written to"})
        with pytest.raises(HubExtrapError, match=f"raw/step_2: {file} was written to since"):
            looked_into(one, one.name)
        with pytest.raises(HubExtrapError, match=f"raw/step_2: {file} was written to since"):
            open_source(one).files()
        put({f"raw/step_2/{file}": file.encode()})
    assert looked_into(one, one.name)[0] == one


@pytest.mark.slow
def test_polled_and_compared(run: str, put: Put, hub: LocalHub, model: Model) -> None:
    def look() -> tuple[dict[int, object], tuple[str, ...]]:
        pins = Pins()
        changes = changes_since(before, find_trajectory(f"{run}/exp", pins=pins), pins)  # type: ignore[arg-type]
        return dict(changes.now), changes.lines()

    before: dict[int, object] = {}
    before, _ = look()
    poller = Poller(place_of_run(f"{run}/exp", "bucket"))
    hub.requests.clear()
    assert [poller.look() for _ in range(4)] == [True, False, False, False]
    assert [request.status for request in hub.requests] == [200, 304, 304, 304]
    put({"exp/step_300/config.json": b"{}", "exp/step_200/README.md": b"# card"})
    assert poller.look()
    assert [line.partition(":")[0] for line in look()[1]] == ["step 300 is not whole yet and is waited for"]
    put(model(3, "exp/step_300") | {"exp/step_100/model.safetensors": model(9)["model.safetensors"]})
    assert poller.look()
    said = look()[1]
    assert [line.partition(":")[0] for line in said] == ["step 100 was replaced", "step 300 is new"]
    put({"other/more": b"1"})
    assert not poller.look()
