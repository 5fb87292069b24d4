"""What pyproject.toml cannot say: `configs/` of the repository is `mtl_jax.configs` of the wheel."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["mtl_jax*"]), "mtl_jax.configs"], package_dir={"mtl_jax.configs": "configs"})
