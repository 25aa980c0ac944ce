"""The network-constrained market as a functional environment."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.core.arrays import Array, clip, namespace, row_max, row_sum, safe_divide
from p2penv.core.contract import Draw, Noise, Policy, Role, Step
from p2penv.core.params import cast, freeze
from p2penv.grid import hours, rules
from p2penv.grid.feasible import charge_floor
from p2penv.grid.hours import OWN, Game, Hour, Params, State
from p2penv.grid.loading import load_scenario
from p2penv.grid.measures import Measures
from p2penv.grid.observations import Observer
from p2penv.grid.rules import NetworkState, Schedules
from p2penv.grid.scenario import Scenario

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from p2penv.grid.equilibrium import Equilibrium
    from p2penv.grid.policies import SchedulePolicy

Floats = NDArray[np.float64]
TRADE_PRICES = ("contract", "bilateral", "shadow")


class Grid:
    """A day of prosumers on a radial feeder, who trade with their neighbours and draw the rest from the grid.

    ## Description
    Each hour every prosumer sets its dispatchable unit, storage and solar curtailment and proposes quantities to up to
    K trading partners; what its balance lacks comes from the grid, at a price that rises with everybody's imports.
    A network operator watches line flows and voltages of the feeder. Source: Belgioioso, Ananduta, Grammatico,
    Ocampo-Martinez, "Operationally-safe peer-to-peer energy trading in distribution grids"; the rules module lists
    what was corrected and added, first of all the balance of reactive power.

    ## Agents
    ``prosumer_0 …``; with ``dno="agent"`` also ``dno_0``, the network operator. All act at once.

    ## Actions
    Prosumers: ``Box(-1, 1, (4 + K,))``: dispatch (from none to all), storage power (charging positive), curtailment
    (from none to all solar power), limit price of bilateral trades (from 0 to ``limit_price``), and a quantity to
    receive from each partner (negative: to give), a share of the most the pair may trade. Slots without a partner are
    ignored; the info ``partners`` says how many count, always the first.
    ``dno_0``: ``Box(-1, 1, (2,))``: trading tariff from 0 to ``tariff_max``, multiplier of the network fee from 0 to
    ``fee_max``.

    Any joint action is made feasible, in this order. Storage power is projected onto (5), and onto what reaches the
    final charge, if one is asked for. Pairs with opposite proposals trade the smaller quantity. Without export nobody
    receives more than it can use or resell: purchases are cut in proportion, for both sides. What surplus is left then
    is taken from dispatch, then from discharging, then from solar power. The grid makes up the balance (6).

    ## Observations
    ``Box(-1, 1)``: own unit, storage and slots, slope of the grid price, hour and passive load, own demand and solar
    power in the hour to come, charge, partners' last proposals, own last trades, last grid price and imports; with
    ``forecast`` hours ahead noisy forecasts of demand and solar power; with ``dno="agent"`` the last tariff and fee
    multiplier. ``dno_0`` sees what is public, the flow of every line and the voltage of every bus. Demand, solar power
    and units are relative to the largest, which is public.

    ## Rewards
    Prosumers: −J of the hour [€]: dispatch, storage, trades, imports at the grid price, and fees. ``dno_0``: tariffs
    and network fees less the cost of violations.

    ## Equilibrium
    ``p2penv.grid.equilibrium`` has the variational generalised Nash equilibrium, the Wardrop equilibrium, the social
    optimum and the outcome without trade. They are schedules of a day, so ``assess`` judges whole days: what each
    prosumer's best schedule would save it, everybody else's held, limits kept. Fees and cuts by the operator are no
    part of that game.

    Against no trade, at contract prices those lose who sell what costs them more than the contract pays. At shadow
    prices nobody does in 100 communities of twelve households and 100 of businesses, made by seeds 0 to 99. Where
    nobody has a dispatchable unit and all have storage, half of the businesses do, by up to 2.2 % of their cost:
    storage buys in their hours, for others (``p2penv.grid.equilibrium.bill`` bounds what is lost). Storage lowers the
    peak of the import where hours' prices differ by more than a round trip loses: on seven of ten days of eight
    businesses, by 2 to 11 %; on the other three it leaves it as it is.

    ## Network
    Flows and voltages are linear, without losses; ``p2penv.grid.feeder`` says how far an AC power flow is from them.
    ``network="price"``: every violated limit costs its price times what exceeds it, split over those who push it; the
    operator pays where nobody does. ``"curtail"``: one common share α of every prosumer's net demand is not served, so
    that all limits hold; trades stand, the grid takes the difference, and what is not served costs ``lost_load``.
    With ``reactive=False`` there is no reactive power here, while the solver, as in the paper, chooses it freely: where
    voltage limits would bind without it, its schedules may pay fees.

    ## Episode end
    After all hours: it truncates.

    ## Infos
    For the market ``price`` of the grid [€/kWh], ``imported`` σ + b [kW], ``traded`` [kWh], ``loading`` (largest share
    of a line's limit), ``voltage_low`` and ``voltage_high`` [p.u.], ``line_excess`` [kVA], ``voltage_excess`` [p.u.],
    ``import_excess`` [kW], each summed, ``penalty`` of violations [€], ``operator``, what it earns less the penalty
    [€], ``cut`` α; for each agent ``partners``, ``net`` demand at the bus, ``grid``, ``dispatch``, ``charging``,
    ``curtailed``, ``received`` [kW], ``trade_price``, paid on average [€/kWh], ``charge`` [kWh], ``voltage`` of its bus
    [p.u.], ``fee``, ``tax`` [€], ``unserved`` [kWh].

    ## Arguments
    Args:
        scenario: name, TOML path or ``Scenario``.
        trade_price: ``"contract"``, each pair's own price; ``"bilateral"``, the middle of the two limit prices where
            the buyer's is at least the seller's, no trade else; ``"shadow"``, the contract price and the multipliers
            of the equilibrium: of the trade, and nodal and import prices beside it (needs the ``grid`` extra).
        network: ``"price"`` or ``"curtail"``.
        dno: ``"rule"``, tariff of the scenario and fees as they are; or ``"agent"``.
        tariff_max: of the operator's action, at least the scenario's tariff, which counts if it is above the 0.11 by
            default [€/kWh].
        fee_max: of the operator's action, ≥ 1; by default 2.
        limit_price: highest limit price [€/kWh]; by default twice the largest grid price without trade.
        forecast: hours ahead, at most all; 0 for no forecasts.
        forecast_error: relative standard deviation of forecasts, ≥ 0; 0.1 if None.
        infos: ``"full"``, ``"network"`` with flow and voltage of every bus beside it, or ``"none"``.
        **overrides: what ``load_scenario`` takes (``prosumers``, ``seed``, ``export``, ``reactive``, …).

    Raises:
        ValueError: an option outside its range; the message names it.
        TypeError: unknown option.

    ## Version history
    * v0: first version.
    """

    name = "grid_v0"
    discount = 0.99
    dtypes: tuple[str, ...] = ("float64", "float32")
    policies: tuple[str, ...] = ("vgne", "wardrop", "social_optimum", "no_trade")
    reference = "no_trade"
    money = "€"
    episodic = True
    equilibrium = "variational GNE of the day"
    metadata: Mapping[str, Any] = {"name": name, "render_modes": ["human", "rgb_array"], "render_fps": 4}

    def __init__(
        self,
        scenario: str | Path | Scenario = "ieee37",
        *,
        trade_price: Literal["contract", "bilateral", "shadow"] = "contract",
        network: Literal["price", "curtail"] = "price",
        dno: Literal["rule", "agent"] = "rule",
        tariff_max: float | None = None,
        fee_max: float | None = None,
        limit_price: float | None = None,
        forecast: int = 0,
        forecast_error: float | None = None,
        infos: Literal["full", "network", "none"] = "full",
        **overrides: Any,
    ) -> None:
        try:
            if not isinstance(scenario, Scenario):
                scenario = load_scenario(scenario, **overrides)
            elif overrides:
                scenario = scenario.replace(**overrides)
        except TypeError as error:
            options = sorted(name for name in inspect.signature(Grid).parameters if name != "overrides")
            raise TypeError(f"{error}; options of the environment: {', '.join(options)}") from None
        self.scenario = scenario
        self.horizon = scenario.hours
        self.trade_price = validation.choice("trade_price", trade_price, TRADE_PRICES)
        self.network = validation.choice("network", network, ("price", "curtail"))
        if self.network == "curtail":
            scenario.check_passive()
        self.led = validation.choice("dno", dno, ("rule", "agent")) == "agent"
        self.tariff_max, self.fee_max = self._ranges(tariff_max, fee_max)
        highest = float((scenario.grid_slope * (scenario.params.passive_total + scenario.demand.sum(axis=1))).max())
        limit_price = 2.0 * highest if limit_price is None else limit_price
        self.limit_price = validation.number("limit_price", limit_price, 0.0, open_low=True)
        self.forecast, self.forecast_error = validation.forecast(forecast, forecast_error, self.horizon, "hours")
        self.infos = validation.choice("infos", infos, ("full", "network", "none"))
        size, slots = scenario.partner.shape
        self.action_names: tuple[str, ...] = (*OWN, *(f"trade_{slot}" for slot in range(slots)))
        self.roles: tuple[Role, ...] = (
            Role("prosumer", size, len(self.action_names)),
            *([Role("dno", 1, 2, ("tariff", "fee"))] if self.led else []),
        )
        self.game = Game(
            self.trade_price,
            self.network,
            self.led,
            self.limit_price,
            self.tariff_max,
            self.fee_max,
            scenario.export,
            self.horizon,
        )
        self._solutions: dict[str, Equilibrium] = {}
        self._measures = Measures(self)
        self.params = freeze(self._parameters())
        errors = {"forecast": Draw("normal", (size, 2))} if self.forecast else {}
        self.initial_noise: Mapping[str, Draw] = errors
        self.noise: Mapping[str, Draw] = errors
        self.info_axes: Mapping[str, Literal["env", "agent"]] = self._info_axes()
        operator = (self.tariff_max, self.fee_max) if self.led else None
        self._observer = Observer(scenario, self.limit_price, self.forecast, self.forecast_error, operator)
        self.context: Array = self._observer.context
        self.features: tuple[str, ...] = self._observer.features
        # A day's bill at the price without trade.
        usual = float((scenario.grid_slope * scenario.passive_total)[: self.horizon].mean())
        stakes = scenario.step_hours * usual * scenario.demand[: self.horizon].mean(axis=0) + 1e-9
        self.reward_scale: Array = np.append(stakes, stakes.sum()) if self.led else stakes

    def _ranges(self, tariff_max: float | None, fee_max: float | None) -> tuple[float, float]:
        """Ranges of the operator's action."""
        if not self.led:
            for name, value in (("tariff_max", tariff_max), ("fee_max", fee_max)):
                if value is not None:
                    raise ValueError(f"{name} is for an operator that plays; dno is 'rule'")
        least = self.scenario.tariff
        tariff = max(0.11, least) if tariff_max is None else tariff_max
        return (
            validation.number("tariff_max", tariff, least, open_low=least == 0.0),
            validation.number("fee_max", 2.0 if fee_max is None else fee_max, 1.0),
        )

    def _info_axes(self) -> dict[str, Literal["env", "agent"]]:
        if self.infos == "none":
            return {}
        market = ["price", "imported", "traded", "loading", "voltage_low", "voltage_high", "line_excess"]
        market += ["voltage_excess", "import_excess", "penalty", "operator", "cut"]
        if self.infos == "network":
            feeder = self.scenario.feeder
            market += [f"flow_{feeder.buses[bus]}" for bus in feeder.fed]
            market += [f"voltage_{bus}" for bus in feeder.buses]
        agent = ["partners", "net", "grid", "dispatch", "charging", "curtailed", "received", "trade_price", "charge"]
        agent += ["voltage", "fee", "tax", "unserved"]
        return dict.fromkeys(market, "env") | dict.fromkeys(agent, "agent")  # type: ignore[return-value]

    def _parameters(self) -> Params:
        s, market = self.scenario, self.scenario.params
        final = s.initial_charge if s.final_charge else s.storage_min
        floor = charge_floor(
            s.storage_min, final, s.storage_power, s.leakage, s.charge_efficiency, s.step_hours, s.hours
        )
        alone = rules.passive_state(market, slice(None))
        largest = np.maximum(alone.apparent.max(axis=0), 1e-9)
        scale = np.where(np.isfinite(s.line_limit), s.line_limit, largest)
        rows, slots = s.hours + 1, s.partner.shape
        shadows = [np.zeros((rows, *slots)), np.zeros((rows, s.size)), np.zeros((rows, 1))]
        if self.trade_price == "shadow":
            found = self.solution("vgne").multipliers
            # The last row is never played.
            trade = found["trade"][:, s.pair] if len(s.edges) else np.zeros((s.hours, *slots))
            prices = (trade * market.slots, found["nodal"][:, s.bus], found["import"][:, None])
            for table, values in zip(shadows, prices, strict=True):
                table[:-1] = values
        usual = float((s.grid_slope * market.passive_total)[: s.hours].mean())
        own = np.minimum(np.maximum(s.demand - s.solar, 0.0)[: s.hours].mean(axis=0), s.dispatch_max)
        marginal = s.dispatch_linear + 2.0 * s.dispatch_quadratic * own
        value = np.where(s.dispatch_max > 0.0, np.minimum(marginal, usual), usual)
        return Params(market, floor, value, scale, *shadows)

    def parameters(self, xp: ModuleType = np, dtype: Any = None) -> Params:
        """``params`` in a namespace and dtype, float64 by default."""
        return self.params if xp is np and dtype in (None, np.float64) else cast(self.params, xp, dtype)

    def observe(self, params: Params, state: State) -> tuple[Array, ...]:
        """Own power and charge, partners' proposals, last trades, price and imports; all in [−1, 1]."""
        later = hours.row_at(state.time + self.forecast, self.horizon) if self.forecast else None
        return self._observer.observe(params.market, state, hours.row_at(state.time, self.horizon), later)

    def initial(self, params: Params, noise: Noise, num_envs: int) -> State:
        """State of ``num_envs`` fresh days: storage as at first, nothing traded."""
        market = params.market
        xp, dtype = namespace(market.storage_power), market.storage_power.dtype
        lines, buses = (params.line_scale.shape[0], market.R.shape[0]) if self.led else (0, 0)
        # Environments side by side in memory, as faces hand over actions.
        none = xp.permute_dims(xp.zeros((market.partner.shape[0], num_envs), dtype=dtype), (1, 0))
        trade = xp.permute_dims(xp.zeros((*market.partner.shape, num_envs), dtype=dtype), (2, 0, 1))
        alone = none[:, 0]
        return State(
            none + market.initial_charge,
            trade,
            trade,
            alone + market.grid_slope[0] * market.passive_total[0],
            alone + market.passive_total[0],
            alone + market.tariff,
            alone + 1.0,
            xp.zeros((num_envs, lines), dtype=dtype),
            xp.zeros((num_envs, buses), dtype=dtype),
            noise["forecast"] if self.forecast else xp.stack([none, none], axis=-1),
            xp.astype(alone, xp.int32),
        )

    def storage(self, params: Params, state: State, power: Array) -> tuple[Array, Array]:
        """Charging and discharging ``(E, n)`` nearest to ``power``, charging positive, that the storage allows [kW]."""
        return hours.storage(self.game, params, state, power)

    def play(self, params: Params, state: State, actions: Array) -> Hour:
        """What actions ``(E, N, A)`` come to in the hour of the state."""
        return hours.play(self.game, params, state, actions)

    def step(self, params: Params, state: State, actions: Array, noise: Noise) -> Step:
        """Play actions ``(E, N, A)``; pure, neither validates nor resets."""
        xp = namespace(state.charge)
        hour = self.play(params, state, actions)
        charge = rules.next_charge(params.market, state.charge, hour.flows.charge, hour.flows.discharge)
        time = state.time + 1
        loading, voltage = state.loading, state.voltage
        if self.led:
            loading = hour.network.apparent / params.line_scale
            widest = xp.maximum(1.0 - params.market.voltage_min, params.market.voltage_max - 1.0)
            voltage = (hour.network.voltage - 1.0) / widest
        after = State(
            charge,
            hour.proposal,
            hour.flows.trade,
            hour.grid_price,
            hour.imported,
            hour.tariff,
            hour.factor,
            loading,
            voltage,
            noise["forecast"] if self.forecast else state.forecast,
            time,
        )
        reward = -hour.cost
        if self.led:
            reward = xp.concat([reward, hour.operator[:, None]], axis=-1)
        info = self._info(params, hour, charge) if self.infos != "none" else {}
        return Step(after, reward, time < 0, time >= self.horizon, info)

    def _info(self, params: Params, hour: Hour, charge: Array) -> dict[str, Array]:
        market, flows, network = params.market, hour.flows, hour.network
        xp, size = namespace(charge), abs(flows.trade)
        info = {
            "price": hour.grid_price,
            "imported": hour.imported,
            "traded": 0.5 * market.step_hours * row_sum(row_sum(size)),
            "loading": row_max(network.apparent / params.line_scale),
            "voltage_low": -row_max(-network.voltage),
            "voltage_high": row_max(network.voltage),
            "line_excess": row_sum(network.line_excess),
            "voltage_excess": row_sum(network.voltage_excess),
            "import_excess": network.import_excess,
            "penalty": hour.penalty,
            "operator": hour.operator,
            "cut": hour.cut,
        }
        if self.infos == "network":
            buses = self.scenario.feeder
            info |= {f"flow_{buses.buses[bus]}": network.apparent[:, line] for line, bus in enumerate(buses.fed)}
            info |= {f"voltage_{bus}": network.voltage[:, place] for place, bus in enumerate(buses.buses)}
        columns = {
            "partners": row_sum(market.slots) + 0.0 * charge,
            "net": hour.net,
            "grid": flows.grid,
            "dispatch": flows.dispatch,
            "charging": flows.charge - flows.discharge,
            "curtailed": flows.curtail,
            "received": row_sum(flows.trade),
            "trade_price": safe_divide(row_sum(hour.price * size), row_sum(size)),
            "charge": charge,
            "voltage": xp.take(network.voltage, market.bus, axis=-1),
            "fee": hour.fee,
            "tax": hour.tax,
            "unserved": market.step_hours * hour.unserved,
        }
        if self.led:
            columns = {name: xp.concat([value, 0.0 * value[:, :1]], axis=-1) for name, value in columns.items()}
        return info | columns

    def initial_info(self, params: Params, state: State) -> dict[str, Array]:
        """The keys of ``step``'s infos for a fresh day: nobody does anything, passive loads alone."""
        if self.infos == "none":
            return {}
        none, hour = 0.0 * state.charge, hours.row_at(state.time, self.horizon)
        flows = Schedules(none, none, none, none, none, 0.0 * state.trade)
        alone = 0.0 * state.price
        network = hours.carried(params.market, none, alone, hour)
        quiet = Hour(
            flows,
            flows,
            flows.trade,
            flows.trade,
            state.price,
            state.imported,
            none,
            none,
            alone,
            network,
            none,
            none,
            none,
            alone,
            state.tariff,
            state.factor,
            none,
        )
        return self._info(params, quiet, state.charge)

    def worth(self, params: Params, state: State) -> Array:
        """What a state is worth to each agent ``(E, N)``: the charge it can still use, at the usual price [€].

        No reward pays it when the day ends; learners told of it see at once what charging is good for. The price is
        that of the grid without prosumers, or what the own unit costs at the prosumer's mean demand, if that is less.
        """
        market = params.market
        xp = namespace(state.charge)
        left = xp.astype(self.horizon - state.time, state.charge.dtype)[:, None]
        spare = market.discharge_efficiency * (state.charge - params.floor[-1])
        usable = xp.minimum(xp.maximum(spare, 0.0 * spare), market.step_hours * market.storage_power * left)
        value = params.charge_price * usable
        return xp.concat([value, 0.0 * value[:, :1]], axis=-1) if self.led else value

    def flows_at(self, net: Floats, hour: int, cut: float = 0.0) -> NetworkState:
        """Flows and voltages for net demands ``(n,)`` of prosumers in an hour, a share α of which is cut already."""
        found = hours.carried(self.params.market, net[None], np.array([1.0 - cut]), hour)
        return NetworkState(*(each[0] for each in found))

    def encode(self, params: Params, time: Array, flows: Schedules, limit: Array) -> Array:
        """Actions ``(E, N, A)`` that ask for flows ``(E, n)`` and trades ``(E, n, K)`` at times ``(E,)``.

        Args:
            params: of the market.
            time: (E,) hours played.
            flows: what prosumers are to do, as far as they can; what they take from the grid follows [kW].
            limit: (E, n) limit prices [€/kWh].
        """
        market = params.market
        xp, none = namespace(flows.dispatch), 0.0 * flows.dispatch
        solar = none + market.solar[hours.row_at(time, self.horizon)]
        rows = [
            2.0 * safe_divide(flows.dispatch, market.dispatch_max + none) - 1.0,
            safe_divide(flows.charge - flows.discharge, market.storage_power + none),
            2.0 * safe_divide(flows.curtail, solar) - 1.0,
            2.0 * limit / self.limit_price - 1.0,
        ]
        trade = safe_divide(flows.trade, market.trade_max + 0.0 * flows.trade)
        joint = xp.concat([xp.stack(rows, axis=-1), trade], axis=-1)
        if self.led:
            empty = 0.0 * joint[:, 0, :1]
            row = [2.0 * market.tariff / self.tariff_max - 1.0 + empty, 2.0 / self.fee_max - 1.0 + empty]
            row += [empty] * (joint.shape[-1] - 2)
            joint = xp.concat([joint, xp.concat(row, axis=-1)[:, None, :]], axis=1)
        return clip(joint, 0.0 * joint - 1.0, 0.0 * joint + 1.0)

    def policy(self, name: str) -> Policy:
        """Exact schedules of the day: ``"vgne"``, ``"wardrop"``, ``"social_optimum"`` or ``"no_trade"``.

        Raises:
            ValueError: unknown name, or no schedules keep all limits.
            ImportError: the ``grid`` extra is missing.
        """
        validation.choice("policy", name, self.policies)
        return self.follow(self.solution(name).schedules)

    def follow(self, schedules: Schedules) -> SchedulePolicy:
        """The policy that plays schedules of a day, ``(H, n)`` and trades ``(H, n, K)`` [kW]."""
        from p2penv.grid.policies import SchedulePolicy

        return SchedulePolicy(self, schedules)

    def solution(self, name: str) -> Equilibrium:
        """The solver's result behind a policy, worked out once."""
        from p2penv.grid.equilibrium import variational_equilibrium
        from p2penv.grid.policies import KINDS

        if name not in self._solutions:
            self._solutions[name] = variational_equilibrium(self.scenario, KINDS[name])
        return self._solutions[name]

    def assess(self, params: Params, state: State, actions: Array) -> dict[str, Array]:
        """Exact measures of whole days: leaves of ``state`` ``(H, E, …)``, actions ``(H, E, N, A)`` [€].

        Exploitability is what the best schedule of a prosumer saves, its trades and everybody else's schedules held,
        limits kept or, where violated, not made worse. Fees and cuts of the operator are left out of it. An operator
        that plays gains what the highest tariff and fee would bring. Social costs are the prosumers'; passive loads'
        bills are in none. Beside them ``competitive_gain``, what a prosumer would save if it could trade any amount at
        the equilibrium's prices, for held trades are all that keeps many days from being beaten; ``grid_distance``, the
        mean distance of purchases from the grid to the equilibrium's, and ``trade_distance``, that of net trades [kW].
        Where no schedules keep all limits, ``nearest`` says that one without them stands in, and pays its fees.
        """
        return self._measures.assess(params, state, actions)

    def render(self, state: State, info: Mapping[str, Array]) -> Figure:
        """Picture of environment 0; needs the ``render`` extra."""
        from p2penv.grid.render import draw

        return draw(self, state, info)
