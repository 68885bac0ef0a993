"""Query the GPU by nvidia-smi; without a GPU all results are empty."""

import statistics
import subprocess
import threading
import time


def nvidia_smi(*arguments: str) -> str:
    """Return the output of nvidia-smi, or "" if it cannot be run."""
    command = ["nvidia-smi", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def uuids() -> list[str]:
    """Return the UUIDs of the GPUs."""
    return [part.partition(")")[0] for part in nvidia_smi("-L").split("UUID: ")[1:]]


def processes() -> set[int]:
    """Return the IDs of the processes that use a GPU."""
    output = nvidia_smi("--query-compute-apps=pid", "--format=csv,noheader,nounits")
    return {int(word) for word in output.split() if word.isdigit()}


class Meter:
    """Samples the GPU's utilization and memory twice a second."""

    def __init__(self) -> None:
        self.readings: list[tuple[float, float, float]] = []  # time, % busy, MiB
        query = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        self.process: subprocess.Popen[str] | None = None
        try:
            self.process = subprocess.Popen(
                ["nvidia-smi", *query, "-lms", "500"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError:
            return
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                busy, used = (float(word) for word in line.split(","))
            except ValueError:
                continue
            self.readings.append((time.monotonic(), busy, used))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Return the mean utilization and the peak memory between two times; {} without samples."""
        rows = [row for row in self.readings if begin <= row[0] <= end]
        if not rows:
            return {}
        return {
            "gpu_busy_percent": statistics.mean(row[1] for row in rows),
            "gpu_memory_mib": max(row[2] for row in rows),
        }

    def stop(self) -> None:
        """Stop sampling."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
