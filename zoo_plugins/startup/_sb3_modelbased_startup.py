"""
Lets an unmodified rl_zoo3 find the algorithms of sb3-modelbased.

rl_zoo3 has no plug-in mechanism. ``sb3_modelbased.pth`` (from Python 3.15 on: ``sb3_modelbased.start``) calls
``install()`` whenever Python starts. This module must therefore stay tiny: it imports nothing that Python has not
imported by then, and adds one finder that waits for three modules of rl_zoo3. Everything else, torch included, is
imported only after one of them has run. ``SB3_MODELBASED_ZOO=0`` in the environment switches it off.
"""

import os
import sys

PATCHED_MODULES = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager")


class PatchingLoader:
    """
    Run a module with its own loader, then hand it to ``zoo_plugins.patch()``.

    :param loader: The module's own loader
    :param finder: The finder to remove when patching fails
    """

    def __init__(self, loader, finder):
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name):
        # get_source(), get_code(), is_package() ...: whatever else the module's own loader can do
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        # Nobody who inspects the module later should meet this wrapper
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        try:
            import zoo_plugins

            zoo_plugins.patch(module)
        except Exception as error:
            # rl_zoo3 has to go on working for its own algorithms, whatever is wrong with this package.
            # Without the finder the next module is left alone, so there is one warning and not three.
            if self._finder in sys.meta_path:
                sys.meta_path.remove(self._finder)
            import warnings

            warnings.warn(
                f"sb3-modelbased could not add its algorithms to rl_zoo3, whose own algorithms are not affected: "
                f"{type(error).__name__}: {error}. Reinstall sb3-modelbased, or set SB3_MODELBASED_ZOO=0 to silence this.",
                stacklevel=2,
            )


class ZooFinder:
    """Answer only for ``PATCHED_MODULES``, with the spec that the other finders give and a ``PatchingLoader``."""

    def find_spec(self, name, path=None, target=None):
        if name not in PATCHED_MODULES:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            if isinstance(finder, ZooFinder) or find_spec is None:
                continue
            spec = find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = PatchingLoader(spec.loader, self)
                return spec
        return None


def install():
    """Add the finder, once, unless ``SB3_MODELBASED_ZOO=0``."""
    if os.environ.get("SB3_MODELBASED_ZOO") == "0":
        return
    if not any(isinstance(finder, ZooFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, ZooFinder())
