"""Arrays and an encoder become a trained encoder."""

from rectrio_lib import modules_on_demand

__getattr__ = modules_on_demand(__name__)
