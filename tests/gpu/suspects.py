"""The stage of faults that reading the code made one suspect: each is looked for, in small.

A suspect returns {"seen": …, …}: True, the fault is there; False, it is not; None, that cannot be
known, since there is no GPU or the time was too short.
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
REFUSED = 2  # the exit code of a configuration that cannot be, told in a sentence


def faults(turn: Turn) -> Outcome:
    """Look for every suspect."""

    def look(suspect: Suspect) -> Figures:
        try:
            return suspect(turn)
        except Exception as error:  # another suspect may still be looked at
            return {"seen": None, "error": f"{type(error).__name__}: {error}"[:300]}

    with ThreadPoolExecutor(1 if turn.check.small else NUM_AT_ONCE) as pool:
        found = dict(zip(SUSPECTS, pool.map(look, SUSPECTS.values()), strict=True))
    seen = [name for name, told in found.items() if told.get("seen")]
    unknown = [name for name, told in found.items() if told.get("seen") is None]
    line = f"seen: {', '.join(seen) or 'none'}; not known: {', '.join(unknown) or 'none'}"
    return Outcome(not seen, line, found)


def trains_at_all(turn: Turn, name: str, *overrides: str, may_refuse: bool = False) -> Figures:
    """Train a few steps; the fault is that this fails.

    Without a GPU, that it works means nothing. Where it `may_refuse`, a sentence instead will do.
    """
    told = train(turn, name, *SMALL_RUN, *overrides)
    code = told["exit"]
    if code is None or (code == 0 and not is_on_gpu(told)):
        seen = None
    else:
        seen = code != 0 and not (may_refuse and code == REFUSED)
    return {"seen": seen, "exit": code, "reason": told.get("reason")}


def trained_on_gpu(turn: Turn, name: str, *overrides: str) -> Figures | None:
    """Train a few steps for another command to go on with.

    Returns None if they were trained on a GPU, else what the suspect finds: nothing without a GPU,
    where a run that asks for one is refused.
    """
    told = train(turn, name, *overrides, *SMALL_RUN, *turn.in_small(TINY))
    if told["exit"] == 0 and is_on_gpu(told):
        return None
    fine = (0, None) if card.uuids() else (0, None, REFUSED)
    return {
        "seen": None if told["exit"] in fine else True,
        "trained": told["exit"],
        "reason": told.get("reason"),
    }


def ends_well(done: Done) -> Figures:
    """The fault is that a command fails."""
    seen = None if done.code is None else not done.ok
    return {"seen": seen, "exit": done.code, "reason": "" if done.ok else done.last_words}


def report_b_deterministic(turn: Turn) -> Figures:
    """An operation of report B's network that has no deterministic kernel."""
    return trains_at_all(turn, "s_report_b", "experiment=report_b", "trainer.deterministic=true")


def clipping(turn: Turn) -> Figures:
    """Lightning refuses to clip the gradients of fused optimizers."""
    settings = ["precision=bf16", "trainer.gradient_clip_val=1", *turn.in_small(TINY)]
    return trains_at_all(turn, "s_clip", *settings)


def bf16_true(turn: Turn) -> Figures:
    """Weights in bf16, and something that expects float32."""
    settings = ["trainer.precision=bf16-true", *turn.in_small(TINY)]
    return trains_at_all(turn, "s_true", *settings, may_refuse=True)


def cuda_graphs_with_accumulation(turn: Turn) -> Figures:
    """Graphs overwrite the gradients that are to be added up."""
    settings = ["trainer.compile=reduce-overhead", "trainer.accumulate_grad_batches=2", TINY]
    steps = "trainer.limit_train_batches=8"
    return trains_at_all(turn, "s_accumulate", *settings, steps, may_refuse=True)


def gpu_run_tested_without_gpu(turn: Turn) -> Figures:
    """A run's test, caught up on where there is no GPU."""
    trouble = trained_on_gpu(turn, "s_moved")
    command = continue_command(turn, "s_moved", "test=true")
    return trouble or ends_well(turn.run(command, WITHOUT_GPU))


def evaluate_data_device_cuda(turn: Turn) -> Figures:
    """`data.device=cuda` asks for a GPU; evaluating such a run takes what is there."""
    trouble = trained_on_gpu(turn, "s_device", "data.device=cuda")
    if trouble:
        return trouble
    command = [*FASHION_LIT, "evaluate", str(place(turn, "s_device"))]
    found = ends_well(turn.run(command))
    return found if found["seen"] else ends_well(turn.run(command, WITHOUT_GPU))


def evaluate_accelerator_cuda_without_gpu(turn: Turn) -> Figures:
    """So does evaluating a run of `trainer.accelerator=cuda`."""
    trouble = trained_on_gpu(turn, "s_cuda", "trainer.accelerator=cuda")
    command = [*FASHION_LIT, "evaluate", str(place(turn, "s_cuda"))]
    return trouble or ends_well(turn.run(command, WITHOUT_GPU))


def data_device_changed_on_resume(turn: Turn) -> Figures:
    """The images' device draws the augmentation, so a run must not go on with another."""
    settings = ["data.device=auto", *SMALL_RUN, *turn.in_small(TINY)]
    told = train(turn, "s_data_device", *settings)
    if told["exit"] != 0:
        return {"seen": None, "trained": told["exit"], "reason": told.get("reason")}
    done = turn.run(continue_command(turn, "s_data_device", "data.device=cpu"))
    seen = None if done.code is None else done.code != REFUSED
    return {"seen": seen, "exit": done.code, "reason": done.last_words}


def gradient_norm_scaled(turn: Turn) -> Figures:
    """The logged norm of fp16's gradients is that of the scaled ones, 2**16 times as large."""
    norms: dict[str, float] = {}
    on_gpu = True
    for precision in ("fp16", "fp32"):
        name = f"s_norm_{precision}"
        settings = [f"precision={precision}", "tensorboard.norms_every_steps=1", *SMALL_RUN]
        told = train(turn, name, *settings, *turn.in_small(TINY))
        on_gpu &= is_on_gpu(told)
        curves = turn.probe("scalars", str(place(turn, name)), "train/gradient_norm")
        values = [norm for norm in curves.get("train/gradient_norm", []) if math.isfinite(norm)]
        norms[precision] = min(values, default=math.nan)  # a skipped step's is infinite
    known = on_gpu and all(map(math.isfinite, norms.values()))
    return {"seen": norms["fp16"] > 100 * norms["fp32"] if known else None, **norms}


def notice_about_tensor_cores(turn: Turn) -> Figures:
    """PyTorch advises the default run's users to set something."""
    told = turn.check.results.figures_of("default")
    if told is None or not is_on_gpu(told):
        return {"seen": None}
    notices = told["notices"]
    return {"seen": any("Tensor Cores" in notice for notice in notices), "notices": notices}


def probe(name: str) -> Suspect:
    """Return a suspect that a probe looks for."""

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
