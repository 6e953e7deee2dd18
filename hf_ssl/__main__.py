# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""`python -m hf_ssl` = `hf-ssl`."""

from .cli import main


main()
