"""What a place has to be, whatever it lies on: a base class for the tests of each kind."""

from __future__ import annotations

import threading
from itertools import count

import pytest

from hubextrap.work.places import Place
from hubextrap.work.records import Record, Records

ODD = ("ü 名.json", "a%2Fb", "a#b?c=d&e+f", "..json", "x" * 120)


class PlaceTests:
    """The tests; a subclass gives ``place``, an empty one, and ``again``, the same through another object."""

    @pytest.fixture
    def place(self) -> Place:
        raise NotImplementedError("a subclass of PlaceTests has to give its place")

    @pytest.fixture
    def again(self, place: Place) -> Place:
        raise NotImplementedError("a subclass of PlaceTests has to open its place once more")

    def test_nothing_is_there_at_first(self, place: Place) -> None:
        assert place.read("plan.json") is None
        assert place.read("done/1.json") is None
        assert place.names("done") == frozenset()
        place.remove()

    def test_what_is_written_is_read_by_all(self, place: Place, again: Place) -> None:
        for content in (b"", b"one", b"\0\xff\n" * 50_000, b"two"):
            place.write("done/1.json", content)
            assert again.read("done/1.json") == content
        again.write("plan.json", b"{}")
        assert place.read("plan.json") == b"{}"

    def test_the_names_are_those_of_the_files_in_one_folder(self, place: Place, again: Place) -> None:
        for file in ("done/1.json", "done/10.json", "done/deep/2.json", "doner/3.json", "plan.json"):
            place.write(file, b"x")
        assert again.names("done") == {"1.json", "10.json"}
        assert again.names("done/deep") == {"2.json"}
        assert again.names("don") == again.names("done/1.json") == frozenset()
        assert again.read("don") is again.read("done/1.json/x") is None

    def test_odd_names(self, place: Place, again: Place) -> None:
        for name in ODD:
            place.write(f"beside/{name}", name.encode())
        assert again.names("beside") == set(ODD)
        assert [again.read(f"beside/{name}") for name in ODD] == [name.encode() for name in ODD]

    def test_remove_leaves_nothing_and_the_place_usable(self, place: Place, again: Place) -> None:
        for file in ("plan.json", "done/1.json", "beside/model/config.json"):
            place.write(file, b"x")
        again.remove()
        assert place.read("plan.json") is None
        assert place.names("done") == place.names("beside/model") == frozenset()
        place.write("plan.json", b"y")
        assert again.read("plan.json") == b"y"

    def test_a_reader_sees_one_content_or_another(self, place: Place, again: Place) -> None:
        """Two writers overwrite one file; whoever reads meanwhile sees a whole one."""
        whole = {bytes([letter]) * 40_000 for letter in b"ab"}
        place.write("done/0.json", min(whole))
        ended, failed = threading.Event(), list[BaseException]()

        def write(one: Place, content: bytes) -> None:
            try:
                for number in range(6):
                    one.write("done/0.json", content)
                    one.write(f"done/{number}-{content[:1].decode()}.json", content)
            except BaseException as error:
                failed.append(error)

        writers = [
            threading.Thread(target=write, args=pair) for pair in zip((place, again), whole, strict=True)
        ]
        for writer in writers:
            writer.start()
        reads = count()
        while any(writer.is_alive() for writer in writers) or next(reads) == 0:
            assert again.read("done/0.json") in whole
            names = again.names("done")
            assert all(again.read(f"done/{name}") in whole for name in names)
        ended.set()
        assert failed == []
        assert len(again.names("done")) == 13

    def test_records_survive_damage(self, place: Place, again: Place) -> None:
        """A record that was cut or is another plan's counts as none, and is written anew."""
        records = Records(place, "p" * 64)
        record = Record(3, "p" * 64, {"size": 12})
        records.put(record)
        assert Records(again, "p" * 64).get(3) == record
        assert Records(again, "q" * 64).get(3) is None
        for damaged in (record.to_bytes()[:-9], b"", record.to_bytes().replace(b"12", b"13")):
            place.write("done/3.json", damaged)
            assert Records(again, "p" * 64).get(3) is None
        records.put(record)
        assert Records(again, "p" * 64).get(3) == record
