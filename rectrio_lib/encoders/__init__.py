"""Images or texts become unit vectors."""

from rectrio_lib import modules_on_demand

__getattr__ = modules_on_demand(__name__)
