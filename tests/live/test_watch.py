"""When a file counts as changed, and that the watcher survives whatever a source does."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from stream_sentiment.live.watch import Settled, Watcher, look_at


def test_a_change_is_told_once_and_only_after_it_has_looked_the_same_twice() -> None:
    settled = Settled("a")
    looks = ["a", "b", "c", "c", "c", "a", "a", "a"]
    assert [settled.changed(look) for look in looks] == [False, False, False, True, False, False, True, False]


def test_a_change_that_is_taken_back_before_it_settled_is_none() -> None:
    settled = Settled("a")
    assert [settled.changed(look) for look in ["b", "a", "b", "b"]] == [False, False, False, True]


def test_a_person_who_asks_is_believed_at_once_and_the_watch_does_not_tell_it_again() -> None:
    settled = Settled("a")
    assert settled.changed("b", at_once=True)
    assert not settled.changed("b")


def replace_by_rename(path: Path, text: str) -> None:
    scratch = path.with_name("scratch")
    scratch.write_text(text)
    # The clock of the file system may stand still between two writes of a test: the inode tells.
    os.utime(scratch, ns=(1, 1))
    scratch.replace(path)


def test_an_editor_that_replaces_by_rename_is_seen_though_size_and_time_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    replace_by_rename(file, "a: 1")
    before = look_at(file)
    assert look_at(file) == before
    replace_by_rename(file, "a: 2")
    assert look_at(file) != before


def test_a_config_map_is_seen_when_the_directory_behind_its_symlink_is_swapped(tmp_path: Path) -> None:
    # Given what a kubelet makes: rules.yaml -> ..data/rules.yaml, ..data -> ..2026_1
    for number in (1, 2):
        (tmp_path / f"..2026_{number}").mkdir()
        (tmp_path / f"..2026_{number}" / "rules.yaml").write_text(f"a: {number}")
    data, file = tmp_path / "..data", tmp_path / "rules.yaml"
    data.symlink_to("..2026_1")
    file.symlink_to("..data/rules.yaml")
    before = look_at(file)
    # When it swaps the directory in one rename
    (tmp_path / "..data_tmp").symlink_to("..2026_2")
    (tmp_path / "..data_tmp").rename(data)
    # Then the file looks otherwise, although its own link was not touched
    assert look_at(file) != before


def test_a_file_that_is_not_there_looks_like_nothing(tmp_path: Path) -> None:
    assert look_at(tmp_path / "none") is None


class Counting:
    def __init__(self, interval: float, fails: bool = False) -> None:
        self.interval = interval
        self.looks: list[bool] = []
        self.seen = threading.Event()
        self._fails = fails

    def look(self, *, at_once: bool = False) -> None:
        self.looks.append(at_once)
        self.seen.set()
        if self._fails:
            raise RuntimeError("the disk is on fire")


@pytest.mark.parametrize("fails", [False, True])
def test_sources_are_looked_at_by_interval_and_when_told_even_after_one_has_failed(fails: bool) -> None:
    often, never = Counting(0.01, fails), Counting(0.0, fails)
    watcher = Watcher([often, never])
    watcher.start()
    deadline = time.monotonic() + 10
    while len(often.looks) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert never.looks == []
    watcher.look_now()
    assert never.seen.wait(10)
    assert never.looks == [True]
    assert True in often.looks
    watcher.stop()
    looked = len(often.looks)
    time.sleep(0.05)
    assert len(often.looks) == looked
