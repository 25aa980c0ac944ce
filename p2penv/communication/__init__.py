"""Market 1, the privacy communication game: scenario, rules, equilibrium, environment."""

from p2penv.communication.env import Communication
from p2penv.communication.scenario import Scenario, load_scenario, scenario_names

__all__ = ["Communication", "Scenario", "load_scenario", "scenario_names"]
