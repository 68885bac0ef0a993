"""The stage `faults`: tests for faults that were suspected when reading the code.

A suspect is a function that tests for one fault, on small data, and returns {"seen": …, …}: True if
the fault occurs, False if it does not, None if that is unknown because there is no GPU or time.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import card
from commands import FASHION_LIT, WITHOUT_GPU, Done, Turn
from results import Figures, Outcome
from runs import FEW, QUIET, TINY, continue_command, is_on_gpu, place, train

Suspect = Callable[[Turn], Figures]

NUM_AT_ONCE = 5
SMALL_RUN = (*FEW, *QUIET)
REFUSED = 2  # the exit code for an invalid configuration, rejected with a message


def faults(turn: Turn) -> Outcome:
    """Test for every suspected fault."""

    def look(suspect: Suspect) -> Figures:
        try:
            return suspect(turn)
        except Exception as error:  # must not stop the other suspects
            return {"seen": None, "error": f"{type(error).__name__}: {error}"[:300]}

    with ThreadPoolExecutor(1 if turn.check.small else NUM_AT_ONCE) as pool:
        found = dict(zip(SUSPECTS, pool.map(look, SUSPECTS.values()), strict=True))
    seen = [name for name, figures in found.items() if figures.get("seen")]
    unknown = [name for name, figures in found.items() if figures.get("seen") is None]
    line = f"seen: {', '.join(seen) or 'none'}; not known: {', '.join(unknown) or 'none'}"
    return Outcome(not seen, line, found)


def trains_at_all(turn: Turn, name: str, *overrides: str, may_refuse: bool = False) -> Figures:
    """Train a few steps; the fault is that this fails.

    Success without a GPU proves nothing. With `may_refuse`, an invalid-configuration message is no
    fault.
    """
    run = train(turn, name, *SMALL_RUN, *overrides)
    code = run["exit"]
    if code is None or (code == 0 and not is_on_gpu(run)):
        seen = None
    else:
        seen = code != 0 and not (may_refuse and code == REFUSED)
    return {"seen": seen, "exit": code, "reason": run.get("reason")}


def trained_on_gpu(turn: Turn, name: str, *overrides: str) -> Figures | None:
    """Train a few steps, as the first part of a suspect.

    Returns None if they were trained on a GPU. Otherwise returns the suspect's result, which is
    unknown without a GPU, where a run that requires one is refused.
    """
    run = train(turn, name, *overrides, *SMALL_RUN, *turn.in_small(TINY))
    if run["exit"] == 0 and is_on_gpu(run):
        return None
    expected = (0, None) if card.uuids() else (0, None, REFUSED)
    return {
        "seen": None if run["exit"] in expected else True,
        "trained": run["exit"],
        "reason": run.get("reason"),
    }


def ends_well(done: Done) -> Figures:
    """Return a suspect's result; the fault is that the command failed."""
    seen = None if done.code is None else not done.ok
    return {"seen": seen, "exit": done.code, "reason": "" if done.ok else done.last_words}


def report_b_deterministic(turn: Turn) -> Figures:
    """An operation of report B's network has no deterministic kernel."""
    return trains_at_all(turn, "s_report_b", "experiment=report_b", "trainer.deterministic=true")


def clipping(turn: Turn) -> Figures:
    """Lightning refuses to clip the gradients of fused optimizers."""
    settings = ["precision=bf16", "trainer.gradient_clip_val=1", *turn.in_small(TINY)]
    return trains_at_all(turn, "s_clip", *settings)


def bf16_true(turn: Turn) -> Figures:
    """With weights in bf16, some operation expects float32."""
    settings = ["trainer.precision=bf16-true", *turn.in_small(TINY)]
    return trains_at_all(turn, "s_true", *settings, may_refuse=True)


def cuda_graphs_with_accumulation(turn: Turn) -> Figures:
    """CUDA graphs overwrite the gradients that should be accumulated."""
    settings = ["trainer.compile=reduce-overhead", "trainer.accumulate_grad_batches=2", TINY]
    steps = "trainer.limit_train_batches=8"
    return trains_at_all(turn, "s_accumulate", *settings, steps, may_refuse=True)


def gpu_run_tested_without_gpu(turn: Turn) -> Figures:
    """A run trained on a GPU cannot be tested later on a machine without one."""
    early = trained_on_gpu(turn, "s_moved")
    command = continue_command(turn, "s_moved", "test=true")
    return early or ends_well(turn.run(command, WITHOUT_GPU))


def evaluate_data_device_cuda(turn: Turn) -> Figures:
    """A run with data.device=cuda cannot be evaluated with a GPU, or without one."""
    early = trained_on_gpu(turn, "s_device", "data.device=cuda")
    if early:
        return early
    command = [*FASHION_LIT, "evaluate", str(place(turn, "s_device"))]
    found = ends_well(turn.run(command))
    return found if found["seen"] else ends_well(turn.run(command, WITHOUT_GPU))


def evaluate_accelerator_cuda_without_gpu(turn: Turn) -> Figures:
    """A run with trainer.accelerator=cuda cannot be evaluated without a GPU."""
    early = trained_on_gpu(turn, "s_cuda", "trainer.accelerator=cuda")
    command = [*FASHION_LIT, "evaluate", str(place(turn, "s_cuda"))]
    return early or ends_well(turn.run(command, WITHOUT_GPU))


def data_device_changed_on_resume(turn: Turn) -> Figures:
    """A run resumes with another data.device, whose random numbers augment differently."""
    settings = ["data.device=auto", *SMALL_RUN, *turn.in_small(TINY)]
    run = train(turn, "s_data_device", *settings)
    if run["exit"] != 0:
        return {"seen": None, "trained": run["exit"], "reason": run.get("reason")}
    done = turn.run(continue_command(turn, "s_data_device", "data.device=cpu"))
    seen = None if done.code is None else done.code != REFUSED
    return {"seen": seen, "exit": done.code, "reason": done.last_words}


def gradient_norm_scaled(turn: Turn) -> Figures:
    """In fp16, the norm of the scaled gradients is logged, 2**16 times as large as it should be."""
    norms: dict[str, float] = {}
    on_gpu = True
    for precision in ("fp16", "fp32"):
        name = f"s_norm_{precision}"
        settings = [f"precision={precision}", "tensorboard.norms_every_steps=1", *SMALL_RUN]
        on_gpu &= is_on_gpu(train(turn, name, *settings, *turn.in_small(TINY)))
        curves = turn.probe("scalars", str(place(turn, name)), "train/gradient_norm")
        values = [norm for norm in curves.get("train/gradient_norm", []) if math.isfinite(norm)]
        norms[precision] = min(values, default=math.nan)  # skips infinite norms
    known = on_gpu and all(map(math.isfinite, norms.values()))
    return {"seen": norms["fp16"] > 100 * norms["fp32"] if known else None, **norms}


def notice_about_tensor_cores(turn: Turn) -> Figures:
    """PyTorch prints its advice on Tensor Cores in the default run."""
    run = turn.check.results.figures_of("default")
    if run is None or not is_on_gpu(run):
        return {"seen": None}
    notices = run["notices"]
    return {"seen": any("Tensor Cores" in notice for notice in notices), "notices": notices}


def probe(name: str) -> Suspect:
    """Return a suspect that a probe tests for."""

    def suspect(turn: Turn) -> Figures:
        found = turn.probe(name)
        return {"seen": found.get("fault"), **found}

    return suspect


SUSPECTS: Mapping[str, Suspect] = {
    "report B with deterministic=true": report_b_deterministic,
    "clipping in bf16": clipping,
    "GPU run tested without a GPU": gpu_run_tested_without_gpu,
    "evaluate with data.device=cuda": evaluate_data_device_cuda,
    "evaluate accelerator=cuda without a GPU": evaluate_accelerator_cuda_without_gpu,
    "gradient norm scaled in fp16": gradient_norm_scaled,
    "CUDA graphs with accumulation": cuda_graphs_with_accumulation,
    "precision bf16-true": bf16_true,
    "data.device changed on resume": data_device_changed_on_resume,
    "momentum of fused SGD after a skipped step": probe("fused_sgd"),
    "copies to the CPU read too early": probe("early_reads"),
    "a notice about Tensor Cores": notice_about_tensor_cores,
    "a slot without a visible GPU": probe("shares"),
}
