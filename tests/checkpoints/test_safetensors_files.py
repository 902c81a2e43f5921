"""safetensors to the letter of the format, beside the package: both verdicts, both directions."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import safetensors
import torch
from checkpoints.mutants import JUSTIFIED, lazy_bytes
from safetensors.torch import load_file, save, save_file

from chumoku.checkpoints import assign
from chumoku.checkpoints.safetensors import read_safetensors, write_safetensors
from chumoku.errors import CheckpointError, InputError

U8 = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
DTYPES = list(assign.DTYPES.values())


def u8(shape: str = "[1]", offsets: str = "[0,1]", dtype: str = '"U8"', extra: str = "") -> str:
    return f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{extra}}}}}'


# name: (header, data, accepted); None for accepted where only the package accepts.
CASES: dict[str, tuple[str | bytes, bytes, bool | None]] = {
    "plain": (u8(), b"x", True),
    "no tensors": ("{}", b"", True),
    "no tensors, but data": ("{}", b"x", False),
    "metadata only": ('{"__metadata__":{"a":"b"}}', b"", True),
    "metadata last": (f'{{"a":{{{U8}}},"__metadata__":{{}}}}', b"x", True),
    "metadata number": ('{"__metadata__":{"a":1}}', b"", False),
    "metadata nested": ('{"__metadata__":{"a":{}}}', b"", False),
    "metadata list": ('{"__metadata__":[]}', b"", False),
    "metadata null": ('{"__metadata__":null}', b"", None),
    "metadata twice": ('{"__metadata__":{},"__metadata__":{}}', b"", False),
    "metadata key twice": ('{"__metadata__":{"a":"1","a":"2"}}', b"", None),
    "begins with a space": (" " + u8(), b"x", None),
    "begins with a line end": ("\n" + u8(), b"x", None),
    "begins with a bracket": ("[]", b"", False),
    "begins with a mark": ("\ufeff{}", b"", False),
    "empty header": ("", b"", False),
    "padded with spaces": (u8() + "     ", b"x", True),
    "padded with white space": (u8() + "\t\r\n", b"x", True),
    "padded with NUL": (u8() + "\0", b"x", False),
    "followed by an object": ("{}{}", b"", False),
    "white space inside": (u8(" [ 1 ] ", " [ 0 , 1 ] ", ' "U8" '), b"x", True),
    "vertical tab": (u8(" \v[1]"), b"x", False),
    "comment": (u8("/**/[1]"), b"x", False),
    "comma at the end": (f'{{"a":{{{U8}}},}}', b"x", False),
    "not closed": (u8()[:-1], b"x", False),
    "single quotes": (u8().replace('"', "'"), b"x", False),
    "duplicate tensor": (f'{{"a":{{{U8}}},"a":{{{U8}}}}}', b"x", None),
    "duplicate by escape": (f'{{"a":{{{U8}}},"\\u0061":{{{U8}}}}}', b"x", None),
    "duplicate field": (u8(extra=',"dtype":"U8"'), b"x", False),
    "unknown field": (u8(extra=',"x":1'), b"x", None),
    "unknown deep field": (u8(extra=',"x":' + "[" * 100 + "]" * 100), b"x", None),
    "unknown field too deep": (u8(extra=',"x":' + "[" * 10**6), b"x", False),
    "no dtype": ('{"a":{"shape":[1],"data_offsets":[0,1]}}', b"x", False),
    "no shape": ('{"a":{"dtype":"U8","data_offsets":[0,1]}}', b"x", False),
    "no offsets": ('{"a":{"dtype":"U8","shape":[1]}}', b"x", False),
    "fields in another order": (
        '{"a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}}',
        b"x",
        True,
    ),
    "entry as a list": ('{"a":["U8",[1],[0,1]]}', b"x", None),
    "entry null": ('{"a":null}', b"", False),
    "dtype small": (u8(dtype='"u8"'), b"x", False),
    "dtype unknown": (u8(dtype='"Q4_0"'), b"x", False),
    "dtype number": (u8(dtype="1"), b"x", False),
    "dtype escaped": (u8(dtype='"\\u0055\\u0038"'), b"x", True),
    "dtype not held": (u8(dtype='"F8_E4M3"'), b"x", None),
    "dtype unsigned": (u8("[2]", "[0,8]", '"U32"'), b"x" * 8, None),
    "scalar": (u8("[]"), b"x", True),
    "zero size": (u8("[3,0]", "[0,0]"), b"", True),
    "zero size, with bytes": (u8("[3,0]"), b"x", False),
    "shape float": (u8("[1.0]"), b"x", False),
    "shape exponent": (u8("[1e0]"), b"x", False),
    "shape negative": (u8("[-1]"), b"x", False),
    "shape minus zero": (u8("[-0]", "[0,0]"), b"", False),
    "shape with zero in front": (u8("[01]"), b"x", False),
    "shape plus": (u8("[+1]"), b"x", False),
    "shape text": (u8('["1"]'), b"x", False),
    "shape true": (u8("[true]"), b"x", False),
    "shape NaN": (u8("[NaN]"), b"x", False),
    "shape infinite": (u8("[Infinity]"), b"x", False),
    "shape huge": (u8(f"[{10**400}]"), b"x", False),
    "shape 2^64": (u8(f"[{2**64}]"), b"x", False),
    "shape overflows": (u8(f"[{2**32},{2**32}]", "[0,0]"), b"", False),
    "bytes overflow": (u8(f"[{2**61}]", "[0,0]", '"F64"'), b"", False),
    "overflow behind a zero": (u8(f"[0,{2**63},4]", "[0,0]"), b"", None),
    "overflow before a zero": (u8(f"[{2**63},4,0]", "[0,0]"), b"", False),
    "shape of 64": (u8("[" + ",".join("1" * 64) + "]"), b"x", True),
    "shape of 65": (u8("[" + ",".join("1" * 65) + "]"), b"x", None),
    "shape not closed": ('{"a":{"dtype":"U8","shape":[1', b"x", False),
    "shape nested": (u8("[[1]]"), b"x", False),
    "shape too small": (u8("[1]", "[0,2]"), b"xx", False),
    "shape too large": (u8("[2]", "[0,1]"), b"x", False),
    "offsets of one": (u8(offsets="[0]"), b"x", False),
    "offsets of three": (u8(offsets="[0,1,2]"), b"x", False),
    "offsets reversed": (u8("[0]", "[1,0]"), b"x", False),
    "offset 2^64": (u8(offsets=f"[0,{2**64}]"), b"x", False),
    "offset 2^64-1": (u8(offsets=f"[0,{2**64 - 1}]"), b"x", False),
    "hole in front": (u8(offsets="[1,2]"), b"xx", False),
    "hole at the end": (u8(), b"xx", False),
    "data too short": (u8(), b"", False),
    "overlap": (f'{{"a":{{{U8}}},"b":{{{U8}}}}}', b"x", False),
    "unaligned": (
        f'{{"a":{{{U8}}},"b":{{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}}}',
        b"xxxxx",
        True,
    ),
    "empty name": (f'{{"":{{{U8}}}}}', b"x", True),
    "name with NUL": (f'{{"\\u0000":{{{U8}}}}}', b"x", True),
    "name with raw control": (f'{{"a\x01":{{{U8}}}}}', b"x", False),
    "name with delete": (f'{{"a\x7f":{{{U8}}}}}', b"x", True),
    "name with half a pair": (f'{{"\\ud800":{{{U8}}}}}', b"x", False),
    "name with a pair": (f'{{"\\ud83d\\ude00":{{{U8}}}}}', b"x", True),
    "name with a wrong escape": (f'{{"\\x41":{{{U8}}}}}', b"x", False),
    "name not UTF-8": (b'{"a\xff":{' + U8.encode() + b"}}", b"x", False),
    "name overlong UTF-8": (b'{"\xc0\xaf":{' + U8.encode() + b"}}", b"x", False),
    "name surrogate UTF-8": (b'{"\xed\xa0\x80":{' + U8.encode() + b"}}", b"x", False),
}


def write_case(path: Path, header: str | bytes, data: bytes) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    content = struct.pack("<Q", len(raw)) + raw + data
    path.write_bytes(content)
    return content


@pytest.mark.parametrize("name", CASES)
def test_each_rule_both_ways(name: str, tmp_path: Path) -> None:
    header, data, accepted = CASES[name]
    content = write_case(tmp_path / "case.safetensors", header, data)
    try:
        safetensors.deserialize(content)
        package = True
    except safetensors.SafetensorError:
        package = False
    assert package == (accepted is None or accepted), "the package judges otherwise than noted"
    if accepted:
        tensors = read_safetensors(tmp_path / "case.safetensors").tensors
        assert {n: t.read() for n, t in tensors.items()} == {
            n: entry["data"] for n, entry in safetensors.deserialize(content)
        }
        return
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(tmp_path / "case.safetensors")
    assert "case.safetensors" in str(caught.value)
    assert accepted is False or any(reason in str(caught.value) for reason in JUSTIFIED)


@pytest.mark.parametrize("claimed", [0, 1, 7, 60, 100_000_001, 2**31, 2**63, 2**64 - 1])
def test_header_length_that_lies(claimed: int, tmp_path: Path) -> None:
    path = tmp_path / "lie.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + u8().encode() + b"x")
    with pytest.raises(CheckpointError, match="header"):
        read_safetensors(path)


def test_header_beyond_the_limit_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    with path.open("wb") as stream:  # a sparse file: no byte of it is read
        stream.write(struct.pack("<Q", 100_000_001) + b"{")
        stream.truncate(100_000_100)
    with pytest.raises(CheckpointError, match="the format allows 100000000"):
        read_safetensors(path)


@pytest.mark.parametrize("size", range(8))
def test_shorter_than_a_length(size: int, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match="too short"):
        read_safetensors(tmp_path / "short")


def test_the_error_names_the_byte(tmp_path: Path) -> None:
    write_case(tmp_path / "f", u8("[1.0]"), b"x")
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(tmp_path / "f")
    assert caught.value.where.endswith(f"byte {8 + u8('[1.0]').index('1.0')}")


def random_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for index, dtype in enumerate(DTYPES):
        shape = [int(torch.randint(0, 5, (), generator=generator)) for _ in range(index % 4)]
        values = torch.randint(0, 2, shape, generator=generator)
        noise = torch.randn(shape, generator=generator) if dtype.is_floating_point else 0
        tensors[f'名 "{index % 3}" {seed}.{dtype}\n'] = (values + noise).to(dtype)
    return tensors


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("metadata", [None, {}, {"format": 'p"t\\ \x1f\x7f é 😀'}])
def test_files_equal_the_package(
    seed: int, metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    tensors = random_tensors(seed)
    lazies = [assign.lazy(name, value) for name, value in tensors.items()]
    write_safetensors(tmp_path / "ours", lazies, metadata)
    assert (tmp_path / "ours").read_bytes() == save(tensors, metadata)
    theirs = load_file(tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs", metadata)
    read = read_safetensors(tmp_path / "theirs")
    assert read.metadata == (metadata or {})
    assert read.tensors.keys() == theirs.keys() == tensors.keys()
    for name, value in tensors.items():
        mine = read.tensors[name]
        raw = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert (assign.DTYPES[mine.storage], mine.shape) == (value.dtype, tuple(value.shape))
        assert mine.read() == raw
        assert torch.equal(theirs[name], value)


@pytest.mark.parametrize(
    "header",
    [
        f'{{ "z":{{{U8}}},\n"__metadata__":{{"b":"1","a":"2"}}}}   ',
        '{"\\u0061":{"shape":[1],"dtype":"U8","data_offsets":[1,2]},"b":{' + U8 + "}}",
    ],
)
def test_a_kept_header_gives_the_same_bytes(header: str, tmp_path: Path) -> None:
    content = write_case(tmp_path / "in", header, b"xy"[: header.count("dtype")])
    file = read_safetensors(tmp_path / "in")
    write_safetensors(tmp_path / "out", reversed(file.tensors.values()), header=file.header)
    assert (tmp_path / "out").read_bytes() == content
    write_safetensors(tmp_path / "new", file.tensors.values(), file.metadata)
    assert (tmp_path / "new").read_bytes() != content, "the control: without it, another header"


def test_a_kept_header_that_does_not_fit(tmp_path: Path) -> None:
    header = u8().encode()
    for tensor in (
        lazy_bytes("a", (1,), "I8", b"x"),
        lazy_bytes("a", (1, 1), "U8", b"x"),
        lazy_bytes("b", (1,), "U8", b"x"),
    ):
        with pytest.raises(InputError, match="kept header"):
            write_safetensors(tmp_path / "f", [tensor], header=header)
    with pytest.raises(CheckpointError, match="tensors take"):
        write_safetensors(tmp_path / "f", [lazy_bytes("a", (2,), "U8", b"xx")], header=header)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path: Path) -> None:
    one = lazy_bytes("a", (1,), "U8", b"x")
    quantised = lazy_bytes("q", (32,), "Q4_0", bytes(18))
    with pytest.raises(InputError, match="Q4_0"):
        write_safetensors(tmp_path / "f", [quantised])
    with pytest.raises(InputError, match="twice"):
        write_safetensors(tmp_path / "f", [one, one])
    with pytest.raises(InputError, match="reserved"):
        write_safetensors(tmp_path / "f", [lazy_bytes("__metadata__", (1,), "U8", b"x")])
    with pytest.raises(InputError, match="Unicode"):
        write_safetensors(tmp_path / "f", [lazy_bytes("\ud800", (1,), "U8", b"x")])
    with pytest.raises(InputError, match="text"):
        write_safetensors(tmp_path / "f", [one], {"a": 1})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="gave 1 bytes"):
        write_safetensors(tmp_path / "f", [lazy_bytes("a", (2,), "U8", b"x")])
    assert list(tmp_path.iterdir()) == []


def test_many_tensors_open_fast(tmp_path: Path) -> None:
    count = 2000
    content = {
        f"model.layers.{n}.weight": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]}
        for n in range(count)
    }
    write_case(tmp_path / "f", json.dumps(content), bytes(range(200)) * 10)
    tensors = read_safetensors(tmp_path / "f").tensors
    assert list(tensors) == list(content)
    assert [t.read()[0] for t in tensors.values()] == list(bytes(range(200)) * 10)
