"""Files made to take all memory, to crash, or to read what is not theirs: told, and not read."""

import struct
import warnings
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from checkpoint_corpus import good
from pickled import (
    EMPTY,
    FALSE,
    NO_HOOKS,
    QINT8,
    TRUE,
    Code,
    archive,
    attributes,
    call,
    floats,
    legacy,
    legacy_storage,
    listed,
    name,
    number,
    numbers,
    ordered,
    program,
    real,
    row,
    sparse,
    storage,
    table,
    tensor,
    text,
    weights,
)
from reading import refusal

from analyzer.checkpoint import read
from analyzer.data import file_batches
from probes.errors import AnalyzerError

HUGE = 10**12
GIGABYTES = 4 * 10**9


def doubled(times: int) -> Code:
    """Text written as hexadecimal digits, and these again."""
    code = call("_codecs.encode", text("a" * 100), text("latin1"))
    for _ in range(times):
        code = call("_codecs.encode", code, text("hex"))
    return code


def within_itself(times: int) -> Code:
    """A tuple of twice a tuple of twice a tuple."""
    return EMPTY + b"".join(b"q\x07h\x07\x86" for _ in range(times))


def quantized(size: int, stride: int) -> Code:
    scale = row(name("torch.per_tensor_affine"), real(0.1), number(0))
    held = storage(16, QINT8, "1")
    parts = (held, number(0), numbers(size), numbers(stride), scale, FALSE, NO_HOOKS)
    return call("torch._utils._rebuild_qtensor", *parts)


def typed(kind: str, size: int) -> Code:
    held = storage(16, "torch.storage.UntypedStorage", "2")
    parts = (held, number(0), numbers(size), numbers(1), FALSE, NO_HOOKS, name(kind))
    return call("torch._utils._rebuild_tensor_v3", *parts)


def with_attribute(key: str) -> Code:
    parts = row(storage(4), number(0), numbers(4), numbers(1), FALSE, NO_HOOKS)
    function, kind = name("torch._utils._rebuild_tensor_v2"), name("torch.Tensor")
    state = table(**{key: name("builtins.bytearray")})
    return call("torch._tensor._rebuild_from_type_v2", function, kind, parts, state)


def repeated(count: int) -> Code:
    """One long list made a set again and again."""
    held = listed(*(number(item) for item in range(1000))) + b"q\x07"
    return row(held, *[name("builtins.set") + b"h\x07\x85R"] * count)


NEGATIVE = "a tensor with a negative size, stride or offset"
BEYOND = "a tensor beyond its storage of 16 bytes"
KEY = "a key of nested or long tuples"

DECEIVING: dict[str, tuple[Code, str]] = {
    "storage larger than the file": (
        weights(10**6, (10**6,)), "a storage of 4000000 bytes where the file has 16",
    ),
    "storage larger than memory": (
        weights(HUGE, (HUGE,)), "a storage of 4000000000000 bytes where the file has 16",
    ),
    "storage of negative size": (weights(-4), "a storage of -4 numbers"),
    "negative size": (weights(4, (-4,)), NEGATIVE),
    "negative stride": (weights(4, (4,), (-1,)), NEGATIVE),
    "negative offset": (weights(offset=-1), NEGATIVE),
    "offset out of range": (weights(offset=1), BEYOND),
    "tensor larger than its storage": (weights(4, (5,)), BEYOND),
    "stride out of range": (weights(4, (2, 2), (3, 1)), BEYOND),
    "numbers of another size": (typed("torch.float64", 3), BEYOND),
    "as many axes as nothing has": (weights(4, (1,) * 65, (1,) * 65), "a tensor of 65 axes"),
    "quantised beyond its storage": (
        quantized(GIGABYTES, 0), "a quantised tensor larger than its storage",
    ),
    "memory by a tensor": (
        call("torch.FloatTensor", number(GIGABYTES)), "it calls torch.FloatTensor",
    ),
    "memory by an old name": (call("torch.Tensor", number(GIGABYTES)), "it calls torch.Tensor"),
    "memory by a storage": (
        call("torch.storage.UntypedStorage", number(GIGABYTES)),
        "it calls torch.storage.UntypedStorage",
    ),
    "memory by bytes": (
        call("builtins.bytearray", number(GIGABYTES)), "a bytearray by its size",
    ),
    "memory by encoding": (doubled(30), "an encoding that is not of bytes"),
    "memory by copies": (
        repeated(10_000), "its objects would take more than 1073741824 bytes of memory",
    ),
    "nested views": (
        call("torch._utils._rebuild_nested_tensor", weights()),
        "it calls torch._utils._rebuild_nested_tensor",
    ),
    "key that recurses": (b"}" + EMPTY + b"\x85" * 300_000 + number(1) + b"s", KEY),
    "key that takes forever": (b"}" + within_itself(50) + number(1) + b"s", KEY),
    "set that takes forever": (call("builtins.set", listed(within_itself(50))), KEY),
    "hooks": (tensor(storage(4), hooks=number(7)), "a tensor with hooks"),
    "hook that is code": (
        tensor(storage(4), hooks=ordered(text("hook"), name("torch.device"))),
        "a tensor with hooks",
    ),
    "method of a mapping hidden": (
        attributes(ordered(text("w"), weights()), items=number(3)),
        "an attribute 'items' of OrderedDict replaced",
    ),
    "method of a tensor hidden": (
        with_attribute("detach"), "an attribute 'detach' of Tensor replaced",
    ),
    "state of a tensor": (
        attributes(weights(), data=number(1)), "it sets the state of what has none",
    ),
    "new object": (name("torch.Tensor") + EMPTY + b"\x81", "it makes a new torch.Tensor"),
    "sparse tensor of numbers": (
        sparse("sparse_coo", numbers(1), number(2), numbers(HUGE)), "a sparse tensor of no tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DECEIVING)
def test_archives(what: str, tmp_path: Path) -> None:
    code, reason = DECEIVING[what]
    path = tmp_path / "net.pt"
    for held in (table(weight=code), table(weight=weights(), state=table(deep=code))):
        path.write_bytes(archive(held, bytes(16), bytes(16), bytes(16)))
        assert refusal(path) == (
            f"damaged, or more than plain weights ({reason}): save the state_dict() alone"
        )


def test_what_is_honest_in_them_is_read(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    scalar = call("torch.device", text("cpu"))
    data = call("_codecs.encode", text("bytes"), text("latin1"))
    entries = {
        "weight": weights(offset=0),
        "typed": typed("torch.uint16", 8),
        "quantised": quantized(16, 1),
        "empty": weights(4, (0,), (1,), offset=4),
        "expanded": weights(4, (7, 4), (0, 1)),
        "marked": with_attribute("is_shared_expert"),
        "others": row(scalar, data, call("builtins.bytearray", data), repeated(3)),
        "keyed": b"}" + row(number(1), text("a")) + TRUE + b"s",
    }
    pairs = [part for key, value in entries.items() for part in (text(key), value)]
    held = attributes(ordered(*pairs), _metadata=ordered())
    path.write_bytes(archive(held, bytes(16), bytes(16), bytes(16)))
    assert [*read(path).tensors] == [*entries][:6]


ONE = table(weight=tensor(legacy_storage(4)))
FOUR = floats(1, 2, 3, 4)

LEGACY: dict[str, tuple[bytes, str]] = {
    "storage without values": (legacy(ONE, b"]", b""), "storages without values"),
    "another storage's values": (
        legacy(ONE, listed(text("1")), FOUR), "storages without values",
    ),
    "values twice": (
        legacy(ONE, listed(text("0"), text("0")), FOUR + FOUR), "storages without values",
    ),
    "one storage of two sizes": (
        legacy(
            table(w=tensor(legacy_storage(4)), v=tensor(legacy_storage(HUGE), (HUGE,))),
            listed(text("0")), FOUR,
        ),
        "one storage of two sizes",
    ),
    "view beyond its storage": (
        legacy(
            table(w=tensor(legacy_storage(4, row(text("v"), number(2), number(3))), (3,))),
            listed(text("0")), FOUR,
        ),
        "a view beyond its storage",
    ),
    "tensor beyond its view": (
        legacy(
            table(w=tensor(legacy_storage(4, row(text("v"), number(2), number(2))), (3,))),
            listed(text("0")), FOUR,
        ),
        "a tensor beyond its storage of 8 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LEGACY)
def test_legacy_files(what: str, tmp_path: Path) -> None:
    data, reason = LEGACY[what]
    (tmp_path / "net.pt").write_bytes(data)
    assert refusal(tmp_path / "net.pt") == (
        f"damaged, or more than plain weights ({reason}): save the state_dict() alone"
    )


def test_honest_legacy_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    view = tensor(legacy_storage(4, row(text("v"), number(2), number(2))), (2,))
    path.write_bytes(legacy(table(w=tensor(legacy_storage(4)), v=view), listed(text("0")), FOUR))
    tensors = read(path).tensors
    assert tensors["w"].tolist() == [1, 2, 3, 4]
    assert tensors["v"].tolist() == [3, 4]


def test_a_legacy_file_that_announces_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(
        legacy(table(w=tensor(legacy_storage(HUGE), (HUGE,))), listed(text("0")), FOUR)
    )
    assert refusal(path) == (
        "cut off or damaged torch.save before 1.6 file (unexpected EOF, expected "
        f"{4 * HUGE - 16} more bytes.): copy or save it again"
    )


@pytest.mark.parametrize("name", ["other/data.pkl", "net/data/0", "net/DATA/0", "net/DATA.PKL"])
def test_entries_that_stand_for_each_other(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(archive(table(w=weights())))
    with warnings.catch_warnings(), ZipFile(path, "a") as file:
        warnings.simplefilter("ignore")
        file.writestr(name, program(table(w=weights())))
    assert refusal(path) == (
        "damaged, or more than plain weights (entries that stand for each other): save the "
        "state_dict() alone"
    )


# Zip archives and TorchScript


@pytest.mark.parametrize("entry", ["net/data.pkl", "net/data/0", "net/anything"])
def test_zip_bombs_are_not_unpacked(entry: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(archive(table(w=weights())))
    with warnings.catch_warnings(), ZipFile(path, "a", ZIP_DEFLATED, compresslevel=9) as file:
        warnings.simplefilter("ignore")
        file.writestr(entry, bytes(50_000_000))
    unpacked = sum(held.file_size for held in ZipFile(path).infolist())
    assert refusal(path) == (
        f"a zip archive of {path.stat().st_size} bytes that unpacks to {unpacked}, which torch "
        "never writes: not read"
    )


def test_a_zip_archive_that_lies_about_its_sizes(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with ZipFile(path, "w", ZIP_DEFLATED) as file:
        file.writestr("net/data.pkl", program(table(w=weights(10**7, (10**7,)))))
        file.writestr("net/data/0", bytes(40_000_000))
    small = path.read_bytes().replace(struct.pack("<I", 40_000_000), struct.pack("<I", 16))
    path.write_bytes(small)
    assert refusal(path).startswith("cut off or damaged zip archive (Bad CRC-32")


def scripted(code: Code) -> bytes:
    """A TorchScript archive whose objects are given."""
    stream = BytesIO()
    with ZipFile(BytesIO(good("torchscript"))) as old, ZipFile(stream, "w") as new:
        for entry in old.namelist():
            pickle = entry.endswith("/data.pkl")
            new.writestr(entry, program(code) if pickle else old.read(entry))
    return stream.getvalue()


def module(**state: Code) -> Code:
    return name("__torch__.Net") + EMPTY + b"\x81" + table(**state) + b"b"


def test_a_scripted_archive_is_held_to_the_same(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(scripted(module(weight=weights(10**6, (10**6,)))))
    assert refusal(path).startswith(
        "damaged, or more than plain weights (a storage of 4000000 bytes where "
    )


def test_scripted_objects_that_hold_each_other_many_times(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    code = module(weight=weights(18))
    for level in range(60):
        code = module(left=code + b"q" + bytes([level]), right=b"h" + bytes([level]))
    path.write_bytes(scripted(code))
    assert refusal(path) == (
        "cut off or damaged TorchScript file (more than 100000 tensors): copy or save it again"
    )


def test_data_files_are_held_to_the_same(tmp_path: Path) -> None:
    path = tmp_path / "data.pt"
    code, reason = DECEIVING["memory by bytes"]
    path.write_bytes(archive(table(inputs=weights(), attack=code)))
    with pytest.raises(AnalyzerError) as caught:
        file_batches(path, 2)
    assert str(caught.value) == (
        f"{path}: not a readable data file: damaged, or more than plain weights ({reason}): save "
        "the state_dict() alone"
    )
