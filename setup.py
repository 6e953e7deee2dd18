# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Which packages there are, which pyproject.toml could only list; everything else stands there."""

from setuptools import find_packages, setup


setup(packages=[*find_packages(include=["hf_ssl", "hf_ssl.*"]), "hf_ssl.recipes", "hf_ssl.model_cards"])
