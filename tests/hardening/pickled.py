"""Pickles written operation by operation, and the files of torch around them: honest or not."""

import pickle
import struct
from io import BytesIO
from zipfile import ZIP_STORED, ZipFile

MAGIC = 0x1950A86A20F9469CFC6C
"""First number of a legacy file."""

FLOAT, LONG, QINT8 = "torch.FloatStorage", "torch.LongStorage", "torch.QInt8Storage"

NONE, TRUE, FALSE, EMPTY = b"N", b"\x88", b"\x89", b")"

Code = bytes
"""Operations that leave one object on the stack."""


def text(value: str) -> Code:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> Code:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def real(value: float) -> Code:
    return b"G" + struct.pack(">d", value)


def name(dotted: str) -> Code:
    module, _, last = dotted.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def row(*items: Code) -> Code:
    return b"(" + b"".join(items) + b"t"


def numbers(*values: int) -> Code:
    return row(*map(number, values))


def table(**entries: Code) -> Code:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def call(function: str, *args: Code) -> Code:
    return name(function) + row(*args) + b"R"


def ordered(*entries: Code) -> Code:
    return name("collections.OrderedDict") + EMPTY + b"R" + b"(" + b"".join(entries) + b"u"


def attributes(target: Code, **state: Code) -> Code:
    return target + table(**state) + b"b"


def storage(count: int, kind: str = FLOAT, key: str = "0") -> Code:
    return row(text("storage"), name(kind), text(key), text("cpu"), number(count)) + b"Q"


def legacy_storage(count: int, view: Code = NONE, key: str = "0") -> Code:
    return row(text("storage"), name(FLOAT), text(key), text("cpu"), number(count), view) + b"Q"


NO_HOOKS = ordered()


def tensor(
    held: Code,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    hooks: Code = NO_HOOKS,
) -> Code:
    parts = (held, number(offset), numbers(*size), numbers(*stride), FALSE, hooks)
    return call("torch._utils._rebuild_tensor_v2", *parts)


def weights(count: int = 4, *shape: tuple[int, ...], offset: int = 0) -> Code:
    """A tensor of floats over the first storage: its count, then perhaps size and stride."""
    return tensor(storage(count), *shape, offset=offset)


def sparse(layout: str, *parts: Code) -> Code:
    kind = call("torch.serialization._get_layout", text(f"torch.{layout}"))
    return call("torch._utils._rebuild_sparse_tensor", kind, row(*parts))


def program(*code: Code) -> bytes:
    return b"\x80\x02" + b"".join(code) + b"."


def archive(code: Code, *storages: bytes, compression: int = ZIP_STORED) -> bytes:
    """A zip archive as torch.save writes it; 16 bytes of zeros if no storage is given."""
    stream = BytesIO()
    with ZipFile(stream, "w", compression) as file:
        file.writestr("net/data.pkl", program(code))
        file.writestr("net/version", b"3\n")
        for key, data in enumerate(storages or (bytes(16),)):
            file.writestr(f"net/data/{key}", data)
    return stream.getvalue()


def legacy(code: Code, keys: Code, data: bytes) -> bytes:
    """A file as torch.save wrote it before 1.6."""
    head = [number(MAGIC), number(1001), table(little_endian=TRUE)]
    return b"".join(program(part) for part in [*head, code, keys]) + data


def floats(*values: float) -> bytes:
    """A storage as it stands in a legacy file: how many numbers, then these."""
    return struct.pack(f"<q{len(values)}f", len(values), *values)


def listed(*items: Code) -> Code:
    return b"](" + b"".join(items) + b"e"
