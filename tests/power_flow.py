"""An AC power flow of a feeder by OpenDSS, to judge the linear one by."""

from typing import NamedTuple

import numpy as np
import opendssdirect as dss


class PowerFlow(NamedTuple):
    voltage: np.ndarray  # (B,) [p.u.]
    angle: np.ndarray  # (B,) [rad]
    active: np.ndarray  # (L,) at the end that is fed [kW]
    reactive: np.ndarray  # (L,) [kvar]
    losses: float  # [kW]


def solve(feeder, active, reactive):
    """Constant-power demand ``(B,)``, three balanced phases, an ideal source of 1 p.u."""
    ohm = 1e3 * feeder.base_kv**2 / feeder.base_kva
    _run("clear")
    _run(
        f"new circuit.feeder basekv={feeder.base_kv!r} pu=1 phases=3 bus1={feeder.source} model=ideal "
        "puZideal=[1e-12, 1e-9]"
    )
    _run("set tolerance=1e-12 maxiterations=200")
    for line, bus in enumerate(feeder.fed):
        r, x = float(feeder.resistance[line] * ohm), float(feeder.reactance[line] * ohm)
        _run(
            f"new line.l{line} bus1={feeder.buses[feeder.parent[bus]]} bus2={feeder.buses[bus]} phases=3 length=1 "
            f"r1={r!r} x1={x!r} r0={r!r} x0={x!r} c1=0 c0=0"
        )
        _run(
            f"new load.d{line} bus1={feeder.buses[bus]} phases=3 kv={feeder.base_kv!r} kw={float(active[bus])!r} "
            f"kvar={float(reactive[bus])!r} model=1 vminpu=0.5 vmaxpu=1.5"
        )
    _run(f"set voltagebases=[{feeder.base_kv!r}]")
    _run("calcvoltagebases")
    _run("solve")
    assert dss.Solution.Converged()
    voltage, angle = np.zeros(feeder.size), np.zeros(feeder.size)
    for k, bus in enumerate(feeder.buses):
        dss.Circuit.SetActiveBus(bus)
        polar = np.array(dss.Bus.puVmagAngle())
        voltage[k], angle[k] = polar[0], np.radians(polar[1])
    flows = np.zeros((len(feeder.fed), 2))
    for line in range(len(flows)):
        dss.Circuit.SetActiveElement(f"line.l{line}")
        flows[line] = -np.array(dss.CktElement.TotalPowers())[2:]
    return PowerFlow(voltage, angle - angle[feeder.root], *flows.T, dss.Circuit.Losses()[0] / 1e3)


def _run(command):
    dss.Text.Command(command)
    assert not dss.Text.Result(), dss.Text.Result()
