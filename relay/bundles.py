"""Apps as bundles: bytes with a digest, stored as an object of their run.

Two kinds:

``object``
    One app, by cloudpickle. The submitter's own modules travel by value, so that a node needs third-party packages
    only. ServerApp and ClientApp are packed separately: a node never unpickles the ServerApp, and need not have what
    only that one uses. Behind a line that names the version of Python comes the pickle.
``project``
    A project directory as a zip archive, the same bytes for the same files. It is extracted by its digest, and put on
    the path of the process that executes the app.

Loading a bundle runs its code. Whether to do so is decided before, by the digest (see the node's trust policy).
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import io
import json
import os
import shutil
import site
import sys
import sysconfig
import tempfile
import traceback as traceback_module
import types
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import cloudpickle
import msgspec

from fedq.apps.client_app import ClientApp
from fedq.apps.digest import digest_of
from fedq.apps.errors import AppError
from fedq.apps.server_app import ServerApp
from fedq.relay.errors import RelayError
from fedq.relay.objects import Buffer
from fedq.relay.project import Project, check_app, load_reference

App = TypeVar("App", ServerApp, ClientApp)

OBJECT = "object"
PROJECT = "project"

MAX_BYTES = 64 * 1024 * 1024
"""A bundle is code. Data belongs to the nodes, and models into messages."""

MANIFEST = ".fedq-app.json"
_MAGIC = b"fedq-object "
_EPOCH = (1980, 1, 1, 0, 0, 0)

NEVER = ("__pycache__", "node_modules", "*.egg-info", "*.pyc", "*.pyo", "venv", "build", "dist")
"""What never travels, wherever it is in a project; nor does anything whose name begins with a dot."""
OUTPUT = ("data", "datasets", "output", "outputs", "results", "runs", "logs", "wandb", "mlruns", "fedq-demo")
"""Folders at the top of a project that do not travel unless they are Python packages."""


class BundleError(AppError):
    """An app cannot be packed."""


class LoadError(RelayError):
    """A bundle cannot be loaded here. The text says why; ``traceback`` is there if the app's code raised."""

    def __init__(self, message: str, traceback: str | None = None) -> None:
        super().__init__(message)
        self.traceback = traceback


@dataclass(frozen=True, slots=True)
class Bundle:
    """A packed app."""

    kind: str
    data: bytes

    @property
    def digest(self) -> str:
        """BLAKE3 digest of the data, in hexadecimal: what an operator pins, and what is signed."""
        return digest_of(self.data)


# -- objects ----------------------------------------------------------------------------------------------------------


def pack_object(app: ServerApp | ClientApp) -> Bundle:
    """An app as an object. Raises BundleError for what cannot be pickled or is too large."""
    kind = type(app).__name__ if isinstance(app, ServerApp | ClientApp) else "app"
    with _own_modules_by_value():
        try:
            data = cloudpickle.dumps(app)
        except Exception as error:
            raise BundleError(
                f"the {kind} cannot be packed: {type(error).__name__}: {error}. What its functions refer to travels "
                "with it: make connections, locks, open files and the like inside the functions"
            ) from error
    head = json.dumps({"python": _python()}).encode()
    return _checked(Bundle(OBJECT, _MAGIC + head + b"\n" + data), f"the {kind}")


@contextlib.contextmanager
def _own_modules_by_value() -> Iterator[None]:
    """While inside, cloudpickle takes every module of the submitter by value: what no other machine has."""
    registered: list[types.ModuleType] = []
    known = set(cloudpickle.list_registry_pickle_by_value())
    for name, module in list(sys.modules.items()):
        if name in known or not isinstance(module, types.ModuleType) or not is_own(name, module):
            continue
        # It is asked for by name when it is looked up later.
        if sys.modules.get(module.__name__) is module:
            cloudpickle.register_pickle_by_value(module)
            registered.append(module)
    try:
        yield
    finally:
        for module in registered:
            with contextlib.suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(module)


def is_own(name: str, module: types.ModuleType) -> bool:
    """Whether a module is the submitter's own: neither installed, nor of Python, nor of this package."""
    if name.partition(".")[0] in ("fedq", "__main__", "__mp_main__"):  # cloudpickle takes __main__ by value anyway
        return False
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return False
    path = os.path.realpath(file)
    if "site-packages" in path or "dist-packages" in path:
        return False
    return not any(path.startswith(folder) for folder in _installed_folders())


@cache
def _installed_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {sysconfig.get_path(name) for name in names}
    with contextlib.suppress(AttributeError):
        folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.realpath(folder) + os.sep for folder in folders if folder)


# -- projects ---------------------------------------------------------------------------------------------------------


def pack_project(project: Project) -> Bundle:
    """A project directory as a zip archive. Raises BundleError if it is too large, naming the largest files."""
    buffer = io.BytesIO()
    manifest = {"serverapp": project.server, "clientapp": project.client, "name": project.name}
    files = list(project_files(project))
    total = sum(path.stat().st_size for path in files)
    if total > MAX_BYTES:
        largest = sorted(files, key=lambda path: path.stat().st_size, reverse=True)[:3]
        named = ", ".join(f"{_inside(project, path)} ({path.stat().st_size >> 20} MiB)" for path in largest)
        raise BundleError(
            f"the project {project.root} has {total >> 20} MiB of files, and an app may have {MAX_BYTES >> 20}; the "
            f"largest are {named}: list what does not belong to the app under tool.fedq.app.exclude"
        )
    # Stored, not deflated: the same files give the same bytes, whatever version of zlib is there.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(MANIFEST), json.dumps(manifest, sort_keys=True))
        for path in files:
            archive.writestr(_entry(_inside(project, path)), path.read_bytes())
    return _checked(Bundle(PROJECT, buffer.getvalue()), f"the project {project.root}")


def project_files(project: Project) -> Iterator[Path]:
    """The files of a project that travel, in a fixed order."""
    for folder, names, files in os.walk(project.root):
        here = Path(folder)
        names[:] = sorted(name for name in names if _travels(project, here / name))
        for name in sorted(files):
            path = here / name
            if path.is_file() and _travels(project, path):
                yield path


def _travels(project: Project, path: Path) -> bool:
    name, inside = path.name, _inside(project, path)
    if name.startswith(".") or any(fnmatch.fnmatch(name, pattern) for pattern in NEVER):
        return False
    if path.is_dir() and (path / "pyvenv.cfg").exists():
        return False
    if path.parent == project.root and path.is_dir() and name in OUTPUT and not (path / "__init__.py").exists():
        return False
    patterns = [pattern.rstrip("/") for pattern in project.exclude]
    return not any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(inside, pattern) for pattern in patterns)


def _inside(project: Project, path: Path) -> str:
    return path.relative_to(project.root).as_posix()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    entry.create_system = 3
    return entry


# -- loading ----------------------------------------------------------------------------------------------------------


def load_client_app(kind: str, data: Buffer, digest: str, folder: Path) -> ClientApp:
    """The ClientApp of a bundle. Runs its code. Projects are extracted under ``folder``. Raises LoadError."""
    return _load(ClientApp, kind, data, digest, folder)


def load_server_app(kind: str, data: Buffer, digest: str, folder: Path) -> ServerApp:
    """The ServerApp of a bundle; see :func:`load_client_app`."""
    return _load(ServerApp, kind, data, digest, folder)


def _load(wanted: type[App], kind: str, data: Buffer, digest: str, folder: Path) -> App:
    try:
        if kind == OBJECT:
            found = _load_object(data)
        elif kind == PROJECT:
            found = _load_project(wanted, data, digest, folder)
        else:
            raise LoadError(f"the app is packed as {kind!r}, which this version of fedq does not know")
        app: App = check_app(found, wanted, "what the bundle holds")
    except LoadError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "?").partition(".")[0]
        wants = "'fedq[flower]'" if package == "flwr" else package
        raise LoadError(
            f"the {wanted.__name__} needs the Python package {package!r}, which is not installed here: "
            f"install it where it runs (such as with pip install {wants})",
            traceback_module.format_exc(),
        ) from error
    except (Exception, SystemExit) as error:
        raise LoadError(
            f"the {wanted.__name__} cannot be loaded: {type(error).__name__}: {error}", traceback_module.format_exc()
        ) from error
    return app


def _load_object(data: Buffer) -> Any:
    raw = bytes(data)
    if raw.startswith(_MAGIC):
        line, _, raw = raw[len(_MAGIC) :].partition(b"\n")
        packed = str(msgspec.json.decode(line).get("python"))
        if packed != _python():
            raise LoadError(
                f"the app was packed by Python {packed}, and this is Python {_python()}: functions travel between "
                "equal versions only; submit with that version, or submit a project directory, which has no such limit"
            )
    return cloudpickle.loads(raw)


def _load_project(wanted: type[ServerApp] | type[ClientApp], data: Buffer, digest: str, folder: Path) -> Any:
    place = extract(data, digest, folder)
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    reference = str(manifest["serverapp" if wanted is ServerApp else "clientapp"])
    _forget_namesakes(place)
    # They stay there: the app may import within its functions.
    for entry in reversed([str(folder) for folder in _roots(place)]):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    importlib.invalidate_caches()
    return load_reference(reference, wanted, folder=place)


def extract(data: Buffer, digest: str, folder: Path) -> Path:
    """Extract a project's archive to ``folder/<digest>``, whole or not at all; returns that folder.

    Raises LoadError for an archive that is damaged or would write elsewhere.
    """
    place = folder / digest
    if (place / MANIFEST).is_file():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder))
    try:
        try:
            with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
                _check_archive(archive)
                archive.extractall(draft)
        except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError) as error:
            raise LoadError(f"the project's archive is damaged: {error}") from error
        try:
            draft.rename(place)
        except OSError:
            if not (place / MANIFEST).is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def _check_archive(archive: zipfile.ZipFile) -> None:
    total = 0
    for entry in archive.infolist():
        path = PurePosixPath(entry.filename)
        link = (entry.external_attr >> 28) == 0o12
        if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or link:
            raise LoadError(f"the project's archive is refused: it holds {entry.filename!r}, which leads out of it")
        total += entry.file_size
    if total > MAX_BYTES * 2:
        raise LoadError(f"the project's archive is refused: it would take {total >> 20} MiB")
    if MANIFEST not in archive.namelist():
        raise LoadError("the project's archive lacks its manifest")


def _roots(place: Path) -> list[Path]:
    """The folders that a project's modules are imported from: its own, and ``src`` where it has that layout."""
    src = place / "src"
    return [place, src] if src.is_dir() and not (src / "__init__.py").exists() else [place]


def _forget_namesakes(place: Path) -> None:
    """Modules of another project that have the names of this one's must not stand in for them."""
    inner = [path for root in _roots(place) for path in root.iterdir()]
    own = {path.stem for path in inner if path.is_dir() or path.suffix == ".py"}
    inside = os.path.realpath(place) + os.sep
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in own:
            continue
        file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
        if isinstance(file, str) and not os.path.realpath(file).startswith(inside) and not _is_installed(file):
            del sys.modules[name]


def _is_installed(file: str) -> bool:
    path = os.path.realpath(file)
    return "site-packages" in path or any(path.startswith(folder) for folder in _installed_folders())


def _checked(bundle: Bundle, what: str) -> Bundle:
    if len(bundle.data) > MAX_BYTES:
        raise BundleError(
            f"{what} takes {len(bundle.data) >> 20} MiB, and an app may take {MAX_BYTES >> 20}: data and models that "
            "its functions refer to travel with it; load data on the nodes, and send models in messages"
        )
    return bundle


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


# -- signatures -------------------------------------------------------------------------------------------------------


def sign(digest: str, key: bytes) -> str:
    """Sign a bundle's digest; the signature in hexadecimal, as nodes check it.

    Args:
        digest: the bundle's.
        key: an Ed25519 private key: 32 raw bytes, or PEM without a password.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise BundleError('signing an app needs the package cryptography: pip install "fedq[sign]"') from None
    try:
        private: Any = Ed25519PrivateKey.from_private_bytes(key) if len(key) == 32 else load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError(f"the signing key cannot be read: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise BundleError("the signing key is no Ed25519 key")
    return private.sign(digest.encode("ascii")).hex()
