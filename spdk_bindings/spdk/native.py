"""Loads the shim that `build.py` has made; everything that is untyped about it stays behind these two names."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdk_bindings.spdk.errors import NotBuiltError


@dataclass(frozen=True, slots=True)
class Native:
    """The compiled module: `ffi` makes C data, `lib` has the functions of native/interface.h."""

    ffi: Any
    lib: Any


def load(path: Path) -> Native:
    """The shim at `path`. Raises NotBuiltError."""
    spec = importlib.util.spec_from_file_location("spdk_bindings.spdk._native", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise NotBuiltError(f"{path} is not there: run python -m spdk_bindings.spdk.build where SPDK is installed")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise NotBuiltError(
            f"{path} does not load ({error}): run python -m spdk_bindings.spdk.build again, with this SPDK and Python"
        ) from error
    return Native(module.ffi, module.lib)
