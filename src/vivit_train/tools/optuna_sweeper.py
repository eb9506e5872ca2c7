"""The Hydra sweeper `hydra/sweeper=search`, for which Optuna proposes the jobs, and the file of its trials.

train.py imports this module at every start, so heavy imports are local.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig

from vivit_train.utils.arguments import conforms, shown
from vivit_train.utils.errors import UserError, reason

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30  # A trial takes about a kilobyte.
STUDY = "vivit-train"
PRUNED = "pruned after epoch"  # This is the user attribute of a pruned trial.


class Search(Sweeper):
    """Asks Optuna for jobs, launches them and reports their val/score, until there are `n_trials` trials.

    The trials are stored in a file, and the values of a trial depend only on the seed and the number of the trial.
    After a search is killed, the same command therefore resumes it with the same trials. Unfinished trials are
    launched first; one that has not all of its parameters is dropped, and another takes its place.

    Args:
        storage: File that stores the trials.
        n_trials: Total number of trials over all starts of the search, including failed ones.
        n_jobs: Number of jobs to launch at a time, for launchers that run jobs in parallel.
        params: Search space, a mapping of names to interval(low, high), tag(log, interval(low, high)), choice(...)
            or range(...). The command line can add parameters or set one of these to a fixed value.
        seed: Seed of the sampler.
        sampler: Configuration node of an Optuna sampler that takes a seed.
    """

    def __init__(
        self, storage: str, n_trials: int, n_jobs: int, params: DictConfig, seed: int, sampler: DictConfig
    ) -> None:
        self.storage, self.n_trials, self.n_jobs, self.params = storage, n_trials, n_jobs, params
        self.seed, self.sampler = seed, sampler

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search.

        Args:
            arguments: Overrides of the command line.

        Raises:
            UserError: Optuna is not installed, or an interval has no values.
        """
        study = open_study(self.storage)
        texts = [*(f"{name!s}={text}" for name, text in self.params.items()), *arguments]
        parsed = OverridesParser.create().parse_overrides(texts)
        overrides = {override.get_key_element(): override for override in parsed}  # The last override wins.
        fixed = [str(override.input_line) for override in overrides.values() if not override.is_sweep_override()]
        space = {name: distribution(o) for name, o in overrides.items() if o.is_sweep_override()}
        drop_incomplete(study, space)
        waiting = [trial.number for trial in study.trials if not trial.state.is_finished()]
        n_trials = self.n_trials + sum(is_incomplete(trial, space) for trial in study.trials)
        if not all(conforms(trial.values, list[float] | None) for trial in study.trials):
            raise UserError(f"{self.storage} holds a score that is no finite number: move or delete it")
        for number in waiting:
            check_choices(self.storage, study.trials[number].params, space)
        while True:
            batch = waiting[:1]
            while batch and batch[-1] + 1 in waiting and len(batch) < self.n_jobs:
                batch.append(batch[-1] + 1)
            waiting = [number for number in waiting if number not in batch]
            while not waiting and len(batch) < self.n_jobs and len(study.trials) < n_trials:
                study.sampler = instantiate(self.sampler, seed=self.seed + len(study.trials))
                batch.append(study.ask(space).number)
            if not batch:
                return
            chosen = [study.trials[number].params for number in batch]
            jobs = [[*fixed, *(f"{name}={value}" for name, value in params.items())] for params in chosen]
            for number, job in zip(batch, self.launcher.launch(jobs, initial_job_idx=batch[0]), strict=True):
                tell(study, number, job)


def register_search() -> None:
    """Make `Search` known to Hydra in this process.

    Hydra accepts sweepers only by names below `hydra_plugins`, and every Hydra program of an environment imports
    the modules that are installed there.
    """
    Plugins.instance().class_name_to_class["hydra_plugins.vivit_train.Search"] = Search


def distribution(override: Override) -> Any:
    """Convert an override to a distribution of Optuna. Choices are strings, as on the command line."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    span = override.value()
    if not isinstance(span, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    low, high, log = span.start, span.end, "log" in span.tags
    try:
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(str(low)), float(str(high)), log=log)
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error


def is_incomplete(trial: Any, space: Mapping[str, Any]) -> bool:
    """Return whether a trial has no result and lacks a parameter of the search space."""
    return trial.state.name in ("RUNNING", "WAITING", "FAIL") and trial.params.keys() < space.keys()


def drop_incomplete(study: Any, space: Mapping[str, Any]) -> None:
    """Mark unfinished trials without all parameters as failed; the search asks for others in their place.

    They are what a search leaves that is killed while it draws the parameters of a trial.
    """
    from optuna.trial import TrialState

    for trial in study.trials:
        if not trial.state.is_finished() and is_incomplete(trial, space):
            study.tell(trial.number, state=TrialState.FAIL)
            missing = ", ".join(sorted(space.keys() - trial.params.keys()))
            log.info(
                f"trial {trial.number} is dropped, as the search was killed before it had a value for {missing}: "
                "another one takes its place"
            )


def check_choices(storage: str, params: Mapping[str, Any], space: Mapping[str, Any]) -> None:
    """Check the stored parameters of an unfinished trial, which become part of a command line.

    Raises:
        UserError: A name or a value is outside the search space of this command.
    """
    for name, value in params.items():
        span = space.get(name)
        if span is None:
            found = False
        elif hasattr(span, "choices"):
            found = value in span.choices
        else:
            found = type(value) in (int, float) and span.low <= value <= span.high
        if not found:
            raise UserError(
                f"{storage} holds a trial with {shown(name)} = {shown(value)}, which is not in the search space "
                "of this command: set hydra.sweep.dir=DIR to start another search"
            )


def tell(study: Any, number: int, job: JobReturn) -> None:
    from optuna.trial import TrialState

    score = job.return_value if job.status == JobStatus.COMPLETED else None
    if score is None or score != score:
        study.tell(number, state=TrialState.FAIL)
    elif PRUNED in study.trials[number].user_attrs:
        study.tell(number, state=TrialState.PRUNED)
    else:
        study.tell(number, score)


def open_storage(file: str) -> Any:
    """Open a file as storage of Optuna. Several processes can use it at once, also on a network file system.

    Raises:
        UserError: Optuna is not installed, or the file is damaged or not a search.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'vivit-train[optuna]'") from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    path = Path(file)
    if path.exists() and not (path.is_file() and path.stat().st_size <= MAX_BYTES):  # Opening a pipe would block.
        raise UserError(
            f"{file} is not a file, or larger than any search: set hydra.sweep.dir=DIR to start another"
        )
    with translate_storage_errors(file):
        return JournalStorage(JournalFileBackend(file))


def open_study(file: str, pruner: Any = None) -> Any:
    """Open the search in a file, or create a new one if the file does not exist."""
    storage = open_storage(file)
    import optuna

    with translate_storage_errors(file):
        return optuna.create_study(
            storage=storage, study_name=STUDY, direction="maximize", pruner=pruner, load_if_exists=True
        )


@contextmanager
def translate_storage_errors(file: str) -> Iterator[None]:
    """Turn the built-in exceptions that Optuna raises for an invalid file into a UserError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, AssertionError) as error:
        raise UserError(
            f"{file} is damaged or not a search of vivit-train ({reason(error)}): move or delete it"
        ) from error
