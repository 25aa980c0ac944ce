"""The private energy market as a functional environment."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from p2penv.core import validation
from p2penv.core.arrays import Array, clip, namespace, row_sum, safe_divide
from p2penv.core.contract import Draw, Noise, Policy, Role, Step
from p2penv.core.params import cast, freeze
from p2penv.pem import private, rules, settlement
from p2penv.pem.observations import Observer
from p2penv.pem.policies import StackelbergPolicy, TruthfulPolicy
from p2penv.pem.rules import GENERAL, Prices, extreme_price
from p2penv.pem.scenario import Scenario, adapt, load_scenario
from p2penv.pem.settlement import Homes, Reports, Settlement, Terms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from p2penv.pem.protocols.market import Backend
    from p2penv.pem.protocols.member import Community

# What else the constructor takes.
FIELDS = {field.name for field in dataclasses.fields(Scenario)} | {"homes", "windows", "seed", "day", "profiles", "pv"}
ACTIONS = ("battery", "load", "preference", "capacity", "demand")


class Params(NamedTuple):
    """Arrays of a scenario; T windows, n homes."""

    generation: Array  # (T + 1, n) [kW]
    load: Array  # (T + 1, n) [kW]
    preference: Array  # (T + 1, n) k [cents/h]
    loss: Array  # (n,) e
    capacity: Array  # (n,) of batteries [kWh]
    power: Array  # (n,) of batteries [kW]
    charge_efficiency: Array  # (n,)
    discharge_efficiency: Array  # (n,)
    initial_charge: Array  # (n,) share of capacity
    flexibility: Array  # (n,)
    prices: Prices  # () [cents/kWh]
    charge_value: Array  # () [cents/kWh]
    hours: Array  # () of a window


class State(NamedTuple):
    """State of E episodes."""

    charge: Array  # (E, n) in the batteries [kWh]
    role: Array  # (E, n) last: 1 sold, −1 bought, 0 stayed off the market
    fill: Array  # (E, n) part of what the home last offered or asked for that the market took or gave
    scheduled: Array  # (E,) φ, part of reported demand that was last scheduled
    price: Array  # (E,) last [cents/kWh]
    case: Array  # (E,) last: NO_MARKET, GENERAL or EXTREME
    forecast: Array  # (E, n, 2) errors of the forecasts of generation and load, standard normal
    time: Array  # (E,) windows played


class Window(NamedTuple):
    """What a joint action leads to."""

    homes: Homes
    reports: Reports
    charging: Array  # (E, n) b [kW]
    terms: Terms
    net: Array  # (E, n) metered net power [kW]
    settled: Settlement
    reward: Array  # (E, n) of the homes [cents]


class PEM:
    """A community of homes that trade what they have left over or lack, window by window, through a day.

    ## Description
    In each window a home with generation g, load l and battery power b sells or buys its net power g − l − b. Buyers as
    a coalition set a price between the grid's buyback and retail prices, sellers answer it with their loads
    (a Stackelberg game); what does not find a counterpart is traded with the grid. Price and shares follow what homes
    report, and reporting the truth is not an equilibrium, against what the paper claims. Source: Xie et al. (PEM); the
    rules module lists the corrections to it.

    ## Agents
    ``home_0 …``: sellers, buyers or neither, window by window. With ``leader="agent"`` also ``buyers_0``, who sets the
    price for the buyers' coalition. All act at once; what follows on the price is the load. With ``response="best"``
    sellers' loads answer the price in the same window, so that the leader decides before the homes respond, as in the
    paper. With ``response="agent"`` loads are chosen with only the last price in view: this deviates from that order,
    so that a window stays one joint action on every face.

    ## Actions
    Homes: ``Box(-1, 1, (5,))``: battery power (times the battery's, projected onto what its charge and its room allow,
    and for the logarithm of the reward onto b ≥ −(least load + 0.9)/e), flexible load (1 ± flexibility of the base
    load), and the logarithms of what the reported preference k, capacity S and demand are multiplied with, each times
    its cap. Zero is: battery at rest, base load, truth. ``buyers_0``: ``Box(-1, 1, (1,))``, the price, spans
    [p_l, p_h]; it counts in general markets.

    ## Observations
    ``Box(-1, 1)``: own battery and flexibility, prices relative to retail; then own generation, base load, charge and
    preference in the window to come, own role and fill in the last one, time of day as sine and cosine, last price and
    case, with ``forecast`` windows ahead noisy forecasts of generation and load. ``buyers_0`` sees prices, time, the
    part of reported demand that was scheduled in the last window, and shares of sellers and buyers in it. Never another
    home's data or totals; profiles and batteries are relative to the community's largest, which is public.

    ## Rewards
    Homes: k·log(1 + l + eb) less what is paid, times the window's hours [cents]; the same for both roles. In the last
    window also ``charge_value`` of what is in the battery. ``buyers_0``: minus what buyers pay.

    ## Equilibrium
    Of the pricing stage: the exact price, answered by truthful sellers (``p2penv.pem.equilibrium``). Nobody is then
    worse off than with the grid alone, as sellers may be by the paper's price where supply exceeds demand at it. It is
    no equilibrium in reports: ``assess`` gives what each home's best misreport gains, its battery and load held.

    ## Episode end
    After all windows of the scenario; one window terminates, more truncate.

    ## Infos
    For the market ``price`` [cents/kWh], ``case`` (0 no market, 1 general, 2 extreme), ``saving`` of buyers against
    the grid [cents], ``grid_energy`` from the grid [kWh], ``grid_account`` what the grid takes in [cents], ``sellers``
    and ``buyers`` by number, roles being by net power at the load of the action; for each agent ``role``, ``net`` [kW],
    ``load`` [kW], ``charge`` [kWh], ``bought`` and ``sold`` on the market [kWh], ``payment`` [cents], and, apart since
    roles change, the paper's ``utility`` of sellers and ``cost`` of buyers, 0 for the others [cents].
    There is no market where no seller's report supplies anything at p_h or, by the paper's price, claims any supply;
    what sellers then still have over, with ``response="agent"``, the grid buys.

    ## Arguments
    Args:
        scenario: name, TOML path or ``Scenario``.
        pricing: ``"exact"``, ``"exact_bound"`` (delivery bound to the reported schedule) or ``"paper"``; None: the last
            with clearing by a protocol, else the first.
        response: ``"best"``, sellers' loads answer the price, or ``"agent"``, loads stay what the action says.
        leader: ``"rule"``, or ``"agent"`` for ``buyers_0``.
        preference_cap: of the logarithm of the reported multiple, in [0, 10]; 0 switches that misreport off.
        capacity_cap: the same for S.
        demand_cap: the same for demand.
        forecast: windows ahead, at most all; 0 for no forecasts.
        forecast_error: relative standard deviation of forecasts, ≥ 0; 0.1 if None.
        clearing: ``"plain"``; ``"paper"``, ``"hardened"`` and ``"committee"`` clear some windows by a cryptographic
            protocol, compare them with clearing in the clear, and settle them on what it publishes: prices in ticks of
            0.1 cent, fills in parts of 2¹⁶. Needs ``pricing="paper"``, ``leader="rule"``, NumPy and the extra
            ``private``. ``assess`` and ``rehearsal`` stay with plain clearing.
        private_every: windows from one that is cleared by a protocol to the next; 60 if None.
        keys: a ``p2penv.pem.protocols.member.Community``; None: keys of 2048 bits, made when they are needed.
        infos: ``"full"`` or ``"none"``.
        **overrides: what ``load_scenario`` takes: ``homes``, ``windows``, ``seed``, ``day``, ``profiles``, ``pv``, and
            fields of the scenario.

    Raises:
        ValueError: an option outside its range; the message names it.
        TypeError: unknown option.

    ## Version history
    * v0: first version.
    """

    name = "pem_v0"
    discount = 0.99
    dtypes: tuple[str, ...] = ("float64", "float32")
    policies: tuple[str, ...] = ("stackelberg", "truthful")
    reference = "truthful"
    money = "cents"
    episodic = False
    action_names: tuple[str, ...] = ACTIONS
    equilibrium = "exact Stackelberg price, truthful best responses"
    deviations: str
    """what exploitability is over; empty where reports are the truth"""
    metadata: Mapping[str, Any] = {"name": name, "render_modes": ["human", "rgb_array"], "render_fps": 4}

    def __init__(
        self,
        scenario: str | Path | Scenario = "day300",
        *,
        pricing: settlement.Pricing | None = None,
        response: settlement.Response = "best",
        leader: Literal["rule", "agent"] = "rule",
        preference_cap: float = 0.0,
        capacity_cap: float = 0.0,
        demand_cap: float = 0.0,
        forecast: int = 0,
        forecast_error: float | None = None,
        clearing: Backend = "plain",
        private_every: int | None = None,
        keys: Community | None = None,
        infos: Literal["full", "none"] = "full",
        **overrides: Any,
    ) -> None:
        if unknown := overrides.keys() - FIELDS:
            options = sorted(name for name in inspect.signature(PEM).parameters if name != "overrides")
            raise TypeError(
                f"unknown option {', '.join(map(repr, sorted(unknown)))}; options: {', '.join(options)}; "
                f"scenario fields: {', '.join(sorted(FIELDS))}"
            )
        if isinstance(scenario, Scenario):
            scenario = adapt(scenario, **overrides)
        else:
            scenario = load_scenario(scenario, **overrides)
        self.scenario = scenario
        self.horizon = scenario.windows
        self.response = validation.choice("response", response, ("agent", "best"))
        self.led = validation.choice("leader", leader, ("rule", "agent")) == "agent"
        self.caps = tuple(
            validation.number(name, cap, 0.0, settlement.CAP)
            for name, cap in (
                ("preference_cap", preference_cap),
                ("capacity_cap", capacity_cap),
                ("demand_cap", demand_cap),
            )
        )
        self.deviations = "misreports within the caps, batteries and loads as played" if any(self.caps) else ""
        self.forecast, self.forecast_error = validation.forecast(forecast, forecast_error, self.horizon, "windows")
        self.clearing = validation.choice("clearing", clearing, private.BACKENDS)
        if pricing is None:
            pricing = "exact" if clearing == "plain" else "paper"
        self.pricing = validation.choice("pricing", pricing, ("paper", "exact", "exact_bound"))
        self.private = self._private(private_every, keys)
        self.infos = validation.choice("infos", infos, ("full", "none"))
        size = scenario.size
        self.roles: tuple[Role, ...] = (
            Role("home", size, len(ACTIONS)),
            *([Role("buyers", 1, 1, ("price",))] if self.led else []),
        )
        self.params = freeze(self._parameters())
        errors = {"forecast": Draw("normal", (size, 2))} if self.forecast else {}
        self.initial_noise: Mapping[str, Draw] = errors
        self.noise: Mapping[str, Draw] = errors
        market = ("price", "case", "saving", "grid_energy", "grid_account", "sellers", "buyers")
        agent = ("role", "net", "load", "charge", "bought", "sold", "payment", "utility", "cost")
        self.info_axes: Mapping[str, Literal["env", "agent"]] = (
            {} if infos == "none" else dict.fromkeys(market, "env") | dict.fromkeys(agent, "agent")  # type: ignore[assignment]
        )
        self._observer = Observer(scenario, self.led, self.forecast, self.forecast_error)
        self.context: Array = self._observer.context
        self.features = self._observer.features
        # Utility of the base load: what is at stake for a home; the leader's stakes are everybody's.
        stakes = np.mean(scenario.preference * np.log1p(scenario.load), axis=0) * scenario.hours + 1e-9
        self.reward_scale: Array = np.append(stakes, stakes.sum()) if self.led else stakes

    def _private(self, every: int | None, keys: Community | None) -> private.PrivateClearing | None:
        if self.clearing == "plain":
            for name, value in (("private_every", every), ("keys", keys)):
                if value is not None:
                    raise ValueError(f"{name} is for clearing by a protocol; clearing is 'plain'")
            return None
        if self.pricing != "paper" or self.led:
            raise ValueError(
                f"clearing {self.clearing!r} needs pricing='paper' and leader='rule', got pricing={self.pricing!r} and "
                f"leader={'agent' if self.led else 'rule'!r}"
            )
        every = private.EVERY if every is None else every
        return private.PrivateClearing(self.clearing, every, self.scenario.size, self.scenario.prices, keys)

    def _parameters(self) -> Params:
        s = self.scenario
        return Params(
            s.generation,
            s.load,
            s.preference,
            s.loss,
            s.battery_capacity,
            s.battery_power,
            s.charge_efficiency,
            s.discharge_efficiency,
            s.initial_charge,
            s.flexibility,
            Prices(*map(np.array, s.prices)),
            np.array(s.charge_value),
            np.array(s.hours),
        )

    def parameters(self, xp: ModuleType = np, dtype: Any = None) -> Params:
        """``params`` in a namespace and dtype, float64 by default.

        Raises:
            ValueError: another namespace than NumPy, where windows are cleared by a protocol.
        """
        if self.private is not None and xp is not np:
            raise ValueError(f"clearing {self.clearing!r} works with NumPy only, not with {xp.__name__}")
        return self.params if xp is np and dtype in (None, np.float64) else cast(self.params, xp, dtype)

    def initial(self, params: Params, noise: Noise, num_envs: int) -> State:
        """State of ``num_envs`` fresh days: batteries at their initial charge, nothing traded."""
        xp = namespace(params.power)
        none = xp.zeros((num_envs, params.power.shape[-1]), dtype=params.power.dtype)
        market = none[:, 0]
        time = xp.astype(market, xp.int32)
        forecast = noise["forecast"] if self.forecast else xp.stack([none, none], axis=-1)
        charge = none + params.initial_charge * params.capacity
        return State(charge, none, none, market, market + params.prices.retail, time, forecast, time)

    def _row(self, profile: Array, time: Array) -> Array:
        """Row of a profile ``(T + 1, n)`` at times ``(E,)``, the last one from the end on."""
        xp = namespace(profile)
        return xp.take(profile, clip(time, 0 * time, 0 * time + self.horizon), axis=0)

    def decode(self, params: Params, state: State, actions: Array) -> tuple[Homes, Reports, Array]:
        """Homes, reports and charging power b ``(E, n)`` of actions ``(E, N, 5)``."""
        xp = namespace(actions, params.power)
        actions = actions[:, : params.power.shape[-1], :]
        generation, base, preference = (
            self._row(profile, state.time) for profile in (params.generation, params.load, params.preference)
        )
        least = (1.0 - params.flexibility) * base
        lowest, highest = rules.charging_limits(
            state.charge,
            params.capacity,
            params.charge_efficiency,
            params.discharge_efficiency,
            least,
            params.loss,
            params.hours,
        )
        charging = clip(actions[..., 0] * params.power, lowest, highest)
        load = base * (1.0 + params.flexibility * actions[..., 1])
        homes = Homes(
            preference,
            generation + 1.0 + (params.loss - 1.0) * charging,
            xp.maximum(generation - charging - least, 0.0 * least),
            generation - load - charging,
        )
        truth = settlement.truthful(homes)
        factors = [xp.exp(cap * actions[..., 2 + index]) for index, cap in enumerate(self.caps)]
        told = (truth.preference, xp.maximum(truth.capacity, 0.0 * least), truth.demand)
        return homes, Reports(*(factor * value for factor, value in zip(factors, told, strict=True))), charging

    def play(self, params: Params, homes: Homes, reports: Reports, charging: Array, offer: Array | None) -> Window:
        """Clear and settle a window; ``offer (E,)`` is the leader's price, None for the rule's."""
        xp, prices = namespace(homes.nominal), params.prices
        terms = settlement.price(homes, reports, prices, self.pricing)
        if offer is not None:
            general, demand = terms.case == GENERAL, row_sum(settlement.wanted(homes, reports))
            # Where supply exceeds demand at the offer sellers get less on average, as in an extreme market.
            offers = settlement.offered(homes, reports, self.pricing)
            answered = extreme_price(offers, demand, prices._replace(low=offer))
            terms = terms._replace(
                price=xp.where(general, offer, terms.price), answered=xp.where(general, answered, terms.answered)
            )
        net = homes.nominal
        if self.response == "best":
            net = settlement.best_net(homes, reports, terms, prices, self.pricing)
        settled = settlement.settle(homes, reports, terms, net, prices, self.pricing)
        reward = params.hours * settlement.rewards(homes, net, settled.payment)
        return Window(homes, reports, charging, terms, net, settled, reward)

    def _cleared(self, protocol: private.PrivateClearing, params: Params, state: State, window: Window) -> Window:
        """The window, cleared by the protocol in environments where that is due."""
        hours, prices = float(params.hours), Prices(*map(float, params.prices))
        for row in np.flatnonzero(protocol.due(state.time)):
            homes, reports = private.of_row((window.homes, window.reports), int(row))
            terms, net, settled = protocol.settle(homes, reports, prices, hours, self.response)
            reward = params.hours * settlement.rewards(homes, net, settled.payment)
            new = window._replace(terms=terms, net=net, settled=settled, reward=reward)
            window = window._replace(
                **{
                    name: private.with_row(getattr(window, name), getattr(new, name), int(row))
                    for name in ("terms", "net", "settled", "reward")
                }
            )
        return window

    def _offer(self, params: Params, actions: Array) -> Array | None:
        if not self.led:
            return None
        low, high = params.prices.low, params.prices.high
        return low + 0.5 * (actions[:, -1, 0] + 1.0) * (high - low)

    def step(self, params: Params, state: State, actions: Array, noise: Noise) -> Step:
        """Play actions ``(E, N, 5)``; pure, neither validates nor resets."""
        xp = namespace(state.charge)
        homes, reports, charging = self.decode(params, state, actions)
        window = self.play(params, homes, reports, charging, self._offer(params, actions))
        if self.private is not None:
            window = self._cleared(self.private, params, state, window)
        change = rules.charge_change(charging, params.charge_efficiency, params.discharge_efficiency, params.hours)
        # The power is within its limits already: these only take off rounding.
        charge = clip(state.charge + change, 0.0 * change, params.capacity)
        time = state.time + 1
        ended = time >= self.horizon
        reward = window.reward + xp.where(ended[:, None], params.charge_value * charge, 0.0 * charge)
        role = xp.sign(homes.nominal)
        settled = window.settled
        fill = xp.where(
            role > 0.0,
            settlement.part(settled.sold, settled.schedule, 0.0),
            xp.where(role < 0.0, settlement.part(settled.bought, reports.demand, 0.0), 0.0 * role),
        )
        forecast = noise["forecast"] if self.forecast else state.forecast
        case = xp.astype(window.terms.case, xp.int32)
        after = State(charge, role, fill, settled.fill, window.terms.price, case, forecast, time)
        if self.led:
            reward = xp.concat([reward, -params.hours * settlement.bill(homes, settled.payment)], axis=-1)
        info = self._info(params, window, charge, role) if self.infos == "full" else {}
        never = time < 0
        return Step(after, reward, ended if self.horizon == 1 else never, never if self.horizon == 1 else ended, info)

    def rehearsal(self) -> PEM:
        """The same market with every window cleared in the clear, in a fraction of the time.

        But for rounding, and for windows in which fewer than three sell or buy, it pays the same.
        """
        same = copy.copy(self)
        same.clearing, same.private = "plain", None
        return same

    def worth(self, params: Params, state: State) -> Array:
        """What a state is worth to each agent ``(E, N)`` should the day end in it: the charge left [cents]."""
        value = params.charge_value * state.charge
        return namespace(value).concat([value, 0.0 * value[:, :1]], axis=-1) if self.led else value

    def _info(self, params: Params, window: Window, charge: Array, role: Array) -> dict[str, Array]:
        xp, hours, settled, terms = namespace(charge), params.hours, window.settled, window.terms
        consumed = window.homes.capacity - window.net - 1.0
        columns = {
            "role": role,
            "net": window.net,
            "load": consumed - params.loss * window.charging,
            "charge": charge,
            "bought": hours * settled.bought,
            "sold": hours * settled.sold,
            "payment": hours * settled.payment,
            "utility": xp.where(role > 0.0, window.reward, 0.0 * role),  # (4)
            "cost": xp.where(role < 0.0, hours * settled.payment, 0.0 * role),  # (5)
        }
        if self.led:
            columns = {name: xp.concat([value, 0.0 * value[:, :1]], axis=-1) for name, value in columns.items()}
        count = 0.0 * terms.price
        return {
            "price": terms.price,
            "case": terms.case + count,
            "saving": hours * (params.prices.retail - terms.price) * row_sum(settled.bought),
            "grid_energy": hours * settled.grid_power,
            "grid_account": hours * settled.grid_account,
            "sellers": row_sum(xp.where(role > 0.0, 1.0 + 0.0 * role, 0.0 * role)),
            "buyers": row_sum(xp.where(role < 0.0, 1.0 + 0.0 * role, 0.0 * role)),
            **columns,
        }

    def initial_info(self, params: Params, state: State) -> dict[str, Array]:
        """The keys of ``step``'s infos for a fresh day: nothing traded."""
        if self.infos == "none":
            return {}
        home, market = 0.0 * state.charge, 0.0 * state.price
        if self.led:
            home = namespace(home).concat([home, home[:, :1]], axis=-1)
        charge = state.charge if not self.led else namespace(home).concat([state.charge, home[:, :1]], axis=-1)
        info = {name: market if axis == "env" else home for name, axis in self.info_axes.items()}
        return info | {"price": state.price, "charge": charge}

    def observe(self, params: Params, state: State) -> tuple[Array, ...]:
        """Own profiles, charge, last role and fill, time of day, last price and case; all in [−1, 1]."""
        rows = [self._row(profile, state.time) for profile in (params.generation, params.load, params.preference)]
        later = state.time + self.forecast
        ahead = [self._row(profile, later) for profile in (params.generation, params.load)] if self.forecast else []
        return self._observer.observe(params, state, rows, ahead)

    def encode(self, params: Params, state: State, load: Array) -> Array:
        """Truthful actions ``(E, N, 5)``, batteries at rest, loads as near to ``load (E, n)`` as allowed."""
        xp = namespace(load)
        base = self._row(params.load, state.time)
        move = safe_divide(load - base, params.flexibility * base)
        none = 0.0 * move
        rows = [none, clip(move, none - 1.0, none + 1.0), none, none, none]
        actions = xp.stack(rows, axis=-1)
        return xp.concat([actions, 0.0 * actions[:, :1]], axis=1) if self.led else actions

    def policy(self, name: str) -> Policy:
        """Truth, batteries at rest: ``"stackelberg"``, loads answer the exact price, or ``"truthful"``, base loads."""
        validation.choice("policy", name, self.policies)
        return StackelbergPolicy(self) if name == "stackelberg" else TruthfulPolicy(self)

    def assess(self, params: Params, state: State, actions: Array) -> dict[str, Array]:
        """Exact measures of a joint action in its window [cents]; costs are negative rewards, batteries as played.

        Exploitability is what the best misreport of a home gains within the caps, certified to 0.01 cents an hour; with
        several caps above zero that takes seconds a window, and with ``leader="agent"`` it is that of the rule's price.
        Truthful play changes the reports alone; the equilibrium is the exact price with best responses; the planner
        sets all loads within their flexibility. The leader's columns are what buyers pay.
        """
        from p2penv.pem.measures import assess

        return assess(self, params, state, actions)

    def render(self, state: State, info: Mapping[str, Array]) -> Figure:
        """Picture of environment 0; needs the ``render`` extra."""
        from p2penv.pem.render import draw

        return draw(self, state, info)
