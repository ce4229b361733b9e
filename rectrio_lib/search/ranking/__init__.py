"""What is shown of many images that would do: recommendations, and how sure an answer is."""

from rectrio_lib import modules_on_demand

__getattr__ = modules_on_demand(__name__)
