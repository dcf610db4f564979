"""What a node has answered with which secrets, kept at the node.

Between the stages a node's secrets lie in its Context, and that lies at the relay, which could put an older one back:
the node would answer a stage a second time, with the same secrets and to another question. Two answers to *collect*
give the difference of two updates, two to *unmask* both secrets of a neighbour, two to *share* a secret to whomever the
server names. A node with a ledger answers one question in each stage; the same one again, as after a lost worker, it
answers again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from fedq.apps.errors import InconsistentReply

LEDGER_FILE = "secagg-ledger-file"
"""Key of the node config: an SQLite file, made when it is missing. It grows by 100 bytes or so for each stage."""

_PATIENCE = 60.0  # seconds that another worker of the node may take to write a line


def once(node_config: Mapping[str, Any], secrets: bytes, stage: str, question: bytes) -> None:
    """Note, where the config names a ledger, that this question is answered in a stage with these secrets.

    It is on disk when this returns, which has to be before anything of the answer leaves the process.

    Args:
        node_config: of the Context.
        secrets: what tells these secrets from all others; nothing secret, such as their public key.
        stage: the stage.
        question: all that the answer depends on.

    Raises:
        InconsistentReply: another question was answered, or the ledger cannot be used.
    """
    path = node_config.get(LEDGER_FILE)
    if path is None:
        return
    told = hashlib.sha256(question).digest()
    try:
        with closing(sqlite3.connect(str(path), timeout=_PATIENCE, isolation_level=None)) as ledger:
            ledger.execute("PRAGMA synchronous=FULL")
            ledger.execute("BEGIN IMMEDIATE")
            ledger.execute("CREATE TABLE IF NOT EXISTS answered (secrets BLOB, stage TEXT, question BLOB, "
                           "PRIMARY KEY (secrets, stage)) WITHOUT ROWID")  # fmt: skip
            ledger.execute("INSERT OR IGNORE INTO answered VALUES (?, ?, ?)", (secrets, stage, told))
            where = (secrets, stage)
            known = ledger.execute("SELECT question FROM answered WHERE secrets = ? AND stage = ?", where).fetchone()
            ledger.execute("COMMIT")
    except sqlite3.Error as exc:
        raise InconsistentReply(
            f"the file that {LEDGER_FILE!r} of the node config names cannot be used: {exc}"
        ) from exc
    if known != (told,):
        raise InconsistentReply(
            f"this node has answered the stage {stage!r} of this round to another question: its Context was put back, "
            "which would let the server take the masks off"
        )
