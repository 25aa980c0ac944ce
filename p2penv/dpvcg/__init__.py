"""Market 2, the differentially private VCG auction: scenario, rules, mechanisms, equilibrium, environment."""

from p2penv.dpvcg.env import DPVCG
from p2penv.dpvcg.scenario import Scenario, load_scenario, scenario_names

__all__ = ["DPVCG", "Scenario", "load_scenario", "scenario_names"]
