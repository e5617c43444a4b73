"""Keys, ids and times of what we publish."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from stream_sentiment.events.envelope import header_map, record_key, rfc3339, stable_id, to_milliseconds

ids = st.text(max_size=12)


def test_a_time_is_written_with_milliseconds_in_utc() -> None:
    assert rfc3339(1_795_328_901_007) == "2026-11-22T06:28:21.007Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"


@given(st.integers(0, 7_258_118_399_999))
def test_a_written_time_reads_back_as_the_same_millisecond(milliseconds: int) -> None:
    assert to_milliseconds(datetime.fromisoformat(rfc3339(milliseconds))) == milliseconds


def test_milliseconds_are_exact_where_a_float_is_not() -> None:
    assert to_milliseconds(datetime(2026, 11, 22, 6, 28, 21, 1999, UTC)) == 1_795_328_901_001


def test_an_ordinary_key_is_what_the_contract_says() -> None:
    assert record_key("acme", "c-1") == "acme|c-1"


@given(ids, ids, ids, ids)
def test_two_conversations_never_share_a_key(tenant: str, entity: str, other_tenant: str, other_entity: str) -> None:
    same = (tenant, entity) == (other_tenant, other_entity)
    assert (record_key(tenant, entity) == record_key(other_tenant, other_entity)) == same


@given(st.lists(ids, max_size=4), st.lists(ids, max_size=4))
def test_an_id_belongs_to_one_list_of_parts(parts: list[str], others: list[str]) -> None:
    assert (stable_id(*parts) == stable_id(*others)) == (parts == others)


def test_header_names_are_read_without_case_and_the_last_one_counts() -> None:
    assert header_map([("CE_Type", b"a"), ("ce_type", b"b"), ("empty", None)]) == {"ce_type": b"b"}
    assert header_map(None) == {}
