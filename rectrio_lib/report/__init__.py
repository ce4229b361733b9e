"""Results become figures and a page."""

from rectrio_lib import modules_on_demand

__getattr__ = modules_on_demand(__name__)
