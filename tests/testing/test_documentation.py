"""The example of docs/testing.md is what a reader copies first: it runs."""

from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/testing.md"


@pytest.mark.redis
def test_the_example_of_the_page_passes_and_hands_over_an_opened_escalation(mock_kafka, redis_url):
    (code,) = [part.partition("```")[0] for part in PAGE.read_text(encoding="utf-8").split("```python\n")[1:]]
    handled = []

    class my_service:
        handle = staticmethod(handled.append)

    names: dict = {"my_service": my_service}
    exec(compile(code, str(PAGE), "exec"), names)
    names["test_a_conversation_that_turns_bad_reaches_my_service"](mock_kafka, redis_url)

    (event,) = handled
    assert event["action"] == "opened"
    assert event["conversation_id"] == "en-late-parcel"
    assert event["evidence"] != []
