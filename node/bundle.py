"""The ClientApp of a run, from its bundle: fetched once per node, loaded once per process."""

from __future__ import annotations

from pathlib import Path

from fedq.apps.client_app import ClientApp
from fedq.node.cache import ArrayCache
from fedq.relay import bundles, objects
from fedq.relay.connection import Relay
from fedq.relay.errors import ObjectCorrupt, ObjectMissing
from fedq.relay.jobs import app_finished, app_started
from fedq.relay.runs import AppInfo

KEPT = 8
"""Apps that one process keeps loaded."""


class AppUnavailable(Exception):
    """The app cannot be loaded here. The text says why, and what would help."""

    def __init__(self, reason: str, traceback: str | None = None) -> None:
        super().__init__(reason)
        self.traceback = traceback


class AppCache:
    """Loaded apps by digest; their bundles in the node's cache of arrays.

    Loading runs the app's code: only in a process that is there for it, never in a worker that outlives the app
    (except under ``inline`` isolation, which is for trusted code).
    """

    def __init__(self, folder: Path, objects_on_disk: ArrayCache) -> None:
        self.folder = folder
        self._disk = objects_on_disk
        self._loaded: dict[str, ClientApp] = {}

    def load(self, relay: Relay, app: AppInfo) -> ClientApp:
        """The app of a run.

        The time limit holds for loading, which runs the app's code; not for fetching, which may have to wait for the
        server.

        Raises:
            AppUnavailable: the bundle is gone, damaged, does not load, or lacks a package that is named.
        """
        if (known := self._loaded.get(app.bundle)) is not None:
            return known
        data = self._fetch(relay, app)
        app_started()
        try:
            loaded = bundles.load_client_app(app.kind, data, app.bundle, self.folder / "apps")
        except bundles.LoadError as error:
            raise AppUnavailable(str(error), error.traceback) from error
        finally:
            app_finished()
        if len(self._loaded) >= KEPT:
            self._loaded.pop(next(iter(self._loaded)))
        self._loaded[app.bundle] = loaded
        return loaded

    def _fetch(self, relay: Relay, app: AppInfo) -> bytes | bytearray | memoryview:
        if (found := self._disk.get(app.bundle)) is not None:
            return found
        try:
            data = objects.fetch_shared(relay, [app.bundle])[app.bundle]
        except (ObjectMissing, ObjectCorrupt) as error:
            raise AppUnavailable(f"the app's bundle could not be fetched: {error}") from error
        self._disk.put({app.bundle: data})
        return data
