"""``python -m fedq.cli``: the same as the ``fedq`` script."""

from fedq.cli import main

if __name__ == "__main__":
    main()
