"""What the wheel, the sdist and an editable install contain, and whether the pinned versions fit the ranges."""

import os
import subprocess
import sysconfig
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from subprocesses import run_python

ROOT = Path(__file__).parent.parent
# At the root of site-packages, where Python looks for start-up files
AT_ROOT = {"sb3_modelbased.pth", "sb3_modelbased.start", "_sb3_modelbased_startup.py"}
HYPERPARAMS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hyperparams").rglob("*.yml")}
SOURCES = {
    path.relative_to(ROOT).as_posix()
    for package in ("sb3_modelbased", "zoo_plugins")
    for path in (ROOT / package).rglob("*.py")
    if path.parent.name != "startup"
}


def build(target: str, source: Path, folder: Path) -> Path:
    """
    :param target: ``wheel``, ``wheel:editable`` or ``sdist``
    :param source: project to build
    :param folder: where to
    :return: what was built
    """
    run_python("-m", "hatchling", "build", "-t", target, "-d", folder, cwd=source)
    (result,) = folder.iterdir()
    return result


def contents(wheel: Path) -> set[str]:
    """
    :param wheel: a wheel
    :return: its files, without their metadata
    """
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Made from the sdist, as an installer without a checkout does."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(folder)
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_sdist(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    startup = {f"zoo_plugins/startup/{name}" for name in AT_ROOT}
    assert names >= SOURCES | HYPERPARAMS | startup | {"LICENSE", "README.md", "pyproject.toml", "requirements.txt"}


def test_wheel_holds_exactly_the_packages_the_files_and_the_start_up(wheel):
    assert contents(wheel) == SOURCES | {f"sb3_modelbased/{name}" for name in HYPERPARAMS} | AT_ROOT


def test_editable_install_points_at_the_checkout_and_copies_the_start_up(tmp_path):
    # Nothing else: a stray hyperparams folder in site-packages would hide the one in the checkout
    editable = build("wheel:editable", ROOT, tmp_path)
    assert contents(editable) == AT_ROOT | {"_sb3_modelbased.pth"}
    assert zipfile.ZipFile(editable).read("_sb3_modelbased.pth").decode().strip() == str(ROOT)


def test_pinned_versions_are_within_the_ranges():
    pins = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate():
                (specifier,) = pin.specifier
                assert specifier.operator == "=="
                pins[canonicalize_name(pin.name)] = specifier.version
    required = [Requirement(line) for line in metadata.requires("sb3-modelbased") or []]
    for requirement in required:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in requirements.txt"
        assert requirement.specifier.contains(pins[name]), f"{requirement} and {pins[name]}"


@pytest.mark.expensive
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_rl_zoo3_finds_the_algorithms_in_a_fresh_environment(kind, wheel, tmp_path):
    """An environment with nothing of its own but this package; the others come from the environment of the tests."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
    ).stdout.strip()
    # A path in a .pth file is not searched for further .pth files: the start-up file of the tests' environment stays out
    (Path(purelib) / "others.pth").write_text(sysconfig.get_path("purelib"))
    what = [str(wheel)] if kind == "wheel" else ["--no-build-isolation", "-e", str(ROOT)]
    subprocess.run([python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", *what], check=True)

    script = (
        "import rl_zoo3, sb3_modelbased, zoo_plugins as z; print(rl_zoo3.ALGOS['maac'], z.default_config('maac'), z.__file__)"
    )
    variables = {**os.environ, "PYTHONPATH": ""}
    run = {"cwd": tmp_path, "env": variables, "check": True, "capture_output": True, "text": True}
    output = subprocess.run([python, "-c", script], **run).stdout
    assert "sb3_modelbased.maac.maac.MAAC" in output
    assert output.count(purelib if kind == "wheel" else str(ROOT)) == 2

    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "sb3-modelbased"], check=True)
    assert not {name for name in os.listdir(purelib) if "sb3_modelbased" in name or name in ("zoo_plugins", "hyperparams")}
    subprocess.run([python, "-W", "error", "-c", "print()"], **run)
