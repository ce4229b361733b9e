"""The `rectrio` command: the only package that prints."""

from rectrio_lib import modules_on_demand

__getattr__ = modules_on_demand(__name__)
