"""Figures that explain a method: how a network, a loss, a ranking or an index works."""

from rectrio_lib import modules_on_demand

__getattr__ = modules_on_demand(__name__)
