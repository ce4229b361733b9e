"""Images or texts become unit vectors."""

from typing import Any

from rectrio_lib import modules_on_demand

_module = modules_on_demand(__name__)


def __getattr__(name: str) -> Any:
    return _module("module").from_module if name == "from_module" else _module(name)
