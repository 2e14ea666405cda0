"""Writes tests/goldens/samplers.json: trajectories of diffusers' schedulers with a fixed analytic predictor; and
tests/goldens/timesteps.json: where each scheduler ends on each timestep schedule with each prediction.

The schedulers' tables (f32 in diffusers) are replaced by f64 ones after checking that they agree, so that the goldens
are good to f64 rounding; only the flow-matching schedulers cast the state to f32 themselves.

The predictor is pred = tanh(0.8·x + 0.3·cos(t/200)) - 0.1·x, t being the network's time input.
"""

import json
import math
import pathlib

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_ddpm, scheduling_dpmsolver_multistep

from philox import uniform

SIZE = 6
T = 1000
SEED = 20
torch.set_default_dtype(torch.float64)


def predictor(x, t):
    return torch.tanh(0.8 * x + 0.3 * math.cos(t / 200)) - 0.1 * x


def alpha_bar(schedule):
    """The cumulative product in f64 from the papers' formulas."""
    if schedule == "linear":
        betas = np.linspace(1e-4, 0.02, T)
    else:
        f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return torch.from_numpy(np.cumprod(1 - betas))


def numbers(item):
    """SIZE numbers in about the range of a normal variate."""
    return torch.from_numpy(4 * uniform(SEED, SIZE, item) - 2)[None]


def install(scheduler, schedule):
    exact = alpha_bar(schedule)
    # diffusers' f32 cumulative product has lost digits by the last timestep: compare in the logarithm.
    assert torch.allclose(scheduler.alphas_cumprod.double().log(), exact.log(), rtol=2e-5, atol=1e-6)
    scheduler.alphas_cumprod = exact


NAMES = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def common(case):
    return dict(
        num_train_timesteps=T,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=BETAS[case["schedule"]],
        prediction_type=NAMES[case["prediction"]],
        clip_sample=case["clip"],
    )


def ddpm(case, x):
    small = case["variance"] == "posterior"
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_small" if small else "fixed_large", **common(case))
    install(scheduler, case["schedule"])
    scheduler.set_timesteps(timesteps=case["times"])
    states = []
    for i, t in enumerate(case["times"]):
        scheduling_ddpm.randn_tensor = lambda *_, **__: torch.tensor(case["noise"][i])[None]
        x = scheduler.step(predictor(x, t), t, x).prev_sample
        states.append(x)
    return states


def ddim(case, x):
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", **common(case))
    install(scheduler, case["schedule"])
    scheduler.set_timesteps(len(case["times"]))
    # DDIMScheduler takes the previous timestep to be T // n lower: only such grids are its own.
    assert scheduler.timesteps.tolist() == case["times"]
    states = []
    for i, t in enumerate(case["times"]):
        noise = torch.tensor(case["noise"][i])[None] if case["eta"] > 0 else None
        pred = predictor(x, t)
        out = scheduler.step(pred, t, x, eta=case["eta"], use_clipped_model_output=True, variance_noise=noise)
        x = out.prev_sample
        states.append(x)
    return states


def heun(case, x):
    scheduler = diffusers.HeunDiscreteScheduler(**common(case))
    install(scheduler, case["schedule"])
    scheduler.set_timesteps(timesteps=case["times"])
    exact = scheduler.alphas_cumprod[case["times"]]
    sigmas = torch.cat([((1 - exact) / exact).sqrt(), torch.zeros(1)])
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.set_begin_index(0)
    # The scheduler's state is x/a; ours is x.
    y = x * (1 + sigmas[0] ** 2).sqrt()
    states = []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        y = scheduler.step(predictor(scheduler.scale_model_input(y, t), t), t, y).prev_sample
        states.append(y / (1 + scheduler.sigmas[min(i + 1, len(scheduler.sigmas) - 1)] ** 2).sqrt())
    # Predictor and corrector of one step end at the same level: keep the step's last.
    return states[1:-1:2] + states[-1:]


def multistep_flow(case, x):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=T, use_flow_sigmas=True, prediction_type="flow_prediction", final_sigmas_type="zero"
    )
    times = torch.tensor(case["times"])
    scheduler.set_timesteps(len(times))
    scheduler.sigmas = torch.cat([times, torch.zeros(1)])
    scheduler.timesteps = 1000 * times
    scheduler.set_begin_index(0)
    states = []
    for t in scheduler.timesteps:
        x = scheduler.step(predictor(x, t.item()), t, x).prev_sample
        states.append(x)
    return states


def flow(case, x):
    if case["sampler"] == "dpmpp2m":
        return multistep_flow(case, x)
    is_heun = case["sampler"] == "heun"
    kind = diffusers.FlowMatchHeunDiscreteScheduler if is_heun else diffusers.FlowMatchEulerDiscreteScheduler
    scheduler = kind(num_train_timesteps=T)
    times = torch.tensor(case["times"])
    if is_heun:
        scheduler.set_timesteps(len(times))
        sigmas = torch.cat([times, torch.zeros(1)])
        scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
        scheduler.timesteps = 1000 * torch.cat([times[:1], times[1:].repeat_interleave(2)])
    else:
        scheduler.set_timesteps(sigmas=case["times"])
        assert torch.allclose(scheduler.timesteps.double(), 1000 * times, rtol=1e-6)
        scheduler.sigmas = torch.cat([times, torch.zeros(1)])
        scheduler.timesteps = 1000 * times
    scheduler.set_begin_index(0)
    states = []
    for t in scheduler.timesteps:
        x = scheduler.step(predictor(x, t.item()), t, x, return_dict=False)[0].double()
        states.append(x)
    # Predictor and corrector of one step end at the same time: keep the step's last.
    return states[1:-1:2] + states[-1:] if is_heun else states


def trailing(n):
    return [int((2 * T * k + n) // (2 * n)) - 1 for k in range(n, 0, -1)]


def cases():
    def case(sampler, schedule, prediction, times, clip=False, eta=0.0, variance="posterior"):
        return dict(sampler=sampler, schedule=schedule, prediction=prediction, times=times, clip=clip, eta=eta,
                    variance=variance)

    for schedule in BETAS:
        for prediction in NAMES:
            clip = prediction == "epsilon"
            yield case("ddpm", schedule, prediction, trailing(7), clip)
            yield case("ddim", schedule, prediction, trailing(10), clip)
            yield case("ddim", schedule, prediction, trailing(5), clip, eta=0.7)
            # The cosine schedule's last timesteps are left to plain steps, see the engine's sampler.
            times = trailing(9) if schedule == "linear" else [900, 700, 450, 260, 90, 11]
            yield case("heun", schedule, prediction, times, clip)
    yield case("ddpm", "linear", "epsilon", [900, 640, 333, 120, 0], variance="forward")
    yield case("ddim", "linear", "epsilon", trailing(10))
    yield case("heun", "linear", "epsilon", trailing(9))
    yield case("ddim", "flow", "flow", [k / 8 for k in range(8, 0, -1)])
    yield case("heun", "flow", "flow", [k / 8 for k in range(8, 0, -1)])
    yield case("dpmpp2m", "flow", "flow", [k / 8 for k in range(8, 0, -1)])


def ddim_step(case, scheduler, x, t, following, noise):
    # The scheduler takes the previous timestep to be T // n lower: its T and n are made to fit each step.
    scheduler.register_to_config(num_train_timesteps=t - following)
    scheduler.num_inference_steps = 1
    return scheduler.step(
        predictor(x, t), t, x, eta=case["eta"], use_clipped_model_output=True, variance_noise=noise
    ).prev_sample


def ends(case, x):
    """The end of a trajectory on any falling timesteps."""
    times = case["times"]
    following = times[1:] + [-1]
    ddim_scheduler = diffusers.DDIMScheduler(**common(case))
    install(ddim_scheduler, case["schedule"])
    if case["sampler"] == "ddpm":
        return ddpm(case, x)[-1]
    if case["sampler"] == "ddim":
        for i, (t, after) in enumerate(zip(times, following)):
            x = ddim_step(case, ddim_scheduler, x, t, after, torch.tensor(case["noise"][i])[None])
        return x
    if case["sampler"] == "heun":
        sigma = ((1 - ddim_scheduler.alphas_cumprod) / ddim_scheduler.alphas_cumprod).sqrt()
        for t, after in zip(times, following):
            if after < 0 or sigma[t] / sigma[after] > 20:
                # What the engine leaves to plain steps: Euler's in sigma, which are DDIM's.
                x = ddim_step(case, ddim_scheduler, x, t, after, None)
            else:
                scheduler = diffusers.HeunDiscreteScheduler(**common(case))
                install(scheduler, case["schedule"])
                scheduler.set_timesteps(timesteps=[t, after])
                scheduler.sigmas = torch.stack([sigma[t], sigma[after], sigma[after], torch.zeros(())])
                scheduler.set_begin_index(0)
                y = x * (1 + sigma[t] ** 2).sqrt()
                for stage in (t, after):
                    pred = predictor(scheduler.scale_model_input(y, stage), stage)
                    y = scheduler.step(pred, stage, y).prev_sample
                x = y / (1 + sigma[after] ** 2).sqrt()
        return x
    configuration = common(case)
    clip = configuration.pop("clip_sample")
    scheduler = diffusers.DPMSolverMultistepScheduler(final_sigmas_type="zero", **configuration)
    config = scheduler.config
    assert (config.algorithm_type, config.solver_type, config.solver_order) == ("dpmsolver++", "midpoint", 2)
    assert config.lower_order_final
    install(scheduler, case["schedule"])
    scheduler.set_timesteps(timesteps=times)
    exact = scheduler.alphas_cumprod[times]
    scheduler.sigmas = torch.cat([((1 - exact) / exact).sqrt(), torch.zeros(1)])
    scheduler.set_begin_index(0)
    if clip:
        # The scheduler only knows dynamic thresholds; the plain clamp is put where they act.
        convert = scheduler.convert_model_output
        scheduler.convert_model_output = lambda *args, **kwargs: convert(*args, **kwargs).clamp(-1, 1)
    for t in times:
        x = scheduler.step(predictor(x, t), t, x).prev_sample
    return x


def schedules():
    """Falling timesteps by name, from NumPy's functions, of 8 steps each, and a list."""
    n = 8
    quadratic = np.floor(T * np.arange(1, n + 1) ** 2 / n**2).astype(int)
    logarithmic = np.logspace(0, np.log10(T), n).astype(int)
    listed = np.logspace(0, np.log10(T), 50).astype(int)

    def falling(timesteps):
        return sorted({int(t) for t in np.clip(timesteps, 0, T - 1)}, reverse=True)

    return {
        "uniform": trailing(n),
        "quadratic": falling(quadratic - 1),
        "logarithmic": falling(logarithmic - 1),
        "list": falling(listed),
    }, listed.tolist()


def flow_schedules():
    """The same under flow, whose time is continuous."""
    n = 8
    return {
        "uniform": [k / n for k in range(n, 0, -1)],
        "quadratic": [(k / n) ** 2 for k in range(n, 0, -1)],
        "logarithmic": np.logspace(-np.log10(T), 0, n)[::-1].tolist(),
        "list": [(t + 1) / T for t in schedules()[0]["list"]],
    }


def timesteps():
    scheduling_dpmsolver_multistep.torch = InDouble()
    times, listed = schedules()
    golden = dict(
        source=f"tools/goldens/samplers.py with diffusers {diffusers.__version__}",
        seed=SEED,
        size=SIZE,
        times=times,
        flow_times=flow_schedules(),
        listed=listed,
        cases=[],
    )
    for sampler, eta in [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.7), ("heun", 0.0), ("dpmpp2m", 0.0)]:
        for schedule in BETAS:
            for prediction in NAMES:
                for name in times:
                    case = dict(sampler=sampler, eta=eta, schedule=schedule, prediction=prediction, timesteps=name)
                    case["clip"] = prediction == "v"
                    noise = [numbers(1 + i)[0].tolist() for i in range(len(times[name]))]
                    with torch.no_grad():
                        end = ends(dict(case, times=times[name], noise=noise, variance="posterior"), numbers(0))
                    case["end"] = [float(f"{x:.11g}") for x in end[0].tolist()]
                    golden["cases"].append(case)
    for sampler in ["ddim", "heun", "dpmpp2m"]:
        for name, falling in flow_schedules().items():
            case = dict(sampler=sampler, eta=0.0, schedule="flow", prediction="flow", timesteps=name, clip=False)
            with torch.no_grad():
                end = flow(dict(case, times=falling), numbers(0))[-1]
            case["end"] = [float(f"{x:.11g}") for x in end[0].tolist()]
            golden["cases"].append(case)
    return golden


class InDouble:
    """PyTorch whose f32 is f64: DPMSolverMultistepScheduler casts the state."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def write(name, golden):
    path = pathlib.Path(__file__).resolve().parents[2] / "tests/goldens" / name
    path.write_text(json.dumps(golden) + "\n")
    print(path, path.stat().st_size)


def main():
    write("timesteps.json", timesteps())
    start = numbers(0)
    golden = dict(
        source=f"tools/goldens/samplers.py with diffusers {diffusers.__version__}",
        size=SIZE,
        start=start[0].tolist(),
        alpha_bar={s: {str(t): alpha_bar(s)[t].item() for t in (0, 1, 10, 250, 500, 750, 998, 999)} for s in BETAS},
        cases=[],
    )
    for case in cases():
        if case["sampler"] == "ddpm" or case["eta"] > 0:
            case["noise"] = [numbers(1 + i)[0].tolist() for i in range(len(case["times"]))]
        run = flow if case["schedule"] == "flow" else dict(ddpm=ddpm, ddim=ddim, heun=heun)[case["sampler"]]
        with torch.no_grad():
            states = run(case, start.clone())
        assert len(states) == len(case["times"]), (case, len(states))
        case["states"] = [state[0].tolist() for state in states]
        golden["cases"].append(case)
    write("samplers.json", golden)


if __name__ == "__main__":
    main()
