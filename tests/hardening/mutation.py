"""Which wrong edits of a module no test notices.

Two steps, from the root of the project; the first needs pytest-cov and writes which tests reach
which line, and how long each takes:

    pytest tests/analyzer tests/probes --cov --cov-context=test --junitxml=times.xml
    python tests/hardening/mutation.py --sample 60 --out found.json analyzer/rules/*.py

A mutant is tried in a child of one process that has imported and collected everything, so torch is
imported once. The tests that reach its lines run until one fails, the quickest first, up to a total
of some seconds; a mutant that hangs is stopped and counts as noticed.
"""

import argparse
import ast
import gc
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any
from xml.etree import ElementTree

import hypothesis
import pytest
import torch
from coverage import CoverageData
from mutants import Mutant, mutants

SECONDS = 6.0
"""Time of the tests that are tried on one mutant."""

HANG = 10
"""Seconds of computing that they may take beyond four times that."""

STUCK = 20
"""Times as long that they may take in all, computing or not."""

STOPS = (signal.SIGPROF, signal.SIGALRM)
"""What ends a mutant that hangs, however busy the machine is."""

MEMORY = 4 * 2**30
"""What a mutant may take beyond its parent [byte]."""


class Tests:
    """Which tests reach a line, the quickest first."""

    def __init__(self, covered: Path, times: Path) -> None:
        self.data = CoverageData(str(covered))
        self.data.read()
        self.files = {Path(name).resolve(): name for name in self.data.measured_files()}
        self.seconds = _durations(times)

    def reaching(self, path: Path, lines: Iterable[int], seconds: float) -> list[str]:
        """Return the tests that run any of some lines, as many as there is time for."""
        contexts = self.data.contexts_by_lineno(self.files.get(path.resolve(), str(path)))
        names = {name.rpartition("|")[0] for line in lines for name in contexts.get(line, ())}
        chosen, left = [], seconds
        for name in sorted(names & set(self.seconds), key=lambda name: self.seconds[name]):
            left -= self.seconds[name]
            if left < 0 and chosen:
                break
            chosen.append(name)
        return chosen


def _durations(times: Path) -> dict[str, float]:
    """Read how long each test took, by its name in pytest [s]."""
    found = {}
    for case in ElementTree.parse(times).iter("testcase"):
        path = case.attrib["classname"].replace(".", "/") + ".py"
        found[f"{path}::{case.attrib['name']}"] = float(case.attrib["time"])
    return found


class Trials:
    """Takes the place of pytest's loop over the tests: tries mutants on them."""

    def __init__(self, paths: Sequence[Path], tests: Tests, options: argparse.Namespace) -> None:
        self.paths = paths
        self.tests = tests
        self.options = options
        self.found: list[dict[str, Any]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try all mutants."""
        self.items = {item.nodeid: item for item in session.items}
        self.functions = defaultdict(list)
        for thing in gc.get_objects():
            if type(thing) is FunctionType:  # isinstance wakes lazy objects of torch
                code = thing.__code__
                self.functions[code.co_filename, code.co_qualname].append(thing)
        for path in self.paths:
            self.module(path)
            self.options.out.write_text(json.dumps(self.found, indent=1))
        return True

    def module(self, path: Path) -> None:
        """Try the mutants of one module, or a sample of them."""
        every = list(mutants(path.read_text()))
        chance = random.Random(f"{self.options.seed} {path}")
        count = min(self.options.sample or len(every), len(every))
        chosen = sorted(chance.sample(range(len(every)), count))
        if self.options.again:
            chosen = [at for at in chosen if (str(path), str(every[at])) in self.options.again]
        outcomes: Counter[str] = Counter()
        start = time.monotonic()
        for index in chosen:
            outcome = self.one(path, every[index])
            outcomes[outcome] += 1
            told = {"path": str(path), "mutant": str(every[index]), "outcome": outcome}
            self.found.append(told | {"of": len(every)})
        seconds = time.monotonic() - start
        said = f"{path}: {len(chosen)} of {len(every)} in {seconds:.0f} s, {dict(outcomes)}\n"
        sys.stderr.write(said)

    def one(self, path: Path, mutant: Mutant) -> str:
        """Try one mutant: ``killed``, ``hung``, ``survived``, or ``not reached`` by any test."""
        reaching = self.tests.reaching(path, mutant.lines, self.options.seconds)
        names = [name for name in reaching if name in self.items]
        if not names:
            return "not reached"
        child = os.fork()
        if not child:
            os._exit(self.noticed(path, mutant, names))
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return "hung" if os.WTERMSIG(status) in STOPS else "killed"
        return "killed" if os.WEXITSTATUS(status) else "survived"

    def noticed(self, path: Path, mutant: Mutant, names: Sequence[str]) -> int:
        """Run tests on a mutant in this process; 1 if one fails."""
        for stop in STOPS:
            signal.signal(stop, signal.SIG_DFL)
        most = HANG + int(4 * sum(self.tests.seconds[name] for name in names))
        signal.setitimer(signal.ITIMER_PROF, most)
        signal.alarm(STUCK * most)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        self.apply(path, mutant.tree)
        for name, following in zip(names, [*names[1:], None], strict=True):
            item, after = self.items[name], self.items.get(following or "")
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        return 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """End the child at the first failure."""
        if report.failed:
            os._exit(1)

    def apply(self, path: Path, tree: ast.Module) -> None:
        """Give the functions of a loaded module the code of a mutant."""
        name = str(path.resolve())
        for code in _codes(compile(tree, name, "exec", dont_inherit=True)):
            for function in self.functions[name, code.co_qualname]:
                if function.__code__.co_firstlineno == code.co_firstlineno:
                    function.__code__ = code


def _codes(code: CodeType) -> Iterable[CodeType]:
    """Yield the code objects within one."""
    for held in code.co_consts:
        if isinstance(held, CodeType):
            yield held
            yield from _codes(held)


def _survivors(found: str) -> set[tuple[str, str]]:
    """Read which mutants no test noticed in an earlier run: their modules and edits."""
    return {
        (one["path"], one["mutant"])
        for one in json.loads(Path(found).read_text())
        if one["outcome"] in ("survived", "not reached")
    }


def main() -> None:
    """Try the mutants of the modules that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--sample", type=int, help="mutants of each module; all if unset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of tests for each mutant")
    parser.add_argument(
        "--again", type=_survivors, help="file of an earlier run: only its survivors"
    )
    parser.add_argument("--coverage", type=Path, default=Path(".coverage"))
    parser.add_argument("--times", type=Path, default=Path("times.xml"))
    parser.add_argument("--out", type=Path, default=Path("mutation.json"))
    options = parser.parse_args()
    tests = Tests(options.coverage, options.times)
    torch.set_num_threads(1)
    # A failure is enough; which example is the smallest does not matter.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutation", phases=phases, database=None)
    hypothesis.settings.load_profile("mutation")
    files = sorted({name.partition("::")[0] for name in tests.seconds})
    trials = Trials(options.paths, tests, options)
    early = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    quiet = ["-o", "addopts=--import-mode=importlib", "-s", "-p", "no:cacheprovider"]
    quiet += ["-p", "no:terminal"]
    sys.exit(pytest.main([*early, *quiet, *files], plugins=[trials]))


if __name__ == "__main__":
    main()
