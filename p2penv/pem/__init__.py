"""Market 3, the private energy market: scenario, rules, equilibrium, environment."""

from p2penv.pem.env import PEM
from p2penv.pem.scenario import Scenario, load_scenario, scenario_names

__all__ = ["PEM", "Scenario", "load_scenario", "scenario_names"]
