"""Lists the subpackages of the top folders; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

TOP = ("apps", "relay", "node", "cli")

setup(
    packages=[
        *(name for top in TOP for name in (f"fedq.{top}", *(f"fedq.{top}.{sub}" for sub in find_packages(where=top)))),
        "fedq.examples",
    ]
)
