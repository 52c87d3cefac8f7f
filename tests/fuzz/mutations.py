"""Inputs made from whole ones: bits and bytes changed, and values in the format's own terms.

The same seed and number make the same input, so what was found is found again.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    Mutation = Callable[[bytes, random.Random], bytes]

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308,
    "", "x", "0", "..", "../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "\u202e", "x" * 5000,
    [], {}, [[]], [None], {"": None}, [1, 2, 3], ["x"], {"x": 1}, [[[[[[[[]]]]]]]],
)  # fmt: skip
"""What a value is replaced by."""

_WORDS = (
    b"\0", b"\n", b"\r\n", b"NaN", b"-Infinity", b"1e999", b"1E5", b"0x10", b"null", b"{", b"}", b"[",
    b"]", b'"', b"'''", b"=", b":", b",", b"\xff\xfe", b"\xef\xbb\xbf", b"9" * 5000, b"[" * 2000,
    b'{"a":' * 500, b"inf", b"nan", b"1979-05-27", b"\xf0\x9f\x98\x80", b"-", b"#", b"\\u0000",
)  # fmt: skip
"""What is put in between."""


def raw(data: bytes, rng: random.Random) -> bytes:
    """One change of bits or bytes."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + 1 + int(rng.expovariate(0.1)))
    match rng.randrange(8):
        case 0 if data:
            at %= len(data)
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:at] + rng.choice(_WORDS) + data[at:]
        case 4:
            return data[:at] + rng.choice(_WORDS) + data[end:]
        case 5:
            return data[:end] + data[at:]
        case 6:
            return data[:at] + rng.randbytes(end - at) + data[end:]
        case _:
            width = rng.choice(["<B", "<H", "<I", "<Q", ">I", ">Q"])
            most = 2 ** (8 * struct.calcsize(width)) - 1
            number = struct.pack(width, rng.choice((0, 1, most, most >> 1, (most >> 1) + 1)))
            return data[:at] + number + data[at + len(number) :]


def in_json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON text replaced, removed, doubled or moved."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return raw(data, rng)
    return json.dumps(_changed(said, rng)).encode()


def _changed(said: Any, rng: random.Random) -> Any:
    if not isinstance(said, dict | list) or not said or rng.random() < 0.02:
        return rng.choice(_VALUES)
    holders = [said]
    for each in holders:
        inner = each.values() if isinstance(each, dict) else each
        holders += [value for value in inner if isinstance(value, dict | list) and value]
    holder = rng.choice(holders)
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    match rng.randrange(5):
        case 0:
            del holder[key]
        case 1:
            other = rng.choice(holders)
            inner = list(other.values()) if isinstance(other, dict) else other
            value = rng.choice(inner) if inner else None
            holder[key] = json.loads(json.dumps(value))
        case 2 if isinstance(holder, dict):
            holder[rng.choice(("", "x", "digest", "..", str(key) + "x"))] = holder.pop(key)
        case 3 if isinstance(holder[key], int | float):
            holder[key] *= rng.choice((-1, 0, 1.5, 1e9, 2))
        case _:
            holder[key] = rng.choice(_VALUES)
    return said


def in_safetensors(data: bytes, rng: random.Random) -> bytes:
    """One value of the header, whose length is made to fit."""
    size = int.from_bytes(data[:8], "little")
    head, tail = data[8 : 8 + size], data[8 + size :]
    try:
        head = json.dumps(json.loads(in_json(head, rng)), separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return raw(data, rng)
    return len(head).to_bytes(8, "little") + head + tail


DAMAGED = (
    zipfile.BadZipFile, OSError, ValueError, NotImplementedError, zlib.error, EOFError, RuntimeError,
    LookupError, struct.error,
)  # fmt: skip
"""What zipfile raises for archives that are none."""


def in_zip(data: bytes, rng: random.Random) -> bytes:
    """One change inside of a member, whose checksum is made to fit."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            members = {name: old.read(name) for name in old.namelist()}
    except DAMAGED:
        return raw(data, rng)
    if not members:
        return raw(data, rng)
    name = rng.choice(sorted(members))
    match rng.randrange(5):
        case 0:
            members.pop(name)
        case 1:
            members[name] = _number_in(members[name], rng)
        case 2:
            return in_directory(data, rng)
        case _:
            members[name] = raw(members[name], rng)
    return zipped(members, rng)


def zipped(members: Mapping[str, bytes], rng: random.Random) -> bytes:
    """An archive, stored or deflated."""
    made = io.BytesIO()
    packed = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(made, "w", packed) as new:
        for each, content in members.items():
            new.writestr(zipfile.ZipInfo(each), content, packed)
    return made.getvalue()


def in_directory(data: bytes, rng: random.Random) -> bytes:
    """A number of an entry in an archive's directory, or of the record behind that: sizes, offsets,
    flags, kinds."""
    places = [found.start() for found in re.finditer(rb"PK\x01\x02", data)]
    fields = [(at + offset, form) for at in places for offset, form in
              ((8, "<H"), (10, "<H"), (20, "<L"), (24, "<L"), (28, "<H"), (38, "<L"), (42, "<L"))]  # fmt: skip
    if len(data) >= 22:
        fields += [(len(data) - 22 + offset, form) for offset, form in
                   ((8, "<H"), (10, "<H"), (12, "<L"), (16, "<L"), (20, "<H"))]  # fmt: skip
    fields = [(at, form) for at, form in fields if at + struct.calcsize(form) <= len(data)]
    if not fields:
        return raw(data, rng)
    at, form = rng.choice(fields)
    width = struct.calcsize(form)
    (old,) = struct.unpack_from(form, data, at)
    others = (0, 1, old + 1, old - 1, 2 * old, old ^ 1 << rng.randrange(8 * width), 1 << 31)
    number = rng.choice(others) % (1 << 8 * width)
    return data[:at] + struct.pack(form, number) + data[at + width :]


def _number_in(data: bytes, rng: random.Random) -> bytes:
    """A number in the text of an array's header, in as many characters."""
    places = [at for at in range(min(128, len(data))) if data[at : at + 1].isdigit()]
    if not places:
        return data
    at = rng.choice(places)
    return data[:at] + rng.choice((b"0", b"9", b"-", b"'", b"f8", b"O")) + data[at + 1 :]


def in_toml(data: bytes, rng: random.Random) -> bytes:
    """One line's value, or a line."""
    lines = data.decode("utf-8", "replace").split("\n")
    at = rng.randrange(len(lines))
    key, equals, _ = lines[at].partition("=")
    match rng.randrange(5):
        case 0:
            lines.pop(at)
        case 1:
            lines.insert(at, rng.choice(lines))
        case 2:
            name = rng.choice(("gate", "gate.targets", "gate.max_ratio", "bench", "tool", "x"))
            lines.insert(at, f"[{name}]")
        case _ if equals:
            value = rng.choice(_VALUES)
            lines[at] = f"{key}= {json.dumps(value if value is not None else [])}"
        case _:
            return raw(data, rng)
    return "\n".join(lines).encode()


def in_onnx(data: bytes, rng: random.Random) -> bytes:
    """One field of a graph."""
    import onnx
    from google.protobuf.message import DecodeError, EncodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        nodes, weights = model.graph.node, model.graph.initializer
        ports = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        if not nodes or not weights or not ports:
            return raw(data, rng)
        _change_graph(model, rng.choice(nodes), rng.choice(weights), rng.choice(ports), rng)
        return bytes(model.SerializeToString())
    except (DecodeError, EncodeError, ValueError, TypeError):
        return raw(data, rng)


def _change_graph(model: Any, node: Any, weight: Any, port: Any, rng: random.Random) -> None:
    number = rng.choice((0, 1, -1, 2, 3, 7, 100, 2**31, 2**40, 2**62, -(2**63)))
    names = [name for each in model.graph.node for name in (*each.input, *each.output)] or [""]
    match rng.randrange(12):
        case 0:
            node.op_type = rng.choice(
                ("Conv", "Relu", "Gemm", "MatMul", "Pad", "Resize", "Reshape", "Loop", "If", "Expand",
                 "Transpose", "Concat", "ConstantOfShape", "Range", "Tile", "Einsum", "Cast", "Slice",
                 "BatchNormalization", "AveragePool", "Identity", "Dropout", "QuantizeLinear", "X")
            )  # fmt: skip
        case 1 if node.attribute:
            attribute = rng.choice(node.attribute)
            if attribute.ints:
                attribute.ints[rng.randrange(len(attribute.ints))] = number
            else:
                attribute.i = number
        case 2 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice((*names, ""))
        case 3 if node.output:
            node.output[rng.randrange(len(node.output))] = rng.choice((*names, ""))
        case 4 if weight.dims:
            weight.dims[rng.randrange(len(weight.dims))] = number
        case 5:
            weight.data_type = rng.randrange(30)
        case 6:
            weight.raw_data = raw(weight.raw_data, rng)
        case 7 if port.type.tensor_type.shape.dim:
            rng.choice(port.type.tensor_type.shape.dim).dim_value = number
        case 8 if model.opset_import:
            model.opset_import[0].version = rng.choice((0, 1, 7, 11, 12, 13, 17, 22, 99, number))
        case 9:
            weight.data_location = 1
            for key, value in (("location", rng.choice(("w", "../w", "/etc/passwd", ""))),
                               ("offset", str(number)), ("length", str(number))):  # fmt: skip
                weight.external_data.add(key=key, value=value)
        case 10:
            model.graph.node.add().CopyFrom(node)
        case _:
            node.attribute.add(
                name=rng.choice(("axes", "pads", "group", "to", "x")), i=number, type=2
            )


def mutate(
    seeds: Sequence[bytes], own: Mutation, rng: random.Random, data: bytes | None = None
) -> bytes:
    """An input from `data`, or from one of the seeds, by one to four changes."""
    made = rng.choice(seeds) if data is None else data
    for _ in range(rng.choice((1, 1, 2, 4))):
        how = rng.random()
        if how < 0.65:
            made = own(made, rng)
        elif how < 0.95:
            made = raw(made, rng)
        else:  # two spliced
            other = rng.choice(seeds)
            made = made[: rng.randrange(len(made) + 1)] + other[rng.randrange(len(other) + 1) :]
    return made
