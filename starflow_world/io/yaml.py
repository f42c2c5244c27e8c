"""Plain YAML: mappings, lists, numbers and strings. Aliases, tags that build objects, and duplicate keys are errors."""

from pathlib import Path
from typing import Any

from starflow_world.errors import ConfigError
from starflow_world.io.files import is_file

DEEPEST = 16
LARGEST_FILE = 1 << 15


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ConfigError."""
    path, size, text = Path(path), -1, ""
    try:
        if is_file(path) and (size := path.stat().st_size) <= LARGEST_FILE:
            text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        size = -1
    if not 0 <= size <= LARGEST_FILE:
        there = f"{size} bytes" if size >= 0 else "none"
        raise ConfigError(f"{path}: expected YAML of at most {LARGEST_FILE} bytes, found {there}")
    values = parse_yaml(text, path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, found {type(values).__name__}")
    return values


def parse_yaml(text: str, where: Any) -> Any:
    """Parse `text` to plain data; error messages name its source, `where`."""
    import yaml

    depth = 0
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            kind = type(token).__name__
            depth += kind.endswith(("SequenceStartToken", "MappingStartToken"))
            depth -= kind.endswith("EndToken") and kind not in ("StreamEndToken", "DocumentEndToken")
            if depth > DEEPEST or kind == "AliasToken":
                fault = "an alias; write the values out" if kind == "AliasToken" else "deeper nesting"
                raise ConfigError(f"{where}: expected plain YAML, at most {DEEPEST} deep, found {fault}")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_duplicates(node, where)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: expected YAML, found an error: {str(error).partition(chr(10))[0]}") from None


def _refuse_duplicates(node: Any, where: Any) -> None:
    if not hasattr(node, "value") or not isinstance(node.value, list):
        return
    seen: set[str] = set()
    for child in node.value:
        key = child[0].value if isinstance(child, tuple) else None
        if isinstance(key, str):
            if key in seen:
                raise ConfigError(f"{where}: expected each key once, found {key!r:.80} twice")
            seen.add(key)
        for part in child if isinstance(child, tuple) else (child,):
            _refuse_duplicates(part, where)
