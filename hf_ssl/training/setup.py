# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Everything before the loop: build a `Run` from a recipe, with data, model, optimizer and resumed state."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from transformers import PreTrainedConfig

from ..data.loader import TrainLoader
from ..data.modality import modality_of
from ..data.sources import check_source
from ..data.streams import ImageStream
from ..hub.encoders import start_from_encoder
from ..logs import get_logger
from ..methods import code_digest, load_method, method_classes
from ..models import SSLPreTrainedModel
from ..optim import build_optimizer
from ..recipe import Recipe, RecipeError, changed_keys, continued, method_name
from ..resolve import resolve
from .accelerator import build_accelerator, fit_model, on_main, prepare
from .checkpoint import Checkpoints, Found
from .choices import choose, choose_for, say, stand_in
from .examples import open_examples
from .fsdp import build_once
from .lock import run_lock
from .metrics import MetricsLogger, RunTotals, Throughput
from .monitor import Monitor, evaluating
from .publish import Publisher
from .run import Run
from .warm_start import warm_start


logger = get_logger(__name__)

MEASURED_SECONDS = 4.0  # of training, to estimate how many epochs fit into train.minutes


@contextmanager
def open_run(recipe: Recipe, dataset=None, bank=None, queries=None) -> Iterator[Run]:
    """Context with a run whose data are open and whose folder is locked. `build` then builds the model.

    Raises:
        UserError: the recipe or the data are unusable, or another process holds the lock.
    """
    if dataset is not None:  # data.path is not used, so the model card must not name it
        recipe = replace(recipe, data=replace(recipe.data, path=None))
    modality = modality_of(load_method(recipe.method)[0])
    asked, recipe = recipe, choose(recipe)
    if "init_from" not in recipe.model:  # otherwise the recipe is incomplete until its weights are read
        resolve(stand_in(recipe))
    if dataset is None:
        check_source(recipe.data, kind=modality.medium)
    accelerator = build_accelerator(recipe.train)
    folder = recipe.train.folder
    with run_lock(folder, accelerator):
        checkpoints = Checkpoints(folder / "checkpoints", recipe.train.keep, accelerator)
        if recipe.train.resume == "never" and checkpoints.complete():
            raise RecipeError(f"{folder} already contains a run; set another train.output_dir or train.resume=auto.")
        found, encoder = checkpoints.newest(), None
        if found is None:
            recipe, encoder = _pretrained_encoder(recipe, accelerator)
        else:
            recipe = _continued(recipe, found)
        resolved = resolve(stand_in(recipe))
        views, config = resolved.views, resolved.config
        modality.check(views, config)
        state = found.state if found else None
        examples = open_examples(recipe, (dataset, bank, queries), modality, config, state, accelerator)
        make_run = partial(Run, examples=examples, modality=modality, views=views, config=config, encoder=encoder)
        if found is None:
            measure = partial(_images_per_second, make_run, accelerator)
            recipe, reasons = choose_for(recipe, resolved, examples.count, accelerator, measure)
            say(asked, recipe, reasons)
        resolve(recipe).per_process_batch(accelerator.num_processes)
        run = make_run(recipe, accelerator, checkpoints, found)
        if recipe.train.keep_every is not None:
            checkpoints.keep_every = max(1, round(recipe.train.keep_every * run.steps_per_epoch))
        yield run


def build(run: Run) -> None:
    """Build the model and its optimizer, load the checkpoint, and open the loader.

    Raises:
        RecipeError: sizes do not match each other or the data, or the checkpoint is from another run.
    """
    recipe, accelerator, examples = run.recipe, run.accelerator, run.examples
    train = recipe.train
    run.publisher = Publisher(train, accelerator)

    # Same initial weights on every process, then a different random state on each.
    set_seed(train.seed)
    with build_once(accelerator):
        model = new_model(recipe, run.config).train()
        missing = warm_start(model, train.init_from) if train.init_from and run.found is None else []
        if run.encoder is not None and accelerator.is_main_process:  # broadcast later with all weights
            model.load_encoder(run.encoder, recipe.model["init_from"])
    model = fit_model(model, train, accelerator)
    make_optimizer = partial(build_optimizer, optim=recipe.optim, batch_size=train.batch_size)
    run.wrapped, run.optimizer = prepare(model, make_optimizer, accelerator)
    run.model = accelerator.unwrap_model(run.wrapped)
    torch.manual_seed(train.seed + 1 + accelerator.process_index)

    # Resume.
    state = None
    own: dict[str, Any] = {}
    if run.found is not None:
        run.found, own = run.checkpoints.load(run.found, run.model, run.optimizer)
        state = run.found.state
    run.start = state.step if state else 0
    if run.start > run.num_steps:
        raise RecipeError(
            f"{run.folder} is at step {run.start}, but the recipe ends at step {run.num_steps}; train longer or "
            "set another train.output_dir."
        )
    run.totals = RunTotals(accelerator, **(state.totals if state else {}))
    workers = min(recipe.data.num_workers, os.cpu_count() or 1)
    sources = (examples.bank, examples.queries, workers, examples.source)
    run.monitor = Monitor(recipe.monitor, run.modality, run.config, accelerator, *sources)
    run.monitor.restore(own.get("monitor", {}))
    run.stage2 = run.modality.stage2(run.config, recipe)

    # Data.
    make_loader = _loader_of(run, workers)
    if run.found is None:
        with torch.no_grad(), evaluating(run.model):
            run.model.prepare(set(missing), _every_example(run, make_loader))
    stream = state.stream if state else None
    run.loader = make_loader(start_step=run.start, num_steps=run.num_steps, state=stream)
    run.consumed = run.loader.state()

    # Records.
    before = (state.step, state.results) if state else (None, {})
    run.metrics = MetricsLogger(recipe, accelerator, run.steps_per_epoch, *before)
    on_main(accelerator, run.metrics.begin)
    run.throughput = Throughput(accelerator, run.start, own.get("meter"))


def _images_per_second(make_run: partial, accelerator: Accelerator, recipe: Recipe) -> float:
    """Throughput of real steps with a temporary model. `build` seeds again, so this does not affect the run."""
    from .pretrain import train_step  # circular import

    with tempfile.TemporaryDirectory() as folder:
        train = replace(recipe.train, epochs=None, steps=10**9, output_dir=folder, push_to_hub=None, track=())
        recipe = stand_in(replace(recipe, train=train))
        run = make_run(recipe, accelerator, Checkpoints(Path(folder) / "checkpoints", 1, accelerator), None)
        build(run)
        warm, done, start = False, 0, time.monotonic()
        with closing(iter(run.loader)) as batches:
            while True:
                train_step(run, islice(batches, train.accumulation), done, False)
                done, seconds = done + 1, time.monotonic() - start
                late = gather_object([seconds > MEASURED_SECONDS])[0]
                if late:
                    break
                if not warm:  # do not time the first step, which is slower
                    warm, done, start = True, 0, time.monotonic()
    accelerator.free_memory()
    return done * train.batch_size / seconds


def _loader_of(run: Run, workers: int) -> partial:
    """A `TrainLoader` without `start_step`, `num_steps` and `state`."""
    recipe, train, accelerator = run.recipe, run.recipe.train, run.accelerator
    return partial(
        TrainLoader,
        run.examples.source,
        run.modality.stage1(run.views, run.config, recipe),
        batch_size=train.batch_size,
        seed=train.seed,
        accumulation=train.accumulation,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=workers,
        max_failed_share=recipe.data.max_failed_share,
        shuffle_block=recipe.data.shuffle_block,
    )


def new_model(recipe: Recipe, config: PreTrainedConfig) -> SSLPreTrainedModel:
    """The model of a recipe, with initial weights.

    Raises:
        RecipeError: its sizes do not match each other or the data.
    """
    try:
        return method_classes(recipe.method)[1](config)
    except ValueError as error:
        raise RecipeError(f"model: {error}") from None


def _pretrained_encoder(recipe: Recipe, accelerator: Accelerator) -> tuple[Recipe, dict[str, torch.Tensor] | None]:
    """Read `model.init_from` on the main process. Returns the recipe with the model fields that it determines, and the
    encoder's tensors on the main process.
    """
    found: list[tuple[dict[str, torch.Tensor] | None, dict[str, Any]]] = [(None, {})]

    def read() -> None:
        found[0] = start_from_encoder(recipe)

    if "init_from" in recipe.model:
        on_main(accelerator, read)
    fields = gather_object([found[0][1]])[0]
    return replace(recipe, model={**recipe.model, **fields}), found[0][0]


def _continued(recipe: Recipe, found: Found) -> Recipe:
    """The recipe to resume a checkpoint with.

    Raises:
        RecipeError: the checkpoint was made with a different recipe or method code.
    """
    state = found.state
    if state.code is not None and state.code != code_digest(recipe.method):
        raise RecipeError(
            f"The code of {method_name(recipe.method)} has changed since {found.path}; restore the file, or continue "
            f"in another train.output_dir with train.init_from={found.path.parent.parent}."
        )
    asked, recipe = recipe, continued(recipe, state.recipe, state.format, state.began)
    if kept := changed_keys(asked.to_dict(), recipe.to_dict()):
        logger.warning(f"This run was started by an earlier version and keeps its values of {', '.join(kept)}.")
    changed = changed_keys(state.recipe, recipe.to_dict(), state.format)
    if not changed:
        return recipe
    said = f"{found.path} was made with a different recipe ({', '.join(changed)} changed)"
    if set(changed) <= {"train.epochs", "train.steps"}:
        raise RecipeError(
            f"{said}. The schedule of a run is fixed when it starts; restore the value, or train longer in another "
            f"train.output_dir with train.init_from={found.path.parent.parent}."
        )
    raise RecipeError(f"{said}; restore these values or set another train.output_dir.")


def _every_example(run: Run, make_loader: partial) -> Iterator[dict[str, torch.Tensor]]:
    """Model inputs of one pass over the data, loaded lazily."""
    examples = run.examples
    loaders = [make_loader(start_step=0, num_steps=run.steps_per_epoch)]
    count = 0 if isinstance(examples.source, ImageStream) else len(examples.source)
    rest = count % run.recipe.train.batch_size
    if rest:  # the rest, in batches of one, all on every process
        alone = {"batch_size": 1, "accumulation": 1, "rank": 0, "world_size": 1}
        steps = {"start_step": count - rest, "num_steps": count}
        loaders.append(make_loader(**steps, **alone))
    for batch in chain.from_iterable(loaders):
        yield run.stage2(batch, run.accelerator.device)
