"""One system for all drills of a file, as a night on call has one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.stack import Stack, running


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("drill"), compress_rules=True, appendonly="always") as made:
        made.add_faulty_worker().wait_ready(90)
        made.load.start()
        made.until_caught_up()
        yield made
        kept = os.environ.get("STREAM_SENTIMENT_TEST_DRILL_LOG")
        if kept:
            with Path(kept).open("a", encoding="utf-8") as log:
                log.write("\n".join(made.timeline).strip() + "\n\n")


@pytest.fixture
def quiet(stack: Stack, request: pytest.FixtureRequest) -> Iterator[None]:
    """Each drill begins and ends with a system that keeps up."""
    stack.until_caught_up()
    stack.begin(request.node.name.removeprefix("test_").replace("_", " "))
    yield
    for left in stack.faults():  # by a drill that failed
        stack.mend(left)
    stack.until_caught_up()
    assert stack.workers[0].running
    stack.note("no lag")
