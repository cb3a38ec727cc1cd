"""Both kinds of places, by the tests that every place has to pass."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
from place_conformance import PlaceTests

from hubextrap.errors import AccessDenied, OutputError, ReferenceNotFound, SourceError
from hubextrap.localhub import Fault, LocalHub
from hubextrap.work.bucket import BucketPlace
from hubextrap.work.places import FolderPlace, Place, open_place


class TestFolderPlace(PlaceTests):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        (tmp_path / "work").mkdir()  # as a plan makes it
        return open_place(str(tmp_path / "work"))

    @pytest.fixture
    def again(self, place: Place) -> Place:
        return FolderPlace(Path(place.name))


@pytest.mark.slow
@pytest.mark.usefixtures("logged_in", "hub")
class TestBucketPlace(PlaceTests):
    @pytest.fixture
    def place(self, repo_id: str) -> Place:
        return open_place(f"hf://buckets/{repo_id}/merges/0123")

    @pytest.fixture
    def again(self, place: Place) -> Place:
        return BucketPlace(f"{place.name}/")

    def test_the_first_write_makes_a_private_bucket(self, place: Place, hub: LocalHub, repo_id: str) -> None:
        place.write("plan.json", b"{}")
        place.write("done/1.json", b"{}")
        assert hub.buckets.get(repo_id).about()["private"] is True
        made = [r for r in hub.requests if r.method == "POST" and r.path == f"/api/buckets/{repo_id}"]
        assert len(made) == 1

    def test_two_places_of_a_bucket_are_two(self, place: Place, repo_id: str) -> None:
        other = BucketPlace(f"hf://buckets/{repo_id}/merges/01234")
        place.write("done/1.json", b"x")
        other.write("done/2.json", b"y")
        assert (place.names("done"), other.names("done")) == ({"1.json"}, {"2.json"})
        place.remove()
        assert other.read("done/2.json") == b"y"

    def test_a_passing_failure_is_met_with_patience(self, place: Place, hub: LocalHub) -> None:
        place.write("plan.json", b"{}")
        for path in ("/resolve/", "/tree/", "/batch"):
            hub.faults.add(Fault(path=path, status=503, headers={"Retry-After": "0"}))
        assert place.read("plan.json") == b"{}"
        place.write("done/1.json", b"{}")
        assert place.names("done") == {"1.json"}
        assert hub.faults.pending() == 0

    def test_whose_answer_was_lost_is_written_all_the_same(self, place: Place, hub: LocalHub) -> None:
        hub.faults.add(Fault(path="/batch", drop=True, after=True))
        place.write("done/1.json", b"x")
        assert place.read("done/1.json") == b"x"

    def test_who_may_not(self, place: Place, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another's private bucket looks like none; to write is refused, and the error says so."""
        place.write("plan.json", b"{}")
        monkeypatch.setenv("HF_TOKEN", hub.add_token("stranger"))
        other = BucketPlace(place.name)
        assert other.read("plan.json") is None
        assert other.names("done") == frozenset()
        with pytest.raises(AccessDenied, match="403"):
            other.write("plan.json", b"x")
        monkeypatch.setenv("HF_TOKEN", hub.add_token("me", read_only=True))
        assert other.read("plan.json") == b"{}"
        with pytest.raises(AccessDenied, match="may not write"):
            other.write("plan.json", b"x")
        monkeypatch.setenv("HF_TOKEN", "")
        with pytest.raises(ReferenceNotFound, match="log in"):
            other.names("done")

    def test_errors_name_the_file(self, place: Place, hub: LocalHub) -> None:
        place.write("plan.json", b"{}")
        for path, status in (("/resolve/", 500), ("/batch", 507)):
            hub.faults.add(Fault(path=path, status=status, count=5))
        with pytest.raises(SourceError, match=r"merges/0123/done/7\.json: the Hub answered 500"):
            place.read("done/7.json")
        with pytest.raises(OutputError, match=r"merges/0123/done/7\.json: the Hub answered 507"):
            place.write("done/7.json", b"x")

    def test_no_token_in_what_is_asked_for(self, place: Place, hub: LocalHub, logged_in: str) -> None:
        place.write("plan.json", b"{}")
        place.read("plan.json")
        assert all(logged_in not in unquote(request.path) for request in hub.requests)


@pytest.mark.parametrize(
    "name", ["hf://me/work", "hf://buckets/me", "hf://buckets/me/work", "hf://buckets/me/work/../x", "hf://"]
)
def test_names_of_no_place(name: str) -> None:
    with pytest.raises(SourceError, match="hf://buckets/OWNER/NAME/PATH"):
        open_place(name)
