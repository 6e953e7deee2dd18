# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Messages about unreadable files."""

import logging

from accelerate import Accelerator

from hf_ssl.training.metrics import RunTotals, read_metrics


def test_a_broken_file_is_named_once_in_a_run_and_summed_up_at_its_end(caplog):
    caplog.set_level(logging.INFO)
    accelerator = Accelerator(cpu=True)
    totals = RunTotals(accelerator)
    for _ in range(3):  # epochs
        totals.add_skipped([("b.jpg", "cut off"), ("a.jpg", "not an image")])
        totals.synchronize()
    continued = RunTotals(accelerator, **totals.to_dict())
    continued.add_skipped([("a.jpg", "not an image"), ("c.jpg", "cut off")])
    continued.synchronize()
    continued.summarize()
    lines = [record.getMessage() for record in caplog.records]
    assert [sum(f"Skipped {name}" in line for line in lines) for name in ("a.jpg", "b.jpg", "c.jpg")] == [1, 1, 1]
    assert continued.skipped == 8 and "3 different file(s) could not be read (8 attempts)" in lines[-1]


def test_a_run_without_broken_files_says_nothing(caplog):
    totals = RunTotals(Accelerator(cpu=True))
    totals.add_skipped([])
    totals.synchronize()
    totals.summarize()
    assert not caplog.records and totals.to_dict() == {"skipped": 0, "seconds": 0.0}


def test_lines_that_are_no_measurements_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.5}\n' + "[" * 100_000 + '\nnull\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.5}]
