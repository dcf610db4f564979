"""What the operator of a SuperNode decides."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedq.node.cache import DEFAULT_LIMIT
from fedq.node.modname import ModName, SettingsError
from fedq.node.trust import TrustPolicy
from fedq.relay.keys import check_node_name

ISOLATIONS = ("fork", "run", "inline")

ConfigValue = bool | int | float | str


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """The settings of one SuperNode, or of an additional worker of one. Checked when made.

    Attributes:
        name: the node's name: letters, digits, ``-``.
        redis_url: the relay's server; None takes FEDQ_REDIS_URL, REDIS_URL or the local one.
        queue_url: the server of this node's RQ queue; None takes the relay's.
        config: node_config of every Context here; scalars, typed.
        labels: what runs select nodes by.
        slots: ClientApps that may run at once in this process' workers.
        isolation: ``fork``, ``run`` or ``inline``.
        grace: seconds that a running ClientApp may take to finish after SIGTERM.
        time_limit: most seconds one message may take here, whatever its run allows; None leaves it to the run.
        trust: whose apps are run.
        ship_logs: whether what ClientApps log and print goes to the run's log.
        cache_dir: folder for bundles and arrays; None for one under the user's cache folder.
        cache_bytes: most bytes of arrays kept there; 0 for none.
        threads: threads of the numerical libraries in each slot; None leaves them alone.
        heartbeat: seconds between heartbeats; the node counts as offline after three missed ones. Among thousands of
            nodes it beats less often (:mod:`fedq.node.pace`).
        lease: seconds that a claim, or the dispatcher's role, outlives the last word of its holder.
        log_format: ``text`` or ``json``.
        mods: put around every ClientApp here, outside of the app's own, the first outermost: see `fedq.node.imposed`.
        virtual: how many virtual nodes this service stands for (:mod:`fedq.node.virtual`); 0: it is a node itself.
    """

    name: str
    redis_url: str | None = None
    queue_url: str | None = None
    config: Mapping[str, ConfigValue] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    slots: int = 1
    isolation: str = "fork"
    grace: float = 30.0
    time_limit: float | None = None
    trust: TrustPolicy = field(default_factory=TrustPolicy)
    ship_logs: bool = True
    cache_dir: Path | None = None
    cache_bytes: int = DEFAULT_LIMIT
    threads: int | None = 1
    heartbeat: float = 5.0
    lease: float = 15.0
    log_format: str = "text"
    mods: tuple[str, ...] = ()
    virtual: int = 0

    def __post_init__(self) -> None:
        check_node_name(self.name)
        if self.isolation not in ISOLATIONS:
            raise SettingsError(f"isolation {self.isolation!r} does not exist; choose one of {', '.join(ISOLATIONS)}")
        if self.slots < 1:
            raise SettingsError(f"a SuperNode needs at least one slot, not {self.slots}")
        if self.grace < 0:
            raise SettingsError(f"the grace time cannot be negative ({self.grace})")
        if self.time_limit is not None and self.time_limit <= 0:
            raise SettingsError(f"the time limit must be above 0 seconds, not {self.time_limit}")
        if self.threads is not None and self.threads < 1:
            raise SettingsError(f"threads must be at least 1, not {self.threads}")
        if self.heartbeat <= 0 or self.lease < 2:
            raise SettingsError("heartbeat must be above 0 and lease at least 2 seconds")
        if self.virtual < 0:
            raise SettingsError(f"there cannot be {self.virtual} virtual nodes")
        if self.virtual:
            check_node_name(f"{self.name}-{self.virtual - 1}")
        if self.log_format not in ("text", "json"):
            raise SettingsError(f"log format {self.log_format!r} does not exist; choose text or json")
        object.__setattr__(self, "mods", tuple(ModName.parse(mod).text for mod in self.mods))
        for key, value in self.config.items():
            if not isinstance(key, str) or not key:
                raise SettingsError(f"a config key must be a text, not {key!r}")
            if not isinstance(value, (bool, int, float, str)):
                raise SettingsError(
                    f"config {key} holds a {type(value).__name__}; allowed are bool, int, float and str"
                )

    @property
    def cache_folder(self) -> Path:
        """The folder in use."""
        return self.cache_dir if self.cache_dir is not None else default_cache_dir()


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/fedq``, or ``~/.cache/fedq``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedq"


def parse_config(pairs: Iterable[str]) -> dict[str, ConfigValue]:
    """``["partition-id=3", "path=/data"]`` as a dict; values typed as in TOML, a bare word is a text.

    Raises:
        SettingsError: a pair without ``=``, a key given twice, or a value that is not a scalar.
    """
    config: dict[str, ConfigValue] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SettingsError(f"{pair!r} is not key=value")
        if key in config:
            raise SettingsError(f"config {key} is given twice")
        config[key] = parse_value(key, text.strip())
    return config


def parse_value(key: str, text: str) -> ConfigValue:
    """One value, typed as in TOML."""
    try:
        value = tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return text
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, dict)):
        raise SettingsError(f"config {key} holds a {type(value).__name__}; allowed are bool, int, float and str")
    return text  # a date or a time: TOML has them, a config does not


def parse_labels(pairs: Iterable[str]) -> dict[str, str]:
    """``["site=eu", "gpu=yes"]`` as a dict of texts."""
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"{pair!r} is not a label: write name=value")
        labels[key.strip()] = value.strip()
    return labels


__all__ = [
    "ISOLATIONS",
    "ConfigValue",
    "NodeSettings",
    "SettingsError",
    "default_cache_dir",
    "parse_config",
    "parse_labels",
    "parse_value",
]
