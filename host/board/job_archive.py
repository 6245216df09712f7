"""Archives of job files: their members, manifest and checksums, and the one form of arrays in them.

Nothing in an archive is code, and nothing is unpickled: ``.npy`` headers are matched against one fixed form.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from host.arrays import Array
from host.board.operations import JobError
from hw.files import replaced

FORMAT, VERSION = "fractrain-job", 3
MAX_FILE = 1 << 31  #: bytes of an archive, and of its members together
MAX_MEMBERS = 8192
MAX_JSON = 1 << 26
MAX_ELEMENTS = 1 << 27  #: of one tensor

_DTYPES: dict[str, np.dtype[Any]] = {"<f4": np.dtype("<f4"), "<i8": np.dtype("<i8"), "|u1": np.dtype("|u1")}
_NPY = re.compile(
    rb"\{'descr': '(<f4|<i8|\|u1)', 'fortran_order': False, 'shape': (\((?:\d{1,10}, ?)*(?:\d{1,10},?)?\)), \} *\n"
)
_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}(?:/[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}){0,3}")


# -- writing ------------------------------------------------------------------------------------------------------


def npy_bytes(array: Array) -> bytes:
    """A ``.npy`` file (version 1.0, C order) of a float32, int64 or uint8 array."""
    kinds = {"f4": "<f4", "i8": "<i8", "u1": "|u1"}
    key = array.dtype.str[1:]
    if key not in kinds:
        raise ValueError(f"a job holds float32, int64 and uint8 arrays, not {array.dtype}")
    shape = "(" + "".join(f"{n}, " for n in array.shape).rstrip(" ") + ")"
    if array.ndim != 1:
        shape = "(" + ", ".join(map(str, array.shape)) + ")"
    header = f"{{'descr': '{kinds[key]}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    data = np.ascontiguousarray(array).astype(_DTYPES[kinds[key]], copy=False).tobytes()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def write_job(path: Path, document: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a job file in one step; the same contents give the same bytes.

    Args:
        path: of the archive.
        document: what becomes ``job.json``.
        arrays: member name (ending in ``.npy``) -> array.
    """
    members = {name: npy_bytes(array) for name, array in arrays.items()}
    members["job.json"] = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    write_members(path, members)


def write_members(path: Path, members: Mapping[str, bytes]) -> None:
    """Write an archive of the given members and their manifest in one step."""
    table = {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in sorted(members.items())}
    manifest = json.dumps({"format": FORMAT, "version": VERSION, "members": table}, sort_keys=True).encode()
    with replaced(path) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [("manifest.json", manifest), *sorted(members.items())]:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)


# -- reading ------------------------------------------------------------------------------------------------------


def parse_npy(data: bytes, name: str) -> Array:
    """Array of a ``.npy`` file of the one form that :func:`npy_bytes` writes.

    Raises:
        JobError: any other form, or a length that differs from the shape.
    """
    if data[:8] != b"\x93NUMPY\x01\x00" or len(data) < 10:
        raise JobError(f"{name} is not a .npy file of version 1.0; export the job again")
    size = int.from_bytes(data[8:10], "little")
    match = _NPY.fullmatch(data[10 : 10 + size])
    if match is None:
        raise JobError(f"{name} has a header other than plain float32, int64 or uint8 in C order; export the job again")
    dtype = _DTYPES[match[1].decode()]
    shape = tuple(int(n) for n in re.findall(rb"\d+", match[2]))
    if len(shape) > 8 or math.prod(shape) > MAX_ELEMENTS * 8:
        raise JobError(f"{name} has the shape {shape}, beyond what a job may hold")
    if math.prod(shape) * dtype.itemsize != len(data) - 10 - size:
        raise JobError(f"{name} has {len(data) - 10 - size} bytes for shape {shape} of {dtype}; export the job again")
    return np.frombuffer(data, dtype=dtype, offset=10 + size).reshape(shape)


def parse_json(data: bytes, name: str) -> Any:
    """Strict JSON: no NaN, no numbers of more than 20 digits, no repeated keys.

    Raises:
        JobError: anything else.
    """

    def refuse(text: str) -> Any:
        raise ValueError(f"the number {text[:30]}")

    def integer(text: str) -> int:
        if len(text) > 20:
            refuse(text)
        return int(text)

    def number(text: str) -> float:
        value = float(text) if len(text) <= 40 else math.inf
        if not math.isfinite(value):
            refuse(text)
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise ValueError("a repeated key")
        return found

    if len(data) > MAX_JSON:
        raise JobError(f"{name} has {len(data)} bytes, more than {MAX_JSON}")
    try:
        return json.loads(data, parse_constant=refuse, parse_int=integer, parse_float=number, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as e:
        raise JobError(f"{name} is not valid JSON ({e}); export the job again") from e


def mapping(value: Any, what: str) -> dict[str, Any]:
    """``value``, which must be an object of JSON.

    Raises:
        JobError: it is not; ``what`` names it.
    """
    if not isinstance(value, dict):
        raise JobError(f"{what} is {type(value).__name__}, not an object")
    return value


def read_members(path: Path) -> tuple[dict[str, bytes], str]:
    """Members of a job file, each checked against the manifest, and the manifest's SHA-256.

    Raises:
        JobError: not a zip, another format or version, or a member that is missing, extra, too large or changed.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise JobError(f"{path.name} has {size} bytes, more than {MAX_FILE}")
        blob = path.read_bytes()
    except OSError as e:
        raise JobError(f"job {path} cannot be read: {e.strerror or e}") from e
    return members_of(blob, path.name)


def members_of(blob: bytes, name: str) -> tuple[dict[str, bytes], str]:
    """As :func:`read_members`, of an archive in memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            infos = archive.infolist()
            if len(infos) > MAX_MEMBERS or sum(i.file_size for i in infos) > MAX_FILE:
                raise JobError(
                    f"{name} holds {len(infos)} members of {sum(i.file_size for i in infos)} bytes: too much"
                )
            if len({i.filename for i in infos}) != len(infos):
                raise JobError(f"{name} holds a member twice; export the job again")
            found = {}
            for info in infos:
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                    raise JobError(f"{name}: member {info.filename!r} is encrypted or oddly compressed")
                with archive.open(info) as stream:
                    data = stream.read(info.file_size + 1)
                if len(data) != info.file_size:
                    raise JobError(f"{name}: member {info.filename!r} is longer than it says")
                found[info.filename] = data
    except JobError:
        raise
    except Exception as e:  # zipfile raises struct.error, zlib.error, EOFError and more on broken archives
        raise JobError(f"{name} is not an intact zip archive ({type(e).__name__}: {e}); copy or export it again") from e
    if "manifest.json" not in found:
        raise JobError(f"{name} has no manifest.json; it is not a job file")
    raw = found.pop("manifest.json")
    manifest = mapping(parse_json(raw, "manifest.json"), "manifest.json")
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise JobError(
            f"{name} is {manifest.get('format')!r} version {manifest.get('version')!r}, this program reads {FORMAT!r} "
            f"version {VERSION}; export the job with the same release"
        )
    table = mapping(manifest.get("members"), "members of manifest.json")
    if set(table) != set(found):
        odd = sorted(set(table) ^ set(found))[0]
        raise JobError(f"{name}: member {odd!r} is in the archive or in the manifest, not in both")
    for member, data in found.items():
        row = mapping(table[member], f"manifest row of {member}")
        if row.get("bytes") != len(data) or row.get("sha256") != hashlib.sha256(data).hexdigest():
            raise JobError(f"{name}: member {member} differs from its checksum; copy or export the job again")
        if not _MEMBER.fullmatch(member):
            raise JobError(f"{name}: {member!r} is no name for a member")
    return found, hashlib.sha256(raw).hexdigest()
