"""The `fedq` command."""
