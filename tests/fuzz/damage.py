"""How inputs are damaged: bytes as disks and networks do, JSON as a site does that changed its mind."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
"""How many times as many examples; with more than 1 they are others each time."""
MOST_BYTES = 96 * 1024 * 1024


def fuzzed(examples: int) -> settings:
    """Return the settings of a test: as many examples, the same ones each time, and no clock that could fail it."""
    return settings(
        max_examples=examples * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def in_bounded_memory() -> Iterator[None]:
    """Fail where more is needed than any honest input asks for."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------ bytes

_STRANGE_NUMBERS = [
    number.to_bytes(width, "big")
    for width in (1, 2, 4, 8)
    for number in (0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 2, 2 ** (8 * width) - 1)
]
_PIECE = st.one_of(st.sampled_from(_STRANGE_NUMBERS), st.binary(max_size=9))


@st.composite
def damaged_bytes(draw: Callable[[Any], Any], whole: Sequence[bytes], head_bytes: int = 2**20) -> bytes:
    """Draw one of some inputs with pieces written over, cut out or put in, most of them near its beginning."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _time in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), head_bytes)))
        piece = draw(_PIECE)
        match draw(st.sampled_from(("over", "in", "out", "end", "again"))):
            case "over":
                data[at : at + len(piece)] = piece
            case "in":
                data[at:at] = piece
            case "out":
                del data[at : at + draw(st.integers(1, 64))]
            case "end":
                del data[at:]
            case "again":
                data[at:at] = data[at : at + draw(st.integers(1, 256))]
    return bytes(data)


def as_file(data: bytes) -> tuple[io.BytesIO, int]:
    """Return what the readers of files take."""
    return io.BytesIO(data), len(data)


# ------------------------------------------------------------------------------------------ JSON

STRANGE_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 2**31, 2**53, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308, 10**400]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(["", " ", "0", "-1", "9" * 5000, "\0", "\ud800", "//", "https://[", "http://a:99999/", "٣", "²"]),
    st.sampled_from([[], {}, [[]], [{}], {"": {}}, [None], [0], [""], {"code": 0}, [[[[]]]]]),
    st.text(max_size=12),
    st.integers(),
    st.floats(),
)


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _places(value, (*path, name))
    elif isinstance(node, list):
        for place, value in enumerate(node[:3]):
            yield from _places(value, (*path, place))


def _changed(node: Any, path: tuple[Any, ...], value: Any, is_cut: bool) -> Any:
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    if is_cut and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = _changed(node[path[0]], path[1:], value, is_cut)
    return copy


@st.composite
def damaged_json(draw: Callable[[Any], Any], wholes: Sequence[Any]) -> Any:
    """Draw one of some values with up to three of its parts replaced by what nobody expects there, or taken away."""
    value = draw(st.sampled_from(wholes))
    for _time in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(_places(value))))
        value = _changed(value, path, draw(STRANGE_VALUES), draw(st.integers(0, 4)) == 0)
    return value


def damaged_texts(wholes: Sequence[Any]) -> st.SearchStrategy[str]:
    """Draw texts of JSON: of damaged values, cut ones, nested ones, and some that are none."""
    texts = damaged_json(wholes).map(lambda value: json.dumps(value))
    cut = st.tuples(texts, st.integers(0, 2000)).map(lambda both: both[0][: both[1]])
    deep = st.sampled_from(["[" * 100_000, '{"a":' * 100_000, '{"data":' + "[" * 900 + "]" * 900 + "}", "9" * 5000])
    return st.one_of(texts, texts, texts, texts, cut, deep, st.text(max_size=40))
