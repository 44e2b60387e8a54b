"""Packages of the distribution; everything else about it stands in pyproject.toml.

`kernels/ops/` is imported as `reca_fast.kernels`. The folder `kernels/` itself holds no __init__.py on purpose:
transformers probes for a PyPI package named `kernels`, and a checkout on sys.path must never be taken for it.
"""

from setuptools import find_packages, setup

KERNELS = ["reca_fast.kernels", *(f"reca_fast.kernels.{name}" for name in find_packages("kernels/ops"))]

setup(
    packages=[*find_packages(include=["reca_fast", "reca_fast.*"]), *KERNELS],
    package_dir={"reca_fast": "reca_fast", "reca_fast.kernels": "kernels/ops"},
)
