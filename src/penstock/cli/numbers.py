"""Parsing of whole numbers on the command line, such as 4096, 4_096, 1e6 or 1.5M."""

import re
from decimal import Decimal

import tyro

SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
"""The factor of each suffix; suffixes may be upper or lower case."""


def whole_number(text: str) -> int:
    """The whole number that a text denotes.

    Raises:
        ValueError: the text does not denote a whole number.
    """
    match = re.fullmatch(r"([+-]?(?:\d[\d_]*)(?:\.\d+)?(?:[eE][+-]?\d{1,2})?)([kKmMgGbB]?)", text.strip())
    number = Decimal(match[1].replace("_", "")) * SUFFIXES[match[2].lower()] if match else Decimal("0.5")
    if number != int(number):
        raise ValueError(f"{text!r} is not a whole number. Give one such as 4096, 1e6 or 1.5M.")
    return int(number)


NUMBERS = tyro.constructors.ConstructorRegistry()
"""Reads every option that is a whole number with `whole_number`."""


@NUMBERS.primitive_rule
def _whole_numbers(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda args: whole_number(args[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )
