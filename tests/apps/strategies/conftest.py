"""The Python that has Flower, for the comparison."""

from tests.apps.test_flower_port import flower_python

__all__ = ["flower_python"]
