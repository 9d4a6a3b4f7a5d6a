"""What pyproject.toml has no word for: the repository's configs/ become a part of the installed package."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["lape_jax*"]), "lape_jax.configs"],
    package_dir={"lape_jax.configs": "configs"},
)
