"""The numbered notebooks: run, recorded, published."""

from importlib.util import find_spec

from rectrio_lib import modules_on_demand
from rectrio_lib.core.errors import MissingPackageError

if find_spec("nbformat") is None:
    raise MissingPackageError("Chapters are notebooks, and nbformat is missing: pip install 'rectrio[lab]'.")

__getattr__ = modules_on_demand(__name__)
