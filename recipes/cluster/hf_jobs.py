# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["huggingface_hub>=1.33"]
# ///
"""Pretrain on Hugging Face Jobs (https://huggingface.co/docs/huggingface_hub/guides/jobs).

    python recipes/cluster/hf_jobs.py --flavor a10g-small --timeout 6h my_images data.path=user/photos \
        train.push_to_hub=user/name

The file submits itself and then trains inside the job. The disk of a job is lost when it ends, so train.push_to_hub
must be set: it publishes every checkpoint and the final model. Your token goes to the job as the secret HF_TOKEN.
--package says what to install: a wheel's URL or a git address where hf_ssl is on no index. Not run: only checked
against the client of huggingface_hub.
"""

import argparse
import os
import subprocess
import sys


def submit(args: argparse.Namespace, overrides: list[str]) -> None:
    """Start a job that runs this file with `--inside`."""
    from huggingface_hub import get_token, run_uv_job

    token = get_token()
    if token is None:
        sys.exit("There is no token; log in with `hf auth login`.")
    if not any(text.startswith("train.push_to_hub=") for text in overrides):
        sys.exit("Add train.push_to_hub=user/name; what a job leaves on its disk is lost.")
    job = run_uv_job(
        __file__,
        script_args=["--inside", args.recipe, *overrides],
        dependencies=[args.package],
        flavor=args.flavor,
        timeout=args.timeout,
        secrets={"HF_TOKEN": token},
        env={"PYTHONUNBUFFERED": "1"},
        namespace=args.namespace,
    )
    print(f"{job.url}\nhf jobs logs {job.id}")


def run(recipe: str, overrides: list[str]) -> int:
    """Inside the job: train on all of its GPUs."""
    import torch

    command = ["-m", "hf_ssl", "pretrain", recipe, *overrides]
    gpus = torch.cuda.device_count()
    if gpus > 1:
        command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(gpus), *command]
    return subprocess.call([sys.executable, *command], env=os.environ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a name from `hf-ssl recipes`, or a YAML file, which is uploaded")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe to change")
    parser.add_argument("--flavor", default="a10g-small", help="hardware (default a10g-small)")
    parser.add_argument("--timeout", default="6h", help="the job is stopped after this time (default 6h)")
    parser.add_argument("--package", default="hf_ssl", help="what pip calls hf_ssl: a name, URL or git address")
    parser.add_argument("--namespace", help="user or organization that pays (default: yours)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        sys.exit(run(args.recipe, args.overrides))
    submit(args, args.overrides)


if __name__ == "__main__":
    main()
