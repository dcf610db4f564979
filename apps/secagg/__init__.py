"""What the two sides of secure aggregation share: the messages of its stages, keys and shares, vectors and masks.

`fedq.apps.mod.secaggplus_mod` is the node's side, `fedq.apps.strategy.SecAggPlus` the server's.
"""
