"""RecTrio: find images that look alike, with triplet networks.

    import rectrio_lib as rt

The names below are the public API; everything else is reached by package, as in `rt.report.grids`. All of it is loaded
when it is first used, so that `import rectrio_lib` and `rectrio --help` import neither torch nor pandas.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

__version__ = version("rectrio")

PUBLIC = {
    "prepare": "data.dataset",
    "load_dataset": "data.dataset",
    "load_pretrained": "encoders.pretrained",
    "load_encoder": "encoders.registry",
    "save_encoder": "encoders.registry",
    "TrainConfig": "training.config",
    "fit": "training.loop",
    "evaluate": "evaluation.retrieval",
    "embed": "embeddings.embed",
    "Index": "index.index",
    "Collection": "search.collection",
    "Workspace": "core.workspace",
    "RectrioError": "core.errors",
    "use_profile": "chapters.chapter",
    "record": "chapters.record",
}
__all__ = ["__version__", *PUBLIC]


def modules_on_demand(package: str) -> Callable[[str], Any]:
    """Return a module `__getattr__` that imports the modules of a package when they are first named."""

    def load(name: str) -> Any:
        if name.startswith("__") or find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}")

    return load


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)
    return modules_on_demand(__name__)(name)


def __dir__() -> list[str]:
    return sorted(__all__)
