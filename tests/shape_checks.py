"""The type checker of the test run: all annotations of both packages, shapes of tensors included (pyproject.toml)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int is fine where a float is asked for, as everywhere in Python's typing."""
