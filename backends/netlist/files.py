"""A netlist on disk: `name.pcnet.json` and, for its tensors, `name.safetensors` beside it.

The text is canonical: fields in the order of the types, populations and projections in the circuit's own order,
defaults left out, numbers in their shortest exact form. Equal circuits give equal bytes.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from pccompile.backends.netlist.check import check
from pccompile.backends.netlist.format import VERSION, Spec, Tensor
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.transforms import fresh
from pccompile.diagnostics import Collector, CompileError, first_line, printable
from pccompile.files.reading import open_file, read_file
from pccompile.files.writing import SEAL, Write, check_folder, check_replaceable, write_together
from pccompile.ir.names import identifier

ENDING = ".pcnet.json"
LARGEST = 64 << 20
"""The most bytes of a description."""

_ALWAYS = ("format", "version", "generator", "semantics", "mode", "update")
_DTYPES = {"F64": "float64", "F32": "float32", "I64": "int64", "I32": "int32"}


def text(spec: Spec) -> str:
    """The canonical JSON text of a description: a line for each population, projection, rule and tensor."""
    record = plain(msgspec.convert(plain(spec), Spec))
    return "{\n" + ",\n".join(f" {json.dumps(k)}: {_entry(v)}" for k, v in record.items()) + "\n}\n"


def _entry(value: Any) -> str:
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"  {json.dumps(v)}" for v in value) + "\n ]"
    return json.dumps(value)


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, str, Any], ...]:
    """The fields of a record, how they are written, and their defaults."""
    return tuple(
        (f.name, f.encode_name, f.default_factory() if f.default_factory is not msgspec.NODEFAULT else f.default)
        for f in msgspec.structs.fields(kind)
    )


def plain(value: Any) -> Any:
    """Records, arrays' numbers and named strings as what JSON has; fields with their defaults are left out."""
    match value:
        case msgspec.Struct():
            return {
                written: plain(field)
                for name, written, default in _fields(type(value))
                if (field := getattr(value, name)) != default or (name in _ALWAYS and field is not None)
            }
        case Mapping():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
        case str():
            return str(value)
        case np.generic():
            return value.item()
    return value


def parse(data: bytes) -> Spec:
    """The description that a JSON text is; it is not checked any further. Raises CompileError."""
    try:
        record = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_number,
            parse_int=_whole,
            parse_float=_finite,
        )
        _supported(record)
        return msgspec.convert(record, Spec)
    except msgspec.ValidationError as e:
        raise CompileError(f"not a netlist: {e}") from e
    except RecursionError as e:
        raise CompileError("not a netlist: nested too deeply") from e
    except ValueError as e:
        raise CompileError(f"not a netlist: {first_line(e)}") from e


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = next(k for k, count in Counter(k for k, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} is there twice")
    return table


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _whole(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError(f"{digits[:20]}… is beyond all whole numbers of the format")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits[:20])


def _supported(record: Any) -> None:
    """Raise ValueError for what is of another format, or of a version that this reader does not know."""
    if not isinstance(record, dict) or record.get("format") != "pcnetlist":
        raise ValueError('it does not say "format": "pcnetlist"')
    version = record.get("version")
    if not isinstance(version, str) or version.partition(".")[0] != VERSION.partition(".")[0]:
        raise ValueError(f"it is of version {version!r}; this reads {VERSION}")


def paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The two files of a netlist called `name`."""
    stem = identifier(name)
    return folder / f"{stem}{ENDING}", folder / f"{stem}.safetensors"


def check_writable(folder: Path, name: str) -> None:
    """Raise CompileError where saving would fail or destroy what pccompile did not write, or somebody edited."""
    check_folder(folder)
    check_replaceable(paths(folder, name))


def save(net: Netlist, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a netlist that holds together; return the paths of its description and of its tensors.

    Both are written or neither. Raises CompileError.
    """
    description, data = paths(folder, name)
    net = _with_examples(net)
    spec = msgspec.structs.replace(net.spec, generator=SEAL, tensor_file=data.name if net.tensors else None)
    check(spec, net.tensors)
    check_writable(folder, name)
    arrays = {k: np.asarray(a, order="C") for k, a in net.tensors.items()}
    files: dict[str, Write] = {
        data.name: lambda path: save_file(arrays, path, metadata={"generator": SEAL}),
        description.name: lambda path: path.write_text(text(spec), encoding="ascii"),
    }
    write_together(folder, files)
    return description, data


def load(path: Path) -> Netlist:
    """The netlist that a description and the tensors beside it are, checked. Raises CompileError with all problems."""
    spec = parse(read_file(path, LARGEST))
    tensors = _tensors(spec, path.parent)
    check(spec, tensors)
    return _without_examples(spec, tensors)


def _tensors(spec: Spec, folder: Path) -> dict[str, np.ndarray]:
    """The tensors that a description says lie beside it; read only if the file has those and no others."""
    if spec.tensor_file is None:
        if spec.tensors:
            raise CompileError("there are tensors, and no tensor_file to hold them")
        return {}
    file, name = folder / spec.tensor_file, spec.tensor_file
    if not name.endswith(".safetensors") or re.search(r"[/\\:\0]", name) or not name.isprintable():
        raise CompileError(f"tensor_file {name!r} is not the plain name of a safetensors file")
    open_file(file).close()  # for what it refuses
    try:
        if file.resolve().parent != folder.resolve():
            raise CompileError(f"tensor_file {name!r} leads out of the folder of the description")
        with safe_open(file, framework="numpy") as stored:
            collector = Collector()
            for problem in _differences(spec.tensors, {k: stored.get_slice(k) for k in stored.keys()}):  # noqa: SIM118
                collector.add(problem)
            collector.raise_if_any()
        return dict(load_file(file))
    except (OSError, SafetensorError, ValueError) as e:
        raise CompileError(f"cannot read {printable(str(file))}: {first_line(e)}") from e


def _differences(said: Mapping[str, Tensor], stored: Mapping[str, Any]) -> Iterator[str]:
    """What a side file has otherwise than the description says."""
    for name in said.keys() - stored.keys():
        yield f"tensor {name} is not in the side file"
    for name in stored.keys() - said.keys():
        yield f"tensor {name} of the side file is not described"
    for name in said.keys() & stored.keys():
        shape, dtype = tuple(stored[name].get_shape()), stored[name].get_dtype()
        if shape != said[name].shape or _DTYPES.get(dtype) != said[name].dtype:
            yield f"tensor {name} is {dtype} {list(shape)}, described as {said[name].dtype} {list(said[name].shape)}"


def _with_examples(net: Netlist) -> Netlist:
    """`net` with its drawn numbers among its tensors."""
    draws, tensors, described = dict(net.spec.draws), dict(net.tensors), dict(net.spec.tensors)
    for port, p in net.spec.draws.items():
        drawn = net.drawn.get(port)
        if drawn is not None:
            name = fresh(f"#drawn.{port}", tensors)
            array = drawn.astype(np.float64 if drawn.dtype.kind == "f" else np.int64)
            tensors[name], described[name] = array, Tensor.of(array)
            draws[port] = msgspec.structs.replace(p, example=name)
    return Netlist(msgspec.structs.replace(net.spec, draws=draws, tensors=described), tensors, net.drawn)


def _without_examples(spec: Spec, tensors: Mapping[str, np.ndarray]) -> Netlist:
    """A netlist whose drawn numbers are apart from its tensors."""
    examples = {port: p.example for port, p in spec.draws.items() if p.example is not None}
    drawn = {port: tensors[name] for port, name in examples.items()}
    spec = msgspec.structs.replace(
        spec,
        draws={k: msgspec.structs.replace(p, example=None) for k, p in spec.draws.items()},
        tensors={k: t for k, t in spec.tensors.items() if k not in examples.values()},
    )
    return Netlist(spec, {k: tensors[k] for k in spec.tensors}, drawn)


def schema() -> str:
    """The JSON Schema of descriptions, from the types."""
    definition = msgspec.json.schema(Spec)
    for kind in definition["$defs"].values():
        kind["description"] = inspect.cleandoc(kind["description"])
    definition["$defs"]["Spec"]["required"] = ["format", "version", *definition["$defs"]["Spec"]["required"]]
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"pcnetlist {VERSION}"}
    return json.dumps({**draft, **definition}, indent=1, ensure_ascii=False) + "\n"
