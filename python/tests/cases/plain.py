"""The standard library, and all that the archived project got wrong of it."""

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import re
import uuid

from cases import cases


@dataclasses.dataclass
class Point:
    x: float
    tags: list


class Colour(enum.Enum):
    RED = 1


class Text(str):
    """A subclass of a type that has a kind of its own."""


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024

cases(
    none=lambda: None,
    true=lambda: True,
    int=lambda: 42,
    int_beyond_64_bits=lambda: 2**80,
    int_2_70=lambda: 2**70,
    int_negative=lambda: -(2**100),
    float=lambda: 0.1,
    float_nan=lambda: math.nan,
    float_inf=lambda: -math.inf,
    float_negative_zero=lambda: -0.0,
    complex=lambda: 1 + 2j,
    str=lambda: "grüße 🍇",
    str_empty=lambda: "",
    str_surrogate=lambda: "\udc80",
    str_subclass=lambda: Text("x"),
    bytes=lambda: b"\x93NUMPY is only bytes",
    bytes_empty=lambda: b"",
    bytes_large=lambda: b"ab" * 100_000,
    bytearray=lambda: bytearray(b"xyz" * 50_000),
    memoryview=lambda: memoryview(b"abc"),
    memoryview_shaped=lambda: memoryview(bytes(24)).cast("i", (2, 3)),
    list=lambda: [1, "a", None, [2.5]],
    tuple=lambda: (1, (2, [3])),
    set=lambda: {1, 2, 3},
    frozenset=lambda: frozenset("ab"),
    dict=lambda: {"a": 1, 2: (3,), None: [], (1, 2): "t"},
    ordered_dict=lambda: collections.OrderedDict(b=1, a=2),
    default_dict=lambda: collections.defaultdict(list, a=[1]),
    deque=lambda: collections.deque([1, 2], maxlen=5),
    counter=lambda: collections.Counter("banana"),
    namedtuple=lambda: Pair(1, "x"),
    dataclass=lambda: Point(1.5, ["a"]),
    enum=lambda: Colour.RED,
    datetime=lambda: datetime.datetime(2026, 11, 25, 1, 2, 3, 4, datetime.UTC),
    timedelta=lambda: datetime.timedelta(days=1, microseconds=5),
    decimal=lambda: decimal.Decimal("1.10"),
    fraction=lambda: fractions.Fraction(1, 3),
    uuid=lambda: uuid.UUID(int=7),
    path=lambda: pathlib.PurePosixPath("/a/b"),
    regex=lambda: re.compile(r"a+", re.I),
    range=lambda: range(0, 10, 3),
    slice=lambda: slice(1, 2),
    ellipsis=lambda: ...,
    not_implemented=lambda: NotImplemented,
    type=lambda: Point,
    function=lambda: math.sqrt,
    exception=lambda: ValueError("a", 1),
    array=lambda: array.array("d", range(5)),
    array_large=lambda: array.array("d", range(50_000)),
    nested=lambda: {"a": [{"b": (bytearray(b"x"), {"c": {1}})}]},
)
