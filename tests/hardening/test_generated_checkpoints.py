"""Files that hypothesis makes up: pickles of any operations torch knows, headers of any content."""

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pickled import (
    EMPTY,
    FALSE,
    FLOAT,
    LONG,
    NO_HOOKS,
    NONE,
    QINT8,
    TRUE,
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
    real,
    row,
    storage,
    table,
    tensor,
    text,
)
from reading import outcome

FEW, MANY = 100, 3000
"""Examples of each kind of file."""

NAMES = st.sampled_from([
    "collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.bytearray",
    "builtins.complex", "_codecs.encode", "torch.Size", "torch.device", "torch.Tensor",
    "torch.FloatTensor", "torch.nn.parameter.Parameter", "torch.storage.UntypedStorage",
    "torch.float32", "torch.per_tensor_affine", "torch.serialization._get_layout",
    "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_wrapper_subclass",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
])  # fmt: skip
"""What torch lets weights import; nothing else gets as far as being called."""

KEYS = st.sampled_from(["weight", "bias", "items", "state_dict", "detach", "shape", "\n", ""])

COUNTS = st.integers(-3, 9) | st.sampled_from([2**31, 2**40, 2**62, 2**63, 2**64, -(2**63)])

SHAPES = st.lists(COUNTS, max_size=3).map(tuple)


def storages(kind: Callable[..., bytes]) -> st.SearchStrategy[bytes]:
    honest = st.just(kind(4))
    return honest | honest | st.builds(kind, COUNTS)


def tensors(held: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    honest = st.builds(tensor, held)
    return honest | st.builds(tensor, held, SHAPES, SHAPES, COUNTS)


def values(held: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Operations that leave one object, of calls, containers and tensors within each other."""
    leaves = st.one_of(
        st.sampled_from([NONE, TRUE, FALSE, EMPTY, b"}", b"]"]),
        COUNTS.map(number),
        st.floats().map(real),
        KEYS.map(text),
        NAMES.map(name),
        tensors(held),
    )

    def within(parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
        several = st.lists(parts, max_size=7)
        tables = st.dictionaries(KEYS, parts, max_size=4).map(lambda held: table(**held))
        return st.one_of(
            tables,
            several.map(lambda items: row(*items)),
            several.map(lambda items: listed(*items)),
            st.builds(lambda function, args: call(function, *args), NAMES, several),
            st.builds(lambda target, state: target + state + b"b", parts, tables),
            st.builds(lambda key, value: b"}" + key + value + b"s", parts, parts),
        )

    return st.recursive(leaves, within, max_leaves=12)


def judged(data: bytes, **options: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net"
        path.write_bytes(data)
        return outcome(path, **options)


HELD = storages(storage) | st.builds(storage, COUNTS, st.sampled_from([FLOAT, LONG, QINT8]))


def entries(held: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """What begins as weights do: a mapping of tensors, which may have attributes of their own."""
    states = st.dictionaries(KEYS, values(held), max_size=2)
    weights = tensors(held) | st.builds(subclassed, states)
    named = st.dictionaries(KEYS, weights, max_size=3)
    plain = st.builds(lambda held, other: table(other=other, **held), named, values(held))
    items = named.map(lambda held: ordered(*(text(key) + value for key, value in held.items())))
    return plain | st.builds(lambda target, state: attributes(target, **state), items, states)


def subclassed(state: dict[str, bytes]) -> bytes:
    parts = row(storage(4), number(0), numbers(4), numbers(1), FALSE, NO_HOOKS)
    function, kind = name("torch._utils._rebuild_tensor_v2"), name("torch.Tensor")
    return call("torch._tensor._rebuild_from_type_v2", function, kind, parts, table(**state))


def check_archive(code: bytes) -> None:
    judged(archive(code))


def check_legacy(code: bytes, keys: bytes) -> None:
    judged(legacy(code, keys, floats(1, 2, 3, 4)))


def check_safetensors(header: Any, held: int, shift: int) -> None:
    data = json.dumps(header).encode()
    judged(struct.pack("<Q", max(0, len(data) + shift)) + data + bytes(held))


HEADERS = st.dictionaries(
    KEYS,
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "BOOL", "F99", 3]),
            "shape": st.lists(COUNTS, max_size=3),
            "data_offsets": st.lists(COUNTS, min_size=2, max_size=2),
        },
    )
    | st.just({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]})
    | st.none(),
    max_size=4,
)

SEARCHES: dict[str, Any] = {
    "any pickle": given(code=values(HELD))(check_archive),
    "torch.save": given(code=entries(HELD))(check_archive),
    "torch.save before 1.6": given(
        code=entries(storages(legacy_storage)), keys=st.sampled_from([listed(text("0")), b"]"])
    )(check_legacy),
    "safetensors": given(
        header=HEADERS,
        held=st.integers(0, 40),
        shift=st.sampled_from([-1, 0, 0, 0, 1, 2**40]),
    )(check_safetensors),
}


def search(what: str, examples: int) -> None:
    every = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    every(SEARCHES[what])()


@pytest.mark.parametrize("what", SEARCHES)
def test_generated_files(what: str) -> None:
    search(what, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("what", SEARCHES)
def test_generated_files_many_times(what: str) -> None:
    search(what, MANY)
