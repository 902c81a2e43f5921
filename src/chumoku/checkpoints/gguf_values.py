"""What reader and writer of GGUF share: limits, numbers, and metadata values with their kinds.

Source: ggml/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"GGUF"
ALIGNMENT: Final = 32
MAX_HEADER: Final = 1 << 28
MAX_KEYS: Final = 1 << 16
MAX_KEY_BYTES: Final = 65535
MAX_NAME_BYTES: Final = 64
MAX_DIMS: Final = 4
MAX_ELEMENTS: Final = 1 << 22
"""Array elements in one file's metadata; the largest vocabularies with merges have 1.3 million."""
MAX_DEPTH: Final = 4

KINDS: Final = (
    *("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "array"),
    *("u64", "i64", "f64"),
)
"""Kinds of metadata values; the index is the number in the file."""

CODES: Final = {
    **{"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i"},
    **{"f32": "f", "bool": "B", "u64": "Q", "i64": "q", "f64": "d"},
}
"""Kind -> the letter of `struct` and NumPy; sizes are the same in both."""

TYPES: Final = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8},
    **{"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14},
    **{"I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "BF16": 30},
}
"""Storage -> the number in the file."""

UNSUPPORTED: Final = {
    **{4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS"},
    **{19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M"},
    **{34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}


@dataclass(frozen=True)
class GGUFValue:
    """A metadata value with its kind in the file; for an array also its elements' kind.

    value: bool, int, float or str; for an array a list of these, or of GGUFValue where it nests.
    """

    kind: str
    value: object
    element: str = ""

    @property
    def plain(self) -> object:
        """The value without its kinds; nested arrays become nested lists."""
        if self.element != "array" or not isinstance(self.value, list):
            return self.value
        return [item.plain if isinstance(item, GGUFValue) else item for item in self.value]


def alignment_of(values: Mapping[str, GGUFValue]) -> int | None:
    """The file's alignment; None where what it says cannot be one."""
    value = values.get("general.alignment", GGUFValue("u32", ALIGNMENT))
    number = value.value
    if value.kind != "u32" or not isinstance(number, int):
        return None
    return number if number >= 8 and number & (number - 1) == 0 else None
