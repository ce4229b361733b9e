"""Files become pixels and a manifest, one row per image."""

from rectrio_lib import modules_on_demand

__getattr__ = modules_on_demand(__name__)
