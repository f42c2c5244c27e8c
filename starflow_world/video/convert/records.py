"""The content of a pickle as plain data; nothing in it is imported, called or constructed.

torch's distributed checkpoints keep their table of contents in a pickle. This module interprets its opcodes; an object
becomes a `Record` of the name of its class, its arguments and its state. Only the few classes of such tables are
accepted; any other class raises an error that names it.
"""

import pickletools
from dataclasses import dataclass
from typing import Any

LARGEST = 1 << 28
CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}
MARK = object()
EMPTY: dict[str, Any] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
NOTHING = {"PROTO", "FRAME"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS_AND_TEXT = {
    "BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "UNICODE", "SHORT_BINBYTES", "BINBYTES", "SHORT_BINSTRING", "BINSTRING",
}


@dataclass
class Record:
    """Description of an object that was not constructed: `kind` (class name), `arguments`, `state`."""

    kind: str
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __hash__(self) -> int:
        return id(self)

    def get(self, name: str) -> Any:
        """Return a field of the state."""
        return self.state[name]


def read_records(data: bytes) -> Any:
    """Return the content of a pickle. Raises ValueError that names the first unsupported item."""
    if len(data) > LARGEST:
        raise ValueError(f"a table of contents of {len(data)} bytes, more than {LARGEST}")
    return _Machine().run(data)


class _Machine:
    """An interpreter of pickle opcodes, with stack, marks and memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.do(opcode.name, argument)
        raise ValueError("a pickle without an end")

    def do(self, name: str, argument: Any) -> None:
        stack, memo = self.stack, self.memo
        if name in NUMBERS_AND_TEXT:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self.marked()))
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name in ("SETITEMS", "SETITEM", "APPENDS", "APPEND", "ADDITEMS"):
            self.put(name)
        elif name in ("GLOBAL", "STACK_GLOBAL", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"):
            self.record(name, argument)
        elif name not in NOTHING:
            raise ValueError(f"the opcode {name}")

    def marked(self) -> list[Any]:
        """Pop the items above the last mark, and the mark."""
        place = len(self.stack) - 1 - next(i for i, item in enumerate(reversed(self.stack)) if item is MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def put(self, name: str) -> None:
        """Add items to the dictionary or list below them."""
        if not name.endswith("S"):
            self.stack.insert(-2 if name == "SETITEM" else -1, MARK)
        items, target = self.marked(), self.stack[-1]
        if name.startswith("SETITEM") and isinstance(target, dict):
            target.update(zip(items[::2], items[1::2], strict=True))
        elif not name.startswith("SETITEM") and isinstance(target, list):
            target.extend(items)
        else:
            raise ValueError(f"items for a {type(target).__name__}")

    def record(self, name: str, argument: Any) -> None:
        """Make a record, or set its arguments or state."""
        if name in ("GLOBAL", "STACK_GLOBAL"):
            module, kind = argument.split(" ", 1) if name == "GLOBAL" else (self.stack.pop(-2), self.stack.pop())
            if kind not in CLASSES.get(module, ()):
                raise ValueError(f"a reference to {module}.{kind}, which may run code")
            self.stack.append({} if kind == "OrderedDict" else Record(kind))
            return
        state = self.stack.pop()
        arguments = self.stack.pop() if name == "NEWOBJ_EX" else state
        target = self.stack[-1]
        if isinstance(target, dict) and name == "REDUCE":
            self.stack[-1] = {}
        elif not isinstance(target, Record):
            raise ValueError(f"a state for a {type(target).__name__}")
        elif name == "BUILD":
            target.state = state
        else:
            self.stack[-1] = Record(target.kind, tuple(arguments))
