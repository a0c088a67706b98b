"""Fingerprint of a transformers architecture, without its weights."""

from typing import Any

from vqgan.fingerprints import settings_fingerprint

_ABOUT_THE_FILE = ("transformers_version", "dtype", "torch_dtype", "architectures", "_name_or_path")


def architecture_fingerprint(config: Any) -> str:
    """Returns the hash of the non-default settings of a transformers config: it does not depend on settings that later
    versions of the library add, nor on the network's path."""
    return settings_fingerprint(_told(config.to_diff_dict()))


def _told(values: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in values.items() if name not in _ABOUT_THE_FILE}
    return {name: _told(value) if isinstance(value, dict) else value for name, value in plain.items()}
