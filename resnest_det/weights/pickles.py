"""Unpickling plain data: containers, texts, numbers and arrays.

A pickle is a little program that may call any function. Here it calls the few below, which make data and nothing else, of no more
bytes than the file can account for.
"""

import codecs
import collections
import math
import pickle
import re
from io import BytesIO
from typing import IO

import numpy as np
import torch

_MOST_STEPS = 5_000_000  # of a program; the largest training checkpoint takes a hundredth
_KEYS = (str, int, float, bool, bytes, type(None), np.generic)


class Refused(pickle.UnpicklingError):
    """A pickle asked for something that is not data; the message names it."""


class _Inert:
    """Stands where a file has an object of a library that need not be installed; keeps nothing, does nothing."""

    def __setstate__(self, state):
        pass


def nothing(*_):
    """Stands for a function whose result nobody needs."""
    return None


class _DType:
    """Stands for `numpy.dtype`: a number's kind and size, taken from text, never from the flags in a file.

    NumPy's own believes them: a dtype of objects whose flags are cleared turns bytes of the file into pointers.
    """

    def __init__(self, code, *_):
        if not isinstance(code, str) or not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise Refused(f"numpy values of type {ascii(code)[:40]}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        _, byte_order, subdtype, names, *_ = state
        if byte_order not in ("<", ">", "|", "=") or subdtype is not None or names is not None:
            raise Refused("numpy values of a type that is no plain number")
        if byte_order in "<>":
            self.dtype = self.dtype.newbyteorder(byte_order)

    def read(self, raw, shape: tuple, order: str = "C") -> np.ndarray:
        """An array over as many bytes as it needs, neither more nor fewer."""
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # how Python 2 wrote them
        if not isinstance(raw, bytes) or not isinstance(shape, tuple) or len(shape) > 32:
            raise pickle.UnpicklingError("an array of numpy is not as numpy writes it")
        if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) * self.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {str(shape)[:80]} has {len(raw)} bytes")
        return np.frombuffer(raw, self.dtype).reshape(shape, order=order)


class _Array:
    """Stands for `numpy.ndarray`, which would give memory that nothing was written to, or read past the end of a file's bytes."""

    def __setstate__(self, state):
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array of numpy has no dtype")
        self.value = dtype.read(raw, shape, "F" if fortran_order else "C")


class Unusable:
    """Stands where a file has a tensor of a kind that no model here has; the conversion to plain data says where."""

    def __init__(self, kind: str):
        self.kind = kind


class UnusableTensor(Exception):
    """A file has a tensor of a kind that no model here has; the message names it."""


def _empty_array(kind, *_):
    if kind is not _Array:
        raise pickle.UnpicklingError("numpy is asked for an array that is none")
    return _Array()


def _scalar(dtype, raw):
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("a number of numpy has no dtype")
    return dtype.read(raw, ())[()]


class _Bounded:
    """A file of which nobody is given more than is there: a length in a pickle is believed only then, not allocated first."""

    def __init__(self, file: IO[bytes], size: int):
        self._file = file
        self._size = size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > 1 << 16 and count > self._size - self._file.tell():
            raise EOFError(f"{count} bytes are announced and fewer are left")
        return self._file.read(count)


class DataUnpickler(pickle._Unpickler):
    """Reads one pickle of `file`, of `size` bytes in all.

    It stands on the interpreter's unpickler in Python, since the one in C allocates what a program of a few bytes asks for.
    """

    def __init__(self, file: IO[bytes], size: int):
        # A file in memory gives no more than it has by itself.
        self._file = file if isinstance(file, BytesIO) else _Bounded(file, size)
        super().__init__(self._file, encoding="latin1")
        # What is made from a file may be larger than the file, as views of one tensor are, within reason.
        self._left = 8 * size + (1 << 20)
        self._functions = {
            "numpy.ndarray": _Array,
            "numpy.dtype": _DType,
            "collections.OrderedDict": self._ordered_dict,
            "collections.Counter": self._counter,
            "_codecs.encode": self._bytes_from_text,
        }
        for core in ("numpy.core", "numpy._core"):
            self._functions |= {f"{core}.multiarray._reconstruct": _empty_array, f"{core}.multiarray.scalar": _scalar}
        for builtins in ("builtins", "__builtin__"):
            self._functions |= {f"{builtins}.bytes": bytes_of, f"{builtins}.set": self._set, f"{builtins}.complex": _complex}

    def load(self):
        self.read, self.readline = self._file.read, self._file.readline
        self.metastack, self.stack = [], []
        self.append = self.stack.append
        self.proto = 0
        try:
            for _ in range(_MOST_STEPS):
                code = self.read(1)
                if not code:
                    raise EOFError("it ends before its last instruction")
                step = self.dispatch.get(code[0])
                if step is None:
                    raise pickle.UnpicklingError(f"instruction {code!r} is none that data needs")
                step(self)
        except pickle._Stop as stop:
            if self.stack or self.metastack:
                raise pickle.UnpicklingError("it ends in the middle") from None
            return stop.value
        finally:
            # They hold this object, and it the tensors: a circle that would keep them until somebody collects garbage.
            self._functions.clear()
            self.memo.clear()
        raise pickle.UnpicklingError(f"it has more than {_MOST_STEPS} instructions")

    def find_class(self, module, name):
        try:
            return self._functions[f"{module}.{name}"]
        except KeyError:
            raise Refused(ascii(f"{module}.{name}")[1:-1][:100]) from None

    def take(self, count: int) -> None:
        """Account for `count` bytes that are made.

        Raises:
            UnpicklingError: a file of this size has no use for so many.
        """
        self._left -= count
        if self._left < 0:
            raise pickle.UnpicklingError("it asks for many times more memory than it has bytes")

    def _bytes_from_text(self, text, encoding):
        """How protocol 2 writes bytes. The codec is fixed, since looking one up by name imports a module of that name."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes are encoded as {encoding!r}, expected 'latin1'")
        self.take(len(text))
        return codecs.latin_1_encode(text)[0]

    def _ordered_dict(self, items=()):
        self.take(100 * len(items))
        return collections.OrderedDict((_key(name), value) for name, value in items)

    def _counter(self, counts):
        if not isinstance(counts, dict):
            raise pickle.UnpicklingError("a counter holds no counts")
        self.take(100 * len(counts))
        return collections.Counter(counts)

    def _set(self, items=()):
        self.take(100 * len(items))
        return set(map(_key, items))

    def _build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, (_Array, _DType, _Inert)):
            target.__setstate__(state)
            if isinstance(target, _Array):
                self.take(target.value.nbytes)
        elif isinstance(target, collections.OrderedDict) and isinstance(state, dict):
            # What torch keeps beside a state dict: versions of the modules.
            if isinstance(state.get("_metadata"), dict):
                target._metadata = state["_metadata"]
        else:
            raise pickle.UnpicklingError(f"a {type(target).__name__} is given a state")

    def _new_object(self):
        _, kind = self.stack.pop(), self.stack.pop()
        if kind is not _Inert:
            raise Refused(getattr(kind, "__name__", "an object that is not data"))
        self.stack.append(_Inert())

    def _set_item(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._dictionary()[_key(key)] = value

    def _set_items(self):
        items = self.pop_mark()
        target = self._dictionary()
        for index in range(0, len(items), 2):
            target[_key(items[index])] = items[index + 1]

    def _dictionary(self) -> dict:
        if not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError("what is given items is no dictionary")
        return self.stack[-1]

    def _new_dictionary(self):
        items = self.pop_mark()
        self.stack.append({_key(items[index]): items[index + 1] for index in range(0, len(items), 2)})

    def _add_items(self):
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise pickle.UnpicklingError("what is given members is no set")
        self.stack[-1].update(map(_key, items))

    def _frame(self):
        self.read(8)  # frames only say how much could be read at once

    def _append(self):
        value = self.stack.pop()
        self._list().append(value)

    def _append_all(self):
        items = self.pop_mark()
        self._list().extend(items)

    def _list(self) -> list:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("what is appended to is no list")
        return self.stack[-1]

    def _frozen_set(self):
        items = self.pop_mark()
        self.append(frozenset(map(_key, items)))

    dispatch = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()
        if bytes([code])
        not in (
            *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX),
            *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
        )
    } | {
        pickle.FRAME[0]: _frame,
        pickle.BUILD[0]: _build,
        pickle.NEWOBJ[0]: _new_object,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _new_dictionary,
        pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _frozen_set,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _append_all,
    }


def _key(key):
    """`key`, if it is what keys are: hashing a tuple a million levels deep ends the process, integers of one hash take hours."""
    parts = key if type(key) is tuple and len(key) <= 16 else (key,)
    if not all(isinstance(part, _KEYS) and (type(part) is not int or abs(part) < 1 << 60) for part in parts):
        raise pickle.UnpicklingError(f"a {type(key).__name__} is a key of a dictionary or a member of a set")
    return key


def bytes_of(content=b""):
    """Stands for `bytes`, which makes as many as a number asks for."""
    if not isinstance(content, bytes):
        raise pickle.UnpicklingError(f"bytes are made of a {type(content).__name__}")
    return content


def _complex(real, imaginary):
    return complex(float(real), float(imaginary))


def inert() -> type:
    """A class for the objects of libraries that need not be installed."""
    return _Inert


def plain(value, _done: dict | None = None, _where: tuple = ()):
    """`value` with tensors where numpy's arrays were.

    Raises:
        UnusableTensor: there is one.
    """
    done = {} if _done is None else _done
    if isinstance(value, Unusable):
        raise UnusableTensor(f"{'.'.join(map(str, _where))[:200]} is a tensor {value.kind}")
    if id(value) in done:  # a container may be in several places, itself included, and is done once
        return done[id(value)][1]
    if isinstance(value, dict):
        done[id(value)] = value, value
        for key in value:  # in place, since a state has attributes beside its items, and a Counter is made from other things
            value[key] = plain(value[key], done, (*_where, key))
    elif type(value) is list:
        done[id(value)] = value, value
        value[:] = [plain(item, done, (*_where, index)) for index, item in enumerate(value)]
    elif type(value) is tuple:
        items = tuple(plain(item, done, (*_where, index)) for index, item in enumerate(value))
        done[id(value)] = value, items  # the old one is kept, so that its id is not given to another object
        return items
    elif isinstance(value, _Array):
        # A copy in native byte order: the array is a read-only view of the pickle's bytes.
        array = getattr(value, "value", None)
        if array is None:
            raise pickle.UnpicklingError("an array of numpy has no content")
        tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
        done[id(value)] = value, tensor
        return tensor
    return value
