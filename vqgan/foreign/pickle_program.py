"""Reading a pickle as data: what it would have built, written down instead of built.

A pickle is a program for a stack machine, and its danger lies in two abilities of Python's machine: looking up any
name of any module (which imports it), and calling what was found. This machine has neither. A name becomes a `Global`,
which is its text; a call becomes a `Call`, which is a record of name and arguments; building an object's state stores
that state in the record. No opcode imports, looks up an attribute, or calls anything that the file names, so what the
names stand for cannot matter. The standard library's `pickletools` splits the file into opcodes and executes none.

Beyond that, names outside a literal list (weights, containers, and what Lightning, OmegaConf and NumPy leave beside
them) are refused by name: a file that asks for `os.system` would do no harm here, but deserves no trust.

The result has no more nodes than the file has opcodes: sharing is by reference, nothing is copied or repeated. How
many opcodes, bytes and digits there may be, and what may be a key, is bounded: a byte of opcodes is up to a hundred in
memory, and whole numbers, unlike text, can be chosen so that all of them fall into one place of a dictionary.
"""

import pickletools
from collections.abc import Callable
from io import BytesIO
from mmap import mmap
from typing import Any

_PACKAGES = (
    *("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf"),
    *("taming", "ldm", "enhancing", "dall_e"),
    *("torch.nn.modules", "torch.nn.parameter", "torch.optim"),
)
"""Packages whose objects are found in weight files; their names are recorded."""

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
_NAMES = {
    "builtins": (
        *("bool", "int", "long", "float", "complex", "bytes", "bytearray", "str", "unicode"),
        *("list", "tuple", "dict", "set", "object"),
    ),
    "copyreg": ("_reconstructor",),
    "_codecs": ("encode",),
    "argparse": ("Namespace",),
    "collections": ("OrderedDict", "defaultdict", "Counter", "deque"),
    "functools": ("partial",),
    "pathlib": ("Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath"),
    "typing": ("Any", "Dict", "List", "Optional", "Tuple", "Union"),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "torch": ("Size", "device", "Tensor", "Generator", *_DTYPES, *(f"{name}Storage" for name in _STORAGES)),
    "torch.cuda": tuple(f"{name}Storage" for name in _STORAGES),
    "torch._utils": ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state"),
}
"""Other names that may occur, by module."""
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Older names of modules, which protocols 0 to 2 use."""


_MOST_OPCODES, _MOST_BYTES = 1_000_000, 1 << 26
"""Of a pickle. A Lightning checkpoint of 2,000 tensors with its optimizer has some 400,000 opcodes, in 10 MB."""
_LONGEST_TEXT, _LARGEST_INTEGER, _LARGEST_KEY = 1 << 20, 1 << 1024, (1 << 61) - 1
"""Characters or bytes of a literal; a whole number; one that is a key: below this, no two have the same hash."""
_LONGEST_KEY, _MOST_TUPLE_KEYS = 1000, 4000
_MOST_MARKS, _LONGEST_STACK = 1000, 100_000
"""Open at a time, and values above a mark: picklers nest as deep as objects do, and fill containers by the thousand."""


class PickleRefusedError(ValueError):
    """Not a complete pickle, or one that asks for more than weights need."""


class Global:
    """A name that the pickle refers to; never looked up."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Call:
    """An object that the pickle would have built: called name, arguments, and what was put into it afterwards."""

    __slots__ = ("arguments", "elements", "items", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.elements: list[Any] = []


class Persistent:
    """A reference to something that lies outside of the pickle: a tensor's storage."""

    __slots__ = ("identity",)

    def __init__(self, identity: Any) -> None:
        self.identity = identity


def read_pickle(stream: BytesIO | mmap, references: list[Persistent] | None = None) -> Any:
    """What the pickle at the stream's position describes: plain containers, `Global`, `Call` and `Persistent`.

    Every `Persistent` is also added to `references`. Leaves the stream behind the pickle's last byte. Sets become
    lists. Only streams that take no memory for bytes that are not there, whatever length the file claims. Raises
    PickleRefusedError for a name off the list, naming it, and for anything that is not a complete pickle.
    """
    machine = _Machine([] if references is None else references)
    start = stream.tell()
    try:
        for count, (opcode, argument, place) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if count >= _MOST_OPCODES or (place or 0) - start > _MOST_BYTES:
                raise PickleRefusedError(
                    f"its pickle has more than {_MOST_OPCODES} operations or {_MOST_BYTES} bytes, which no weights need"
                )
            # The loop is most of the cost of a long pickle: nothing is called for what has no argument to check.
            if argument is not None:
                _check_size(argument)
            machine.step(opcode.name, argument)
            if len(machine.stack) > _LONGEST_STACK:
                raise PickleRefusedError(f"it leaves more than {_LONGEST_STACK} values lying, which no weights need")
        return machine.pop()
    except PickleRefusedError:
        raise
    # What a damaged program can do to the machine: an empty stack, a missing memo, a value of the wrong kind.
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise PickleRefusedError(f"not a complete pickle ({' '.join(str(error).split())[:80]})") from None


class _Machine:
    """The stack, the marks and the memo. One method for each group of opcodes; anything else is refused."""

    def __init__(self, references: list[Persistent]) -> None:
        self.references = references
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.tuple_keys = 0

    def pop(self) -> Any:
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _MEMO_READS:
            self.stack.append(self.memo[int(argument)])
        elif name in _MEMO_WRITES:
            self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise PickleRefusedError(f"it uses the pickle operation {name}, which weights do not need")

    def to_mark(self) -> list[Any]:
        """The values above the last mark, taken off the stack."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def mark(self, _: Any) -> None:
        if len(self.marks) >= _MOST_MARKS:
            raise PickleRefusedError(f"it has more than {_MOST_MARKS} open marks, which no weights need")
        self.marks.append(self.stack)
        self.stack = []

    def pop_any(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def pop_mark(self, _: Any) -> None:
        self.to_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]

    def list_to_mark(self, _: Any) -> None:
        values = self.to_mark()
        self.stack.append(values)

    def tuple_to_mark(self, _: Any) -> None:
        values = self.to_mark()
        self.stack.append(tuple(values))

    def dict_to_mark(self, _: Any) -> None:
        values = self.to_mark()
        self.stack.append({})
        self.set_items(values)

    def append_one(self, _: Any) -> None:
        self.extend([self.pop()])

    def append_to_mark(self, _: Any) -> None:
        self.extend(self.to_mark())

    def extend(self, values: list[Any]) -> None:
        owner = self.stack[-1]
        (owner.elements if isinstance(owner, Call) else _expect(owner, list)).extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_to_mark(self, _: Any) -> None:
        self.set_items(self.to_mark())

    def set_items(self, values: list[Any]) -> None:
        owner = self.stack[-1]
        items = owner.items if isinstance(owner, Call) else _expect(owner, dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            items[_expect_key(key)] = value
            self.tuple_keys += isinstance(key, tuple)
        if self.tuple_keys > _MOST_TUPLE_KEYS:
            raise PickleRefusedError(f"it has more than {_MOST_TUPLE_KEYS} keys of several parts")

    def find(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(_global(module, name))

    def find_on_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(_global(_expect(module, str), _expect(name, str)))

    def instance(self, argument: str) -> None:
        arguments = self.to_mark()
        self.find(argument)
        self.call(self.pop(), tuple(arguments))

    def object_to_mark(self, _: Any) -> None:
        function, *arguments = self.to_mark()
        self.call(function, tuple(arguments))

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self.call(function, _expect(arguments, tuple))

    def new_with_keywords(self, _: Any) -> None:
        keywords, arguments, function = self.pop(), self.pop(), self.pop()
        self.call(function, (*_expect(arguments, tuple), keywords))

    def call(self, function: Any, arguments: tuple[Any, ...]) -> None:
        """Record the call of a name; containers are made at once."""
        name = _expect(function, Global).name
        if name == "collections.OrderedDict" and not arguments:
            self.stack.append({})
        elif name == "torch.Size":
            self.stack.append(_expect(arguments[0], tuple))
        elif name == "builtins.set":
            self.stack.append(_expect(arguments[0], list))
        elif name == "copyreg._reconstructor":  # (class, base, initial value): how protocols 0 and 1 make an object
            self.stack.append(Call(_expect(arguments[0], Global).name, ()))
        else:
            self.stack.append(Call(name, arguments))

    def build(self, _: Any) -> None:
        state = self.pop()
        # Attributes of a container (the `_metadata` of a state dict) are not its contents.
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state

    def persistent(self, identity: Any) -> None:
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            self.stack.append(_expect(identity[1], Global))  # torch before 1.6: a class beside its source text
        else:
            self.references.append(Persistent(identity))
            self.stack.append(self.references[-1])

    def persistent_on_stack(self, _: Any) -> None:
        self.persistent(self.pop())


def _global(module: str, name: str) -> Global:
    module = _PYTHON_2.get(module, module)
    full = f"{module}.{name}"
    if name not in _NAMES.get(module, ()) and not any(full.startswith(f"{package}.") for package in _PACKAGES):
        shown = full[:100] if full.isprintable() else ascii(full[:100])
        raise PickleRefusedError(f"it asks for {shown}, which weights do not need; nothing of it was run")
    return Global(full)


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected, found {type(value).__name__}")
    return value


def _check_size(argument: Any) -> None:
    """Raises PickleRefusedError for a literal larger than any that describes weights."""
    if isinstance(argument, str | bytes | bytearray) and len(argument) > _LONGEST_TEXT:
        raise PickleRefusedError(f"it has a text of {len(argument)} characters, which no weights need")
    if isinstance(argument, int) and not -_LARGEST_INTEGER < argument < _LARGEST_INTEGER:
        raise PickleRefusedError(f"it has a whole number of {argument.bit_length()} bits, which no weights need")


def _expect_key(key: Any) -> Any:
    """Keys are short scalars or names: the hash of nested tuples could take for ever, and comparing long text too."""
    if isinstance(key, tuple) and len(key) <= 8 and not any(isinstance(part, tuple) for part in key):
        return tuple(_expect_key(part) for part in key)
    if key is not None and not isinstance(key, str | bytes | int | float | Global | Call):
        raise TypeError(f"a {type(key).__name__} as a key")
    if isinstance(key, str | bytes) and len(key) > _LONGEST_KEY:
        raise PickleRefusedError(f"it has a key of {len(key)} characters, which no weights need")
    if isinstance(key, int) and not -_LARGEST_KEY < key < _LARGEST_KEY:
        raise PickleRefusedError("it has a key of more than 61 bits, which no weights need")
    return key


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MEMO_READS = {"GET", "BINGET", "LONG_BINGET"}
_MEMO_WRITES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop_any,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_SET": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_to_mark,
    "LIST": _Machine.list_to_mark,
    "FROZENSET": _Machine.list_to_mark,
    "DICT": _Machine.dict_to_mark,
    "APPEND": _Machine.append_one,
    "APPENDS": _Machine.append_to_mark,
    "ADDITEMS": _Machine.append_to_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_to_mark,
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.find_on_stack,
    "INST": _Machine.instance,
    "OBJ": _Machine.object_to_mark,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.persistent_on_stack,
}
