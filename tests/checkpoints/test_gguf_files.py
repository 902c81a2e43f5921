"""GGUF: named faults of the format with their bytes, and round trips with the gguf package."""

from __future__ import annotations

import math
import random
import struct
import tracemalloc
from pathlib import Path

import gguf as peer
import numpy as np
import pytest
from checkpoints.mutants import lazy_bytes

from chumoku.checkpoints.gguf import GGUFValue, read_gguf, write_gguf
from chumoku.checkpoints.gguf_values import TYPES, UNSUPPORTED
from chumoku.checkpoints.lazy import STORAGE, LazyTensor
from chumoku.errors import CheckpointError, InputError


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw)) + raw


def info(
    name: str | bytes = "w", dims: tuple[int, ...] = (4,), number: int = 0, offset: int = 0
) -> bytes:
    return text(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(number) + u64(offset)


def file(
    infos: tuple[bytes, ...] = (),
    keys: tuple[bytes, ...] = (),
    data: int = 0,
    start: bytes = b"GGUF" + u32(3),
    counts: tuple[int, int] | None = None,
) -> bytes:
    tensors, pairs = counts or (len(infos), len(keys))
    head = start + u64(tensors) + u64(pairs) + b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % 32) + bytes(data)


KEY = text("a.b")
STR = KEY + u32(8)
ARRAY = KEY + u32(9)
ALIGNMENT = text("general.alignment")

# name: (bytes, words of the message, byte that it names or None)
BAD: dict[str, tuple[bytes, str, int | None]] = {
    "empty": (b"", "too short", 0),
    "only the magic": (b"GGUF", "too short", 0),
    "bad magic": (b"GGML" + file()[4:], "no GGUF file", 0),
    "bytes swapped magic": (b"FUGG" + file()[4:], "no GGUF file", 0),
    "version 0": (file(start=b"GGUF" + u32(0)), "version 0", 4),
    "version 1": (file(start=b"GGUF" + u32(1)), "version 1", 4),
    "version 4": (file(start=b"GGUF" + u32(4)), "version 4", 4),
    "version huge": (file(start=b"GGUF" + u32(2**32 - 1)), "version 4294967295", 4),
    "big-endian": (file(start=b"GGUF" + struct.pack(">I", 3)), "big-endian", 4),
    "huge tensor count": (file(counts=(2**64 - 1, 0)), "tensors do not fit", 8),
    "lying tensor count": (file(counts=(3, 0), data=40), "tensors do not fit", 8),
    "huge key count": (file(counts=(0, 2**63)), "metadata keys do not fit", 16),
    "one tensor too many": (file((info(),), counts=(2, 0), data=96), "empty or contains NUL", None),
    "empty key": (file(keys=(text("") + u32(4) + u32(1),)), "key is empty", 24),
    "key with NUL": (file(keys=(text("a\0b") + u32(4) + u32(1),)), "contains NUL", 24),
    "key not UTF-8": (file(keys=(text(b"a\xff") + u32(4) + u32(1),)), "not UTF-8", 33),
    "key too long": (file(keys=(text("k" * 65536) + u32(4) + u32(1),)), "65536 bytes", 24),
    "key beyond the file": (file(keys=(u64(2**40) + b"abcdefgh",)), "bytes; at most", 24),
    "duplicate key": (file(keys=(KEY + u32(4) + u32(1),) * 2), "comes twice", 43),
    "unknown kind": (file(keys=(KEY + u32(13) + u32(1),)), "unknown kind 13", 35),
    "bool of 2": (file(keys=(KEY + u32(7) + b"\2",)), "neither true nor false", 39),
    "string beyond the file": (file(keys=(STR + u64(100),)), "needs 100 bytes", 47),
    "string of 2^63": (file(keys=(STR + u64(2**63),)), "at most", 39),
    "string of 2^64-1": (file(keys=(STR + u64(2**64 - 1),)), "at most", 39),
    "string not UTF-8": (file(keys=(STR + text(b"ok\xc3("),)), "not UTF-8", 49),
    "array of unknown kind": (file(keys=(ARRAY + u32(99) + u64(0),)), "unknown kind 99", 39),
    "array beyond the file": (file(keys=(ARRAY + u32(0) + u64(10**6),)), "do not fit", 43),
    "array of 2^61 u64": (file(keys=(ARRAY + u32(10) + u64(2**61),)), "do not fit", 43),
    "array of 2^64-1": (file(keys=(ARRAY + u32(8) + u64(2**64 - 1),)), "do not fit", 43),
    "array with a string too long": (
        file(keys=(ARRAY + u32(8) + u64(2) + text("a") + u64(2**64 - 1),)),
        "a string of the array",
        68,
    ),
    "array with a string not UTF-8": (
        file(keys=(ARRAY + u32(8) + u64(1) + text(b"\x80"),)),
        "not UTF-8",
        59,
    ),
    "array of bool 3": (file(keys=(ARRAY + u32(7) + u64(2) + b"\1\3",)), "neither true", 51),
    "array nested too deep": (
        file(keys=(ARRAY + (u32(9) + u64(1)) * 500 + u32(0) + u64(0),)),
        "nests deeper",
        None,
    ),
    "alignment 0": (file(keys=(ALIGNMENT + u32(4) + u32(0),)), "alignment", None),
    "alignment 4": (file(keys=(ALIGNMENT + u32(4) + u32(4),)), "alignment", None),
    "alignment 48": (file(keys=(ALIGNMENT + u32(4) + u32(48),)), "alignment", None),
    "alignment as u64": (file(keys=(ALIGNMENT + u32(10) + u64(32),)), "alignment", None),
    "alignment as text": (file(keys=(ALIGNMENT + u32(8) + text("32"),)), "alignment", None),
    "alignment beyond the file": (
        file((info(),), (ALIGNMENT + u32(4) + u32(2**31),), data=32),
        "would end",
        None,
    ),
    "empty tensor name": (file((info(""),), data=32), "empty or contains NUL", 24),
    "tensor name with NUL": (file((info("a\0"),), data=32), "contains NUL", 24),
    "tensor name of 65": (file((info("n" * 65),), data=32), "65 bytes", 24),
    "tensor name not UTF-8": (file((info(b"\xff"),), data=32), "not UTF-8", 32),
    "duplicate tensor": (file((info(), info(offset=32)), data=64), "comes twice", 57),
    "5 dimensions": (file((info(dims=(1,) * 5),), data=32), "has 5 dimensions", 24),
    "2^32-1 dimensions": (
        file((text("w") + u32(2**32 - 1) + u64(1) * 3,), data=32),
        "4294967295 dimensions",
        24,
    ),
    "dimension 2^63": (file((info(dims=(2**63,)),), data=32), "cannot have the shape", 24),
    "product 2^64": (file((info(dims=(2**32, 2**32)),), data=32), "cannot have the shape", 24),
    "product with a zero": (file((info(dims=(0, 2**40, 2**40)),), data=32), "cannot have", 24),
    "product of 2^62": (file((info(dims=(2**31, 2**28)),), data=32), "would end", 24),
    "type 4, removed": (file((info(number=4),), data=32), "Q4_2, which is not supported", 24),
    "type IQ4_NL": (file((info(dims=(32,), number=20),), data=32), "IQ4_NL", 24),
    "type unknown": (file((info(number=2**32 - 1),), data=32), "unknown type 4294967295", 24),
    "row of half a block": (file((info(dims=(48,), number=2),), data=64), "cannot have", 24),
    "scalar of blocks": (file((info(dims=(), number=8),), data=64), "cannot have", 24),
    "offset misaligned": (file((info(offset=1),), data=64), "not aligned", 24),
    "offset by half": (file((info(offset=16),), data=64), "not aligned", 24),
    "offset at the end": (file((info(offset=32),), data=32), "would end", 24),
    "offset beyond": (file((info(offset=2**40),), data=32), "would end", 24),
    "offset + size = 2^64": (file((info(offset=2**64 - 32),), data=32), "would end", 24),
    "data cut by a byte": (file((info(dims=(8,)),), data=31), "would end", 24),
    "overlap": (file((info(dims=(16,)), info("v", offset=32)), data=96), "overlap", 57),
    "same bytes twice": (file((info(), info("v")), data=32), "overlap", 57),
}


@pytest.mark.parametrize("name", BAD)
def test_a_named_fault_is_one_error_with_its_byte(name: str, tmp_path: Path) -> None:
    raw, words, byte = BAD[name]
    (tmp_path / "bad.gguf").write_bytes(raw)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_gguf(tmp_path / "bad.gguf")
    assert "bad.gguf, byte " in caught.value.where
    assert byte is None or caught.value.where.endswith(f"byte {byte}")


GOOD: dict[str, tuple[bytes, object]] = {
    "nothing": (file(), {}),
    "without padding": (file()[:24], {}),
    "empty string": (file(keys=(STR + text(""),)), {"a.b": ""}),
    "string with NUL": (file(keys=(STR + text("a\0b"),)), {"a.b": "a\0b"}),
    "empty array": (file(keys=(ARRAY + u32(6) + u64(0),)), {"a.b": []}),
    "empty strings": (file(keys=(ARRAY + u32(8) + u64(2) + text("") * 2,)), {"a.b": ["", ""]}),
    "nested": (
        file(keys=(ARRAY + u32(9) + u64(2) + u32(7) + u64(1) + b"\1" + u32(8) + u64(0),)),
        {"a.b": [[True], []]},
    ),
    "longest key": (file(keys=(text("k" * 65535) + u32(1) + b"\xff",)), {"k" * 65535: -1}),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_the_format_allows(name: str, tmp_path: Path) -> None:
    raw, metadata = GOOD[name]
    (tmp_path / "good.gguf").write_bytes(raw)
    assert read_gguf(tmp_path / "good.gguf").metadata == metadata


@pytest.mark.parametrize("version", [2, 3])
def test_tensor_forms_the_format_allows(version: int, tmp_path: Path) -> None:
    infos = (
        info("n" * 64, (), 0, 0),
        info("gap", (2, 3), 0, 64),
        info("none", (0, 5), 0, 0),
        info("early", (8,), 24, 32),
    )
    data = random.Random(0).randbytes(96)
    start = b"GGUF" + u32(version)
    (tmp_path / "f.gguf").write_bytes(file(infos, start=start) + data)
    read = read_gguf(tmp_path / "f.gguf")
    assert read.version == version
    assert {n: t.shape for n, t in read.tensors.items()} == {
        "n" * 64: (),
        "gap": (3, 2),
        "none": (5, 0),
        "early": (8,),
    }
    assert [bytes(t.read()) for t in read.tensors.values()] == [
        data[:4],
        data[64:88],
        b"",
        data[32:40],
    ]


def random_tensors(seed: int) -> list[LazyTensor]:
    rng = random.Random(seed)
    tensors = []
    for index, storage in enumerate(TYPES):
        per_block, block_bytes = STORAGE[storage]
        outer = tuple(rng.randint(1, 3) for _ in range(index % 4))
        shape = (*outer, per_block * rng.randint(1, 2))
        size = math.prod(shape) // per_block * block_bytes
        tensors.append(lazy_bytes(f"blk.{index}.{storage}", shape, storage, rng.randbytes(size)))
    return tensors


def metadata_of_all_kinds(seed: int) -> dict[str, GGUFValue]:
    rng = np.random.default_rng(seed)
    values = {"general.architecture": GGUFValue("str", "llama")}
    for kind in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"):
        low, high = (0, 1) if kind[0] == "u" else (1, 2)
        bits = int(kind[1:])
        draw = [int(x) for x in rng.integers(0, 2, 3)]
        ends = [(1 << bits) // high - 1 if bit else -(low << bits - 1) for bit in draw]
        values[f"x.{kind}"] = GGUFValue(kind, ends[0])
        values[f"y.{kind}"] = GGUFValue("array", ends, kind)
    values["x.f32"] = GGUFValue("f32", float(np.float32(rng.normal())))
    values["x.f64"] = GGUFValue("f64", float(rng.normal()))
    values["y.f32"] = GGUFValue("array", rng.normal(size=9).astype(np.float32).tolist(), "f32")
    values["y.f64"] = GGUFValue("array", [math.inf, -0.0, 1e308], "f64")
    values["x.bool"] = GGUFValue("bool", bool(seed % 2))
    values["y.bool"] = GGUFValue("array", [True, False, True], "bool")
    values["y.str"] = GGUFValue("array", ["", "é", "▁注目", "<0x00>", "a\0"], "str")
    return values


PEER_KINDS = {
    **{"u8": "uint8", "i8": "int8", "u16": "uint16", "i16": "int16", "u32": "uint32"},
    **{"i32": "int32", "u64": "uint64", "i64": "int64", "f32": "float32", "f64": "float64"},
    **{"bool": "bool", "str": "string"},
}


def write_with_peer(path: Path, values: dict[str, GGUFValue], tensors: list[LazyTensor]) -> None:
    writer = peer.GGUFWriter(path, "llama")
    for key, value in values.items():
        if key == "general.architecture":
            continue
        kind = peer.GGUFValueType
        if value.kind == "array":
            sub = kind[PEER_KINDS[value.element].upper()]
            writer.add_key_value(key, value.value, kind.ARRAY, sub)
        else:
            writer.add_key_value(key, value.value, kind[PEER_KINDS[value.kind].upper()])
    for tensor in tensors:
        per_block, block_bytes = STORAGE[tensor.storage]
        rows = (*tensor.shape[:-1], tensor.shape[-1] // per_block * block_bytes)
        raw = np.frombuffer(tensor.read(), np.uint8).reshape(rows)
        number = peer.GGMLQuantizationType[tensor.storage]
        writer.add_tensor(tensor.name, raw, raw_shape=rows, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("seed", range(3))
def test_files_equal_the_package(seed: int, tmp_path: Path) -> None:
    values, tensors = metadata_of_all_kinds(seed), random_tensors(seed)
    write_gguf(tmp_path / "ours.gguf", values, tensors)
    write_with_peer(tmp_path / "theirs.gguf", values, tensors)
    ours, theirs = ((tmp_path / f"{name}.gguf").read_bytes() for name in ("ours", "theirs"))
    assert ours == theirs
    read = read_gguf(tmp_path / "theirs.gguf")
    assert read.values == values
    assert list(read.values) == list(values)
    assert read.metadata == {key: value.value for key, value in values.items()}
    for mine, tensor in zip(read.tensors.values(), tensors, strict=True):
        assert (mine.name, mine.shape, mine.storage) == (tensor.name, tensor.shape, tensor.storage)
        assert mine.read() == tensor.read()
    write_gguf(tmp_path / "again.gguf", read.values, list(read.tensors.values()))
    assert (tmp_path / "again.gguf").read_bytes() == theirs


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    values, tensors = metadata_of_all_kinds(7), random_tensors(7)
    values["general.alignment"] = GGUFValue("u32", 128)
    write_gguf(tmp_path / "f.gguf", values, tensors)
    reader = peer.GGUFReader(tmp_path / "f.gguf")
    for key, value in values.items():
        assert reader.fields[key].contents() == value.value
    for found, tensor in zip(reader.tensors, tensors, strict=True):
        assert found.name == tensor.name
        assert tuple(found.shape[::-1]) == tensor.shape
        assert found.tensor_type.name == tensor.storage
        assert found.data.tobytes() == tensor.read()
        assert found.data_offset % 128 == 0
    assert list(read_gguf(tmp_path / "f.gguf").tensors) == [t.name for t in tensors]


def test_types_of_the_package_are_all_known() -> None:
    numbers = {t.name: int(t) for t in peer.GGMLQuantizationType}
    assert {n: numbers[n] for n in TYPES} == TYPES
    assert {n for n in numbers.values() if n not in TYPES.values()} <= UNSUPPORTED.keys()
    for storage in TYPES:
        assert peer.GGML_QUANT_SIZES[peer.GGMLQuantizationType[storage]] == STORAGE[storage]


def test_plain_values_get_the_usual_kinds(tmp_path: Path) -> None:
    plain = {
        "a": True,
        "b": 7,
        "c": -7,
        "d": 2**32,
        "e": -(2**40),
        "f": 0.5,
        "g": "text",
        "h": [1, -1],
        "i": [1, 2**40],
        "j": ["x"],
        "k": [],
    }
    write_gguf(tmp_path / "f.gguf", plain, [])
    read = read_gguf(tmp_path / "f.gguf")
    assert read.metadata == plain
    kinds = [v.element or v.kind for v in read.values.values()]
    assert kinds == ["bool", "u32", "i32", "u64", "i64", "f32", "str", "i32", "u64", "str", "str"]


@pytest.mark.parametrize(
    ("metadata", "tensor"),
    [
        ({"a": None}, None),
        ({"a": 2**64}, None),
        ({"a": [1, "x"]}, None),
        ({"a": GGUFValue("u8", 256)}, None),
        ({"a": GGUFValue("u8", 1.5)}, None),
        ({"a": GGUFValue("bool", 1)}, None),
        ({"a": GGUFValue("f32", 1e300)}, None),
        ({"a": GGUFValue("u7", 1)}, None),
        ({"a": GGUFValue("array", 3, "u8")}, None),
        ({"a": GGUFValue("array", [[1]], "array")}, None),
        ({"a": "\ud800"}, None),
        ({"": 1}, None),
        ({"a\0": 1}, None),
        ({"k" * 65536: 1}, None),
        ({"general.alignment": 33}, None),
        ({}, lazy_bytes("w", (1,), "BOOL", b"\1")),
        ({}, lazy_bytes("w" * 65, (1,), "F32", bytes(4))),
        ({}, lazy_bytes("w", (1,) * 5, "F32", bytes(4))),
        ({}, lazy_bytes("w", (48,), "Q8_0", bytes(51))),
    ],
)
def test_what_cannot_be_written(
    metadata: dict[str, object], tensor: LazyTensor | None, tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        write_gguf(tmp_path / "f.gguf", metadata, [tensor] if tensor else [])
    assert list(tmp_path.iterdir()) == []


def split_file(folder: Path, tensors: list[LazyTensor], parts: int = 3) -> list[Path]:
    paths = []
    for number in range(parts):
        values: dict[str, object] = {"general.name": "split"} if number == 0 else {}
        values["split.no"] = GGUFValue("u16", number)
        values["split.count"] = GGUFValue("u16", parts)
        values["split.tensors.count"] = GGUFValue("i32", len(tensors))
        paths.append(folder / f"m-{number + 1:05}-of-{parts:05}.gguf")
        write_gguf(paths[-1], values, tensors[number::parts])
    return paths


def test_a_split_file_is_read_as_one(tmp_path: Path) -> None:
    tensors = random_tensors(3)
    paths = split_file(tmp_path, tensors)
    for path in paths:
        read = read_gguf(path)
        assert read.metadata == {"general.name": "split"}
        assert {n: t.read() for n, t in read.tensors.items()} == {t.name: t.read() for t in tensors}


def test_a_split_file_with_a_fault(tmp_path: Path) -> None:
    paths = split_file(tmp_path, random_tensors(3))
    good = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(CheckpointError, match="not part 2 of 3"):
        read_gguf(paths[0])
    paths[1].unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        read_gguf(paths[0])
    (tmp_path / "part.gguf").write_bytes(good)
    with pytest.raises(CheckpointError, match="name does not say"):
        read_gguf(tmp_path / "part.gguf")
    twice = [lazy_bytes("w", (1,), "F32", bytes(4))] * 2
    with pytest.raises(CheckpointError, match="in two parts"):
        read_gguf(split_file(tmp_path, twice, 2)[0])
    few = split_file(tmp_path, random_tensors(4), 2)
    write_gguf(few[1], read_part(few[1]), random_tensors(4)[1:2])
    with pytest.raises(CheckpointError, match="the parts hold"):
        read_gguf(few[0])


def read_part(path: Path) -> dict[str, GGUFValue]:
    number = int(path.name[2:7]) - 1
    return {
        "split.no": GGUFValue("u16", number),
        "split.count": GGUFValue("u16", int(path.name[-10:-5])),
    }


def test_a_hundred_megabytes_are_ready_in_a_second(tmp_path: Path) -> None:
    """A vocabulary of 49,152 tokens with merges and scores, and a sparse 100 MB behind it."""
    tokens = [f"token{n}" for n in range(49152)]
    strings = u32(8) + u64(len(tokens)) + b"".join(map(text, tokens))
    scores = u32(6) + u64(len(tokens)) + np.full(len(tokens), 0.5, "<f4").tobytes()
    keys = tuple(
        text(key) + u32(9) + body
        for key, body in zip("tms", (strings, strings, scores), strict=True)
    )
    infos = tuple(info(f"blk.{n}.w", (1000, 100), 0, n * 400_000) for n in range(250))
    path = tmp_path / "big.gguf"
    with path.open("wb") as stream:
        stream.write(file(infos, keys))
        stream.truncate(stream.tell() + 250 * 400_000)
    assert path.stat().st_size > 100e6
    tracemalloc.start()
    try:
        read = read_gguf(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 50e6  # the header alone: weights stay in the file until they are asked for
    assert read.metadata["m"] == tokens
    assert read.metadata["s"] == [0.5] * len(tokens)
    assert read.tensors["blk.249.w"].read() == bytes(400_000)
