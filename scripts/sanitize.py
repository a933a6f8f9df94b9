"""Run the tests of the kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set here.

Builds the library with both into build/sanitize, then runs the tests on it; `make sanitize` calls this. The sanitized
library also fills scratch memory with NaN before each use and forbids what lies behind the part that was asked for.

    python scripts/sanitize.py            # everything: minutes
    python scripts/sanitize.py --quick    # the operators on drawn and recorded problems, on the path in use
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
LIBRARY = BUILD / "libdwsep.so"
EVERYTHING = ("tests/kernels", "tests/ops", "tests/nn")
OPERATORS = ("tests/kernels/test_native.py", "tests/kernels/test_native_backward.py", "tests/ops")
# A report goes to the file descriptor of standard error, which pytest would capture and take to its grave.
PYTEST = ("-q", "-n", str(os.cpu_count() or 1), "--capture=sys", "--show-capture=no", "-o", "timeout=1800")
# It compiles programs of its own, without the library; the compiler would run under the sanitizer.
LEFT_OUT = "tests/kernels/test_portability.py"


def main() -> int:
    """Returns 0 where every test passes and no sanitizer complains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    build()
    environment = sanitized_environment()
    isas = supported_isas(environment)
    runs = [(isas[-1], OPERATORS if options.quick else EVERYTHING)]
    if not options.quick:
        # The tests of recorded shapes go through every path by themselves.
        runs += [(isa, (*OPERATORS, "-k", "not recorded")) for isa in isas[:-1]]
    failed = []
    for isa, arguments in runs:
        print(f"== {isa}: {' '.join(arguments)}", flush=True)
        finished = subprocess.run(
            [sys.executable, "-m", "pytest", *PYTEST, *arguments, f"--ignore={LEFT_OUT}"],
            cwd=ROOT,
            env={**environment, "DWSEP_ISA": isa},
            check=False,
        )
        if finished.returncode != 0:
            failed.append(isa)
    if failed:
        print(f"sanitize: FAILED on {', '.join(failed)}: the first report is above")
        return 1
    print(f"sanitize: no error found by AddressSanitizer or UndefinedBehaviorSanitizer on {', '.join(isas)}")
    return 0


def build() -> None:
    """Builds the library into build/sanitize; what is up to date is not compiled again."""
    cmake = shutil.which("cmake")
    if cmake is None:
        raise SystemExit("sanitize needs cmake, which pip brings only into its own builds: pip install cmake ninja")
    generator = ["-G", "Ninja"] if shutil.which("ninja") and not (BUILD / "CMakeCache.txt").exists() else []
    configure = [cmake, "-S", ".", "-B", str(BUILD), "-DDWSEP_SANITIZE=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run([*configure, *generator], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([cmake, "--build", str(BUILD), "--parallel", "--target", "dwsep"], check=True)


def sanitized_environment() -> dict[str, str]:
    """The environment in which Python can load the library."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DWSEP_")}
    # The runtime has to be loaded before everything else; beside it libstdc++, whose exceptions it wants to see thrown.
    environment["LD_PRELOAD"] = " ".join(_compiler_file(name) for name in ("libasan.so", "libstdc++.so.6"))
    # Python and PyTorch keep memory until the process ends. After an abort, pytest says which test it was.
    for name, options in (("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=1"), ("UBSAN_OPTIONS", "print_stacktrace=1")):
        environment[name] = ":".join(filter(None, (options, os.environ.get(name))))
    environment["DWSEP_LIBRARY"] = str(LIBRARY)
    environment["DWSEP_KEEP_MEMORY"] = "0"  # as it is built: tests of what is kept leave themselves out
    environment["PYTHONPATH"] = str(ROOT / "src")
    return environment


def supported_isas(environment: dict[str, str]) -> list[str]:
    """The instruction sets that this CPU runs, slowest first."""
    script = "import dwsep; print(*dwsep.ops.native_status().supported_isas)"
    finished = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    if finished.returncode != 0:
        raise SystemExit(f"sanitize: the library cannot be loaded:\n{finished.stderr}")
    return finished.stdout.split()


def _compiler_file(name: str) -> str:
    compiler = os.environ.get("CXX", "g++")
    path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
    if not Path(path.strip()).is_absolute():
        raise SystemExit(f"sanitize needs GCC's sanitizers, and {compiler} has no {name}")
    return path.strip()


if __name__ == "__main__":
    sys.exit(main())
