"""Records to Parquet and back."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tables import from_parquet, to_parquet

INTEGERS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.floats(allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Leaf:
    name: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One of everything that a record may hold."""

    key: str
    count: int
    whole: bool
    leaf: Leaf | None
    leaves: tuple[Leaf, ...]
    sizes: tuple[int, int]
    rows: tuple[tuple[float, ...], ...]
    scores: dict[str, float]
    named: dict[str, Leaf]


LEAVES = st.builds(Leaf, name=st.text(), weight=NUMBERS)
TREES = st.builds(
    Tree,
    key=st.text(),
    count=INTEGERS,
    whole=st.booleans(),
    leaf=st.none() | LEAVES,
    leaves=st.lists(LEAVES, max_size=3).map(tuple),
    sizes=st.tuples(INTEGERS, INTEGERS),
    rows=st.lists(st.lists(NUMBERS, max_size=3).map(tuple), max_size=3).map(tuple),
    scores=st.dictionaries(st.text(), NUMBERS, max_size=3),
    named=st.dictionaries(st.text(), LEAVES, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TREES, max_size=4))
def test_records_come_back_from_parquet_as_they_were(records: list[Tree]) -> None:
    assert from_parquet(to_parquet(records, Tree), Tree) == records


@settings(max_examples=30, deadline=None)
@given(st.lists(TREES, max_size=3))
def test_equal_records_give_equal_bytes_whatever_the_order_of_their_dicts(records: list[Tree]) -> None:
    again = [Tree(**{**vars(record), "scores": dict(reversed(record.scores.items()))}) for record in records]
    assert again == records
    assert to_parquet(again, Tree) == to_parquet(records, Tree)


def test_a_field_of_another_type_is_refused_by_name() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: set[str]

    with pytest.raises(TypeError, match="no Arrow type for set"):
        to_parquet([], Odd)
