"""What is imported, what is installed."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import resources
from pathlib import Path

import pytest

import p2penv

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["matplotlib", "torch", "stable_baselines3", "jax", "tensorboard", "typer", "rich"]


def python(code, **changes):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ | changes
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_playing_needs_the_core_only():
    """Every face but SB3's and JAX's, stepped and without pictures, and the public checks."""
    code = f"""
import sys
import p2penv, p2penv.testing, gymnasium, pettingzoo
from p2penv import communication_v0
env = communication_v0.env(horizon=2, settlement="physical", reward="realised")
env.reset(seed=0)
env.step(env.action_space("prosumer_0").sample())
solo = gymnasium.make("p2penv/Communication-v0", agent="prosumer_0")
solo.reset(seed=0)
solo.step(solo.action_space.sample())
p2penv.testing.check_batch(p2penv.make_functional("communication_v0"))
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""
    assert python(code).split() == []


def test_importing_twice_registers_once():
    code = "import p2penv, importlib; importlib.reload(p2penv); print(p2penv.__version__)"
    assert python(code).strip() == p2penv.__version__


@pytest.mark.parametrize(
    ("module", "missing", "hint"),
    [
        ("p2penv.faces.sb3", "stable_baselines3", r"p2penv[train]"),
        ("p2penv.faces.jax", "jax", "pip install jax"),
        ("p2penv.communication.render", "matplotlib", r"p2penv[render]"),
    ],
)
def test_missing_extras_are_named(module, missing, hint):
    code = f"""
import sys
sys.modules[{missing!r}] = None
try:
    import {module}
except ImportError as error:
    print(error)
"""
    assert hint in python(code)


def test_private_clearing_names_its_extra():
    code = """
import sys
sys.modules["gmpy2"] = None
import p2penv
from p2penv.pem.protocols.clearing import clear
from training.private import run, windows
for call in (
    lambda: clear(windows(6, 1)[0], "committee"),
    lambda: p2penv.make_functional("pem_v0", homes=6, windows=2, clearing="hardened"),
    lambda: next(run()),
):
    try:
        call()
    except ImportError as error:
        print(error)
"""
    assert python(code) == 3 * "private clearing needs gmpy2: pip install 'p2penv[private]'\n"


def test_the_wheel_holds_the_package_alone(tmp_path):
    """Built from a copy, so that nothing is left in the working tree."""
    copy = tmp_path / "copy"
    copy.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("p2penv", "baselines", "training", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(copy)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
        archive.extractall(tmp_path / "installed")
    assert {name.split("/")[0] for name in names} == {"p2penv", f"p2penv-{p2penv.__version__}.dist-info"}
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "p2penv").rglob("*") if "__pycache__" not in path.parts}
    wanted = {name for name in files if (ROOT / name).is_file()}
    assert wanted <= set(names)
    assert "p2penv/py.typed" in names
    assert "p2penv/data/communication/ieee14.toml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line]
    assert len(required) == 5, required

    # What was installed works from elsewhere.
    code = "import p2penv; print(p2penv.__file__); print(len(p2penv.make_parallel('communication_v0').possible_agents))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
    )
    where, agents = result.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert agents == "13"


def test_data_and_typing_marker_are_found():
    assert resources.files("p2penv").joinpath("py.typed").is_file()
    folder = resources.files("p2penv") / "data" / "communication"
    assert sorted(path.name for path in folder.iterdir()) == [
        "ieee14-bound.toml",
        "ieee14-interior.toml",
        "ieee14.toml",
    ]


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == p2penv.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {p2penv.__version__}" in citation.replace('"', "")


def test_core_dependencies_are_the_light_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {"array-api-compat", "gymnasium", "numpy", "pettingzoo", "scipy"}
