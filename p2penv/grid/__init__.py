"""Market 4, trading under the limits of a feeder: scenario, rules, equilibrium, environment."""

from p2penv.grid.env import Grid
from p2penv.grid.feeder import Feeder, load_feeder
from p2penv.grid.loading import load_scenario, scenario_names
from p2penv.grid.scenario import Scenario

__all__ = ["Feeder", "Grid", "Scenario", "load_feeder", "load_scenario", "scenario_names"]
