"""Storages that are alive, each counted once, however many tensors look at it."""

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class Storages:
    """Bytes of the storages that were added and are still alive, by who made them.

    Parameters
    ----------
    ignored : iterable of Tensor
        Tensors whose storages do not count.
    spare : mapping of int to int, optional
        Bytes of a storage, by its id, that are not used yet.
    """

    def __init__(self, ignored: Iterable[Tensor], spare: Mapping[int, int] | None = None) -> None:
        self.bytes: Counter[str] = Counter()
        self.total = 0
        self._spare = {} if spare is None else spare
        # Held, so that no other storage takes the place of one of them in memory.
        self._ignored = {id(held): held for held in (t.untyped_storage() for t in ignored)}
        self._seen: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def add(self, tensor: Tensor, owner: str) -> None:
        """Count the storage of ``tensor`` for ``owner``, unless it is counted already.

        Sparse and other tensors without one storage are left out.
        """
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        size = storage.nbytes() - self._spare.get(key, 0)
        if key in self._ignored or (key in self._seen and self._seen[key][1] == size):
            return
        if key in self._seen:
            self._forget(key, owner)

        def gone(_: object) -> None:
            self._forget(key, owner)

        self._seen[key] = (weakref.ref(storage, gone), size)
        self.bytes[owner] += size
        self.total += size

    def _forget(self, key: int, owner: str) -> None:
        """Take away a storage that is gone, or has another size now."""
        size = self._seen.pop(key)[1]
        self.bytes[owner] -= size
        self.total -= size
