"""What the two sides of secure aggregation share: the messages of its stages, keys and shares, identities, vectors and
masks.

`fedq.apps.mod.secaggplus_mod` is the node's side, `fedq.apps.strategy.SecAggPlus` the server's.
"""

from fedq.apps.secagg.identity import public_identity

__all__ = ["public_identity"]
