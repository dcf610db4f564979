"""Apps are packed so that they can be loaded where nothing of the submitter is, and what is wrong is said."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedq.apps import AppIncomplete, ClientApp, ConfigError, Context, Message, RecordDict, ServerApp
from fedq.apps.digest import digest_of
from fedq.relay import bundles, project
from fedq.relay.bundles import BundleError, LoadError
from fedq.relay.project import AppNotFound, ProjectError

PYPROJECT = """
[project]
name = "shop"
[tool.fedq.app.components]
serverapp = "shop.server:app"
clientapp = "shop.client:app"
[tool.fedq.app.config]
num-rounds = 3
rate = 0.5
optimizer.name = "sgd"
flag = true
"""

CLIENT = """
from fedq.apps import ClientApp, Message, MetricRecord, RecordDict
from shop import prices
app = ClientApp()
@app.query()
def ask(message, context):
    from shop import late
    return Message(RecordDict({"m": MetricRecord({"price": prices.PRICE + late.MORE})}), reply_to=message)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    """A project directory with two modules of its own, one of which is imported late."""
    root = tmp_path / "project"
    write(root / "pyproject.toml", PYPROJECT)
    write(root / "shop/__init__.py", "")
    write(root / "shop/prices.py", "PRICE = 7\n")
    write(root / "shop/late.py", "MORE = 1\n")
    write(root / "shop/client.py", CLIENT)
    write(root / "shop/server.py", "import nowhere_to_be_found\n")
    path = list(sys.path)
    yield root
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def load(bundle: bundles.Bundle, folder: Path) -> ClientApp:
    return bundles.load_client_app(bundle.kind, bundle.data, bundle.digest, folder)


def price(app: ClientApp) -> Any:
    message = Message(RecordDict(), "a", "query")
    return app(message, Context(1, "a", {}, RecordDict(), {})).content.metric_records["m"]["price"]


def elsewhere(data: bytes, tmp_path: Path) -> str:
    """Load an object bundle in an interpreter that has nothing but what is installed."""
    file = tmp_path / "bundle"
    file.write_bytes(data)
    code = f"""
        from pathlib import Path
        from fedq.apps import *
        from fedq.relay.bundles import *
        import numpy as np, sys
        data = Path({str(file)!r}).read_bytes()
        app = load_client_app("object", data, "", Path("/nonexistent"))
        content = RecordDict({{"arrays": ArrayRecord([np.zeros(2)])}})
        reply = app(Message(content, "a", "train"), Context(1, "a", {{}}, RecordDict(), {{}}))
        print(reply.content.array_records["arrays"].to_numpy_ndarrays()[0], "tests" in sys.modules)
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(code).replace("from fedq.relay.bundles import *",
               "from fedq.relay.bundles import load_client_app")]  # fmt: skip
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# -- objects -----------------------------------------------------------------------------------------------------------


def test_the_submitters_own_modules_travel_with_an_app(tmp_path: Path) -> None:
    from tests.relay.link import apps

    assert elsewhere(bundles.pack_object(apps.client).data, tmp_path) == "[1. 1.] False"


def test_packing_leaves_cloudpickle_as_it_was() -> None:
    from tests.relay.link import apps

    before = cloudpickle.list_registry_pickle_by_value()
    bundles.pack_object(apps.client)
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_installed_modules_do_not_travel() -> None:
    import json

    import numpy as np

    from tests.relay.link import helpers

    assert not bundles.is_own("numpy", np)
    assert not bundles.is_own("json", json)
    assert not bundles.is_own("fedq.relay.bundles", bundles)
    assert bundles.is_own("tests.relay.link.helpers", helpers)


def test_an_app_that_holds_on_to_a_lock_is_told_so() -> None:
    app, lock = ClientApp(), threading.Lock()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        with lock:
            return Message(RecordDict(), reply_to=message)

    with pytest.raises(BundleError, match=r"the ClientApp cannot be packed: .*lock.*inside the functions"):
        bundles.pack_object(app)


def test_data_is_not_code() -> None:
    app, data = ClientApp(), bytearray(bundles.MAX_BYTES + 1)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ValueError(len(data))

    with pytest.raises(BundleError, match="takes 64 MiB, and an app may take 64"):
        bundles.pack_object(app)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    data = b"cno_such_package.part\nThing\n."
    with pytest.raises(LoadError, match=r"needs the Python package 'no_such_package'.*pip install no_such_package"):
        bundles.load_client_app("object", data, digest_of(data), tmp_path)


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("object", b"\x80\x04garbage", "the ClientApp cannot be loaded: "),
        ("object", b"", "the ClientApp cannot be loaded: "),
        ("object", cloudpickle.dumps(3), "is int, not a ClientApp"),
        ("object", cloudpickle.dumps(ServerApp()), "is ServerApp, not a ClientApp"),
        ("object", b'fedq-object {"python": "2.7"}\nxxx', "was packed by Python 2.7"),
        ("project", b"no archive", "archive is damaged"),
        ("wheel", b"", "packed as 'wheel'"),
    ],
)
def test_what_is_no_bundle_is_one_kind_of_error(kind: str, data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError) as raised:
        bundles.load_client_app(kind, data, digest_of(data), tmp_path)
    assert words in str(raised.value)


# -- projects ----------------------------------------------------------------------------------------------------------


def test_a_project_is_loaded_from_its_archive(shop: Path, tmp_path: Path) -> None:
    bundle = bundles.pack_project(project.read_project(shop))
    write(shop / "shop/prices.py", "PRICE = 1000\n")
    assert price(load(bundle, tmp_path / "apps")) == 8


def test_a_project_may_keep_its_package_under_src(shop: Path, tmp_path: Path) -> None:
    (shop / "src").mkdir()
    (shop / "shop").rename(shop / "src/shop")
    bundle = bundles.pack_project(project.read_project(shop))
    assert price(load(bundle, tmp_path / "apps")) == 8


def test_a_node_needs_nothing_that_only_the_serverapp_uses(shop: Path, tmp_path: Path) -> None:
    bundle = bundles.pack_project(project.read_project(shop))
    load(bundle, tmp_path / "apps")
    with pytest.raises(LoadError, match="the ServerApp needs the Python package 'nowhere_to_be_found'") as raised:
        bundles.load_server_app(bundle.kind, bundle.data, bundle.digest, tmp_path / "apps")
    assert "server.py" in str(raised.value.traceback)


def test_the_same_files_give_the_same_bytes(shop: Path, tmp_path: Path) -> None:
    first = bundles.pack_project(project.read_project(shop))
    for path in shop.rglob("*"):
        path.touch()
        path.chmod(0o700)
    assert bundles.pack_project(project.read_project(shop)).data == first.data
    write(shop / "shop/prices.py", "PRICE = 8\n")
    assert bundles.pack_project(project.read_project(shop)).digest != first.digest


def test_two_versions_of_a_project_in_one_process_are_told_apart(shop: Path, tmp_path: Path) -> None:
    first = bundles.pack_project(project.read_project(shop))
    write(shop / "shop/prices.py", "PRICE = 100\n")
    second = bundles.pack_project(project.read_project(shop))
    assert price(load(first, tmp_path / "apps")) == 8
    assert price(load(second, tmp_path / "apps")) == 101


def test_what_does_not_belong_to_the_app_stays_at_home(shop: Path) -> None:
    for name in (
        *(".git/config", ".venv/bin/python", ".env", "env2/pyvenv.cfg", "env2/lib/x.py", "node_modules/x.js"),
        *("shop/__pycache__/prices.pyc", "data/train.csv", "results/model.npz", "notes/todo.txt", "table.csv"),
    ):
        write(shop / name, "x")
    write(shop / "datasets/__init__.py", "")
    config = PYPROJECT + '[tool.fedq.app]\nexclude = ["notes/", "*.csv"]\n'
    write(shop / "pyproject.toml", config)
    bundle = bundles.pack_project(project.read_project(shop))
    names = zipfile.ZipFile(BytesIO(bundle.data)).namelist()
    assert names == [
        *(bundles.MANIFEST, "pyproject.toml", "datasets/__init__.py", "shop/__init__.py", "shop/client.py"),
        *("shop/late.py", "shop/prices.py", "shop/server.py"),
    ]


def test_a_project_with_data_in_it_is_told_where(shop: Path) -> None:
    with (shop / "shop/weights.bin").open("wb") as file:
        file.truncate(bundles.MAX_BYTES + 1)
    with pytest.raises(BundleError, match=r"largest are shop/weights\.bin \(64 MiB\).*tool\.fedq\.app\.exclude"):
        bundles.pack_project(project.read_project(shop))


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(bundles.MANIFEST, "{}")
        archive.writestr(name, "x")
    with pytest.raises(LoadError, match="leads out of it"):
        bundles.extract(buffer.getvalue(), "d", tmp_path / "apps")
    assert list(tmp_path.rglob("outside")) == []
    assert list((tmp_path / "apps").iterdir()) == []


# -- what a project says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no table [tool.fedq.app.components]"),
        ("[tool.fedq.app.components]\nserverapp = 'a:b'\n", "lacks tool.fedq.app.components.clientapp"),
        ("[tool.fedq.app.components]\nserverapp = 'a.b'\nclientapp = 'a:b'\n", "it has the form"),
        ("[tool.fedq", "cannot be read"),
    ],
)
def test_a_project_that_lacks_something_is_told_what(text: str, words: str, tmp_path: Path) -> None:
    write(tmp_path / "pyproject.toml", text)
    with pytest.raises(ProjectError) as raised:
        project.read_project(tmp_path)
    assert words in str(raised.value)


def test_a_directory_that_is_none_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="is no directory"):
        project.read_project(tmp_path / "nothing")
    with pytest.raises(ProjectError, match="fedq new NAME"):
        project.read_project(tmp_path)


def test_nested_config_is_joined_by_dots(shop: Path) -> None:
    read = project.read_project(shop)
    assert read.config == {"num-rounds": 3, "rate": 0.5, "optimizer.name": "sgd", "flag": True}
    merged = project.merged_config(read.config, {"rate": 1, "optimizer": {"name": "adam"}})
    assert merged == {"num-rounds": 3, "rate": 1.0, "optimizer.name": "adam", "flag": True}
    assert type(merged["rate"]) is float


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"num-rounds": "3"}, "num-rounds = '3' is a str, and the app wants an int"),
        ({"num-rounds": 3.0}, "the app wants an int"),
        ({"flag": 1}, "the app wants a bool"),
        ({"rounds": 3}, "has no 'rounds' to override; it has: flag, num-rounds, optimizer.name, rate"),
        ({"rate": [1]}, "rate = [1] of type list"),
        ({1: 1}, "keys are str"),
    ],
)
def test_a_config_that_the_app_does_not_want_is_refused_by_name(override: Any, words: str, shop: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        project.merged_config(project.read_project(shop).config, override)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("reference", "kind", "error", "words"),
    [
        ("tests.relay.link.nothing:app", ClientApp, AppNotFound, "no module 'tests.relay.link.nothing'"),
        ("tests.relay.link.apps:nothing", ClientApp, AppNotFound, "has no 'nothing'"),
        ("tests.relay.link.apps:server", ClientApp, AppNotFound, "is ServerApp, not a ClientApp"),
        ("tests.relay.link.apps:without_main", ServerApp, AppIncomplete, "ServerApp without a main function"),
        ("tests.relay.link.apps", ServerApp, ProjectError, "module:object"),
    ],
)
def test_a_reference_that_leads_nowhere_is_told_so(reference: str, kind: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        project.load_reference(reference, kind)


# -- signatures --------------------------------------------------------------------------------------------------------


def test_a_signature_over_the_digest_is_made_with_raw_and_pem_keys() -> None:
    key = Ed25519PrivateKey.generate()
    digest = digest_of(b"app")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for given in (key.private_bytes_raw(), pem):
        key.public_key().verify(bytes.fromhex(bundles.sign(digest, given)), digest.encode())
    with pytest.raises(BundleError, match="signing key cannot be read"):
        bundles.sign(digest, b"nonsense")
