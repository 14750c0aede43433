"""The documentation's links lead somewhere, its code runs, and its tables are complete."""

import inspect
import re
from pathlib import Path

import pytest
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_modelbased import MAAC, MEMB, MPDP, SVG1
from sb3_modelbased.common.model_based_algorithm import ModelBasedAlgorithm
from sb3_modelbased.common.model_trainer import ModelTrainer

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture
def short_training(monkeypatch, tmp_path):
    """Everything but the length of training and fits is what the reader would run."""

    def shortened(learn):
        return lambda self, total_timesteps, **kwargs: learn(self, 510, **kwargs)

    fit = ModelTrainer.fit
    for cls in (MAAC, MEMB, MPDP):
        monkeypatch.setattr(cls, "learn", shortened(cls.learn))
    monkeypatch.setattr(ModelTrainer, "fit", lambda self, data: vars(self).update(max_gradient_steps=20) or fit(self, data))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", ["index.md", "components.md", "algos/maac.md", "algos/memb.md", "algos/mpdp.md"])
def test_python_blocks_run(page, short_training):
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL):
        exec(compile(block, page, "exec"), namespace)


def names_in_tables(page):
    cells = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w/]+)`", cell)}


def names_on_page_of(cls):
    """The pages of the others refer to MAAC's for what they share with it."""
    page = {MEMB: "memb.md", SVG1: "memb.md", MPDP: "mpdp.md"}
    shared = names_in_tables("algos/maac.md")
    return shared if cls is MAAC else shared | names_in_tables(f"algos/{page[cls]}")


@pytest.mark.parametrize("cls", [MAAC, MEMB, SVG1, MPDP])
def test_page_names_every_parameter(cls):
    arguments = {name for base in (cls, *cls.__bases__, ModelBasedAlgorithm) for name in inspect.signature(base).parameters}
    not_in_tables = {"policy", "env", "_init_setup_model", "kwargs", "unknown"}
    assert arguments - not_in_tables <= names_on_page_of(cls)


@pytest.mark.parametrize("cls", [MAAC, MEMB, SVG1, MPDP])
def test_page_names_every_metric(cls):
    written = set()

    class Names(KVWriter):
        def write(self, key_values, key_excluded, step=0):
            written.update(key_values)

    model = cls("MlpPolicy", "Pendulum-v1", learning_starts=50, model_net_arch=(8,), model_gradient_steps=2, batch_size=8)
    model.set_logger(Logger(None, [Names()]))
    model.learn(210, log_interval=1)
    ours = {name for name in written if name.startswith(("train/", "model/")) or name.endswith("_seconds")}
    assert "model/holdout_mse" in ours
    assert ours <= names_on_page_of(cls)
