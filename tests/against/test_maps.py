"""The losses on maps against their published formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from published import Array, Case, cases, check, convolved, divergence, numbers, pooled, softmax
from reldistill.losses import (
    AT,
    CWD,
    FGD,
    ICKD,
    LEAP,
    MGD,
    OFD,
    PKD,
    VID,
    FitNets,
    PatchKL,
    ProjectedFeatures,
    ReviewKD,
    SimKD,
    SpectralKD,
    pkd_loss,
)
from reldistill.losses.leap import linear_cka


def rows(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def fitnets(student: Array, teacher: Array, *, relative: bool) -> float:
    """Romero et al. 2015, equation 3, as a mean; `relative` in units of the teacher's mean square."""
    return float(((student - teacher) ** 2).mean() / ((teacher**2).mean() if relative else 1))


def at(student: Array, teacher: Array, *, power: float) -> float:
    """Zagoruyko and Komodakis 2017, equation 2, squared differences as a mean."""
    maps = [(abs(side) ** power).mean(axis=1, keepdims=True) for side in (student, teacher)]
    height, width = (min(one.shape[axis] for one in maps) for axis in (2, 3))
    flat = [rows(pooled(one, height, width).reshape(len(one), -1)) for one in maps]
    return float(((flat[0] - flat[1]) ** 2).mean())


def cwd(student: Array, teacher: Array, *, tau: float) -> float:
    """Shu et al. 2021, equations 3 and 4: τ² / C of a sum over channels, mean over images."""
    flat = [side.reshape(-1, side.shape[2] * side.shape[3]) / tau for side in (student, teacher)]
    return tau**2 * float(np.mean([divergence(softmax(t), softmax(s)) for s, t in zip(*flat, strict=True)]))


def ickd(student: Array, teacher: Array) -> float:
    """Liu et al. 2021, equations 1 and 3; every row of the correlations at unit length, as in the authors' code."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        products = [rows(one.reshape(len(one), -1) @ one.reshape(len(one), -1).T) for one in (ours, theirs)]
        total += float(((products[0] - products[1]) ** 2).sum()) / len(ours)
    return total / len(student)


def patch_kl(student: Array, teacher: Array, *, tau: float) -> float:
    """Softmax over cosines between the patches of an image, KL teacher to student."""
    total = []
    for ours, theirs in zip(student, teacher, strict=True):
        patches = [rows(one.reshape(len(one), -1).T) for one in (ours, theirs)]
        chances = [softmax(one @ one.T / tau) for one in patches]
        total += [divergence(q, p) for p, q in zip(*chances, strict=True)]
    return float(np.mean(total))


def features(student: list[Array], teacher: list[Array], *, weights: tuple[float, float]) -> float:
    """1 − cosine, a mean over images and one over all patches."""
    total = 0.0
    for weight, ours, theirs in zip(weights, student, teacher, strict=True):
        pairs = zip(*(np.moveaxis(side, 1, -1).reshape(-1, side.shape[1]) for side in (ours, theirs)), strict=True)
        total += weight * np.mean([1 - a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in pairs])
    return float(total)


def features_mse(student: list[Array], teacher: list[Array]) -> float:
    """Squared differences in units of the teacher's mean square."""
    return sum(fitnets(ours, theirs, relative=True) for ours, theirs in zip(student, teacher, strict=True))


def leap(student: list[Array], teacher: list[Array], *, weight: float) -> float:
    """Zhang et al. 2026, as their code has it: patches, and the class token at a twentieth."""
    patches, token = (fitnets(ours, theirs, relative=True) for ours, theirs in zip(student, teacher, strict=True))
    return patches + weight * token


def spectralkd(student: list[Array], teacher: list[Array]) -> float:
    """Tian et al. 2024: real FFT of both, the teacher's channels averaged; real and imaginary parts as numbers."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        windows = [slice(k * theirs.shape[1] // ours.shape[1], -(-(k + 1) * theirs.shape[1] // ours.shape[1]))
                   for k in range(ours.shape[1])]  # fmt: skip
        fewer = np.stack([theirs[:, window].mean(axis=1) for window in windows], axis=1)
        gap = np.fft.rfft2(ours, norm="ortho") - np.fft.rfft2(fewer, norm="ortho")
        total += float((gap.real**2 + gap.imag**2).mean()) / 2 / len(student)
    return total


def pkd(student: Array, teacher: Array) -> float:
    """Cao et al. 2022, equation 5: 1 − Pearson's r, here channel by channel over images and positions."""
    apart = [np.corrcoef(student[:, c].ravel(), teacher[:, c].ravel())[0, 1] for c in range(student.shape[1])]
    return float(np.mean([1 - r for r in apart]))


def simkd(student: Array, teacher: Array) -> float:
    """Chen et al. 2022, equation 3, as a mean; a larger teacher's map is averaged first."""
    return float(((student - pooled(teacher, *student.shape[2:])) ** 2).mean())


def reviewkd(student: list[Array], teacher: list[Array]) -> float:
    """Chen et al. 2021: the hierarchical context loss, levels 4, 2 and 1 at weights 1/2, 1/4, 1/8 beside 1."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        value, weight, weights = float(((ours - theirs) ** 2).mean()), 1.0, 1.0
        for side in (4, 2, 1):
            if side < ours.shape[2]:
                weight /= 2
                weights += weight
                value += weight * float(((pooled(ours, side, side) - pooled(theirs, side, side)) ** 2).mean())
        total += value / weights
    return total


def ofd(student: list[Array], teacher: list[Array]) -> float:
    """Heo et al. 2019, equations 2 and 6: margin ReLU and partial L2, half the weight for each shallower stage."""
    total = 0.0
    for depth, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        for channel in range(ours.shape[1]):
            responses = theirs[:, channel]
            margin = responses[responses < 0].mean()
            for s, t in zip(ours[:, channel].ravel(), np.maximum(responses, margin).ravel(), strict=True):
                if not s <= t <= 0:
                    total += (t - s) ** 2 / len(ours) / 2 ** (len(student) - 1 - depth)
    return total


def vid(student: Array, teacher: Array, *, variances: Array) -> float:
    """Ahn et al. 2019, equation 5, without the constant and as a mean."""
    spread = variances[:, None, None]
    return float(((student - teacher) ** 2 / (2 * spread) + np.log(spread) / 2).mean())


def filled(loss: nn.Module, *, seed: int) -> tuple[nn.Module, dict[str, Array]]:
    """The loss with known parameters, and these as arrays."""
    for place, parameter in enumerate(loss.double().parameters()):
        parameter.data = torch.from_numpy(0.5 * numbers(*parameter.shape, seed=seed + place))
    return loss, {name: value.numpy() for name, value in loss.state_dict().items()}


def mgd(state: dict[str, Array]) -> Callable[..., float]:
    """Yang et al. 2022, equation 3: two 3×3 convolutions make the teacher's map; here of an unmasked student's."""

    def formula(student: Array, teacher: Array) -> float:
        hidden = convolved(student, state["generation.0.weight"], state["generation.0.bias"])
        made = convolved(np.maximum(hidden, 0), state["generation.2.weight"], state["generation.2.bias"])
        return float(((teacher - made) ** 2).sum() / len(student))

    return formula


def attention(one: Array, tau: float) -> tuple[Array, Array]:
    """FGD's equations 4 to 7, of a single map (C, H, W)."""
    spatial = softmax((abs(one).mean(axis=0) / tau).ravel()).reshape(one.shape[1:]) * one[0].size
    return spatial, softmax(abs(one).mean(axis=(1, 2)) / tau) * len(one)


def context(one: Array, state: dict[str, Array], side: str) -> Array:
    """FGD's equation 12: the map and what a global context block adds to every position."""
    name = f"{side}_relations"
    flat = one.reshape(len(one), -1)
    weights = softmax(state[f"{name}.attend.weight"].reshape(1, -1) @ flat + state[f"{name}.attend.bias"])[0]
    hidden = state[f"{name}.transform.0.weight"] @ (flat @ weights) + state[f"{name}.transform.0.bias"]
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
    hidden = np.maximum(hidden * state[f"{name}.transform.1.weight"] + state[f"{name}.transform.1.bias"], 0)
    added = state[f"{name}.transform.3.weight"] @ hidden + state[f"{name}.transform.3.bias"]
    return one + added[:, None, None]


def fgd(state: dict[str, Array], weights: tuple[float, ...], tau: float) -> Callable[..., float]:
    """Yang et al. 2022, equations 2 to 13: α L_fg + β L_bg + γ L_at + λ L_global, means over images."""

    def formula(student: Array, teacher: Array, boxes: Array) -> float:
        total = np.zeros(4)
        for ours, theirs, there in zip(student, teacher, boxes, strict=True):
            channels, height, width = ours.shape
            covered = []
            for left, top, right, bottom in there:
                covered.append(
                    [
                        (i, j)
                        for i in range(height)
                        for j in range(width)
                        if j < right * width and j + 1 > left * width and i < bottom * height and i + 1 > top * height
                    ]
                )
            inside = {cell for cells in covered for cell in cells}
            spatial, channel = attention(theirs, tau)
            for i in range(height):
                for j in range(width):
                    error = sum(channel[c] * (theirs[c, i, j] - ours[c, i, j]) ** 2 for c in range(channels))
                    if (i, j) in inside:
                        total[0] += spatial[i, j] * error / min(len(cells) for cells in covered if (i, j) in cells)
                    else:
                        total[1] += spatial[i, j] * error / (height * width - len(inside))
            total[2] += sum(abs(a - b).sum() for a, b in zip(attention(theirs, tau), attention(ours, tau), strict=True))
            total[3] += ((context(theirs, state, "teacher") - context(ours, state, "student")) ** 2).sum()
        return float(total @ weights / len(student))

    return formula


MAPS = numbers(3, 4, 5, 6, seed=1), 2 * numbers(3, 4, 5, 6, seed=2, shift=0.2)
SMALLER = numbers(3, 4, 4, 6, seed=3), 2 * numbers(3, 7, 2, 3, seed=4)
LARGER = numbers(3, 4, 2, 3, seed=5), 2 * numbers(3, 4, 6, 5, seed=6)
STAGES = (
    [numbers(3, 4, 8, 8, seed=7), numbers(3, 5, 6, 6, seed=8), numbers(3, 6, 2, 2, seed=9)],
    [numbers(3, 4, 8, 8, seed=17), numbers(3, 5, 6, 6, seed=18, shift=-0.3), 2 * numbers(3, 6, 2, 2, seed=19)],
)
POOLED_AND_MAPS = [numbers(3, 7, seed=11), MAPS[0]], [numbers(3, 7, seed=12), MAPS[1]]
MAPS_AND_TOKENS = tuple([maps, pooled_ones] for pooled_ones, maps in POOLED_AND_MAPS)
BOXES = np.array([[[0.1, 0.2, 0.5, 0.9], [0.3, 0.3, 0.45, 0.5]], [[0.0, 0.0, 0.2, 0.3], [0.55, 0.1, 1.0, 0.35]],
                  [[0.2, 0.6, 0.9, 1.0], [0.05, 0.05, 0.95, 0.1]]])  # fmt: skip
UNMASKED, MGD_STATE = filled(MGD(channels=4, ratio=0.0), seed=40)
ALPHAS = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)
FGD_WEIGHTS = {
    "RetinaNet": (1e-3, 5e-4, 5e-4, 5e-6, 0.5),
    "FCOS": (1.6e-3, 8e-4, 8e-4, 8e-6, 0.8),
    "Faster R-CNN": (5e-5, 2.5e-5, 5e-5, 5e-7, 0.5),
    "foreground": (1.0, 0.0, 0.0, 0.0, 0.5),
    "background": (0.0, 1.0, 0.0, 0.0, 0.5),
    "attention": (0.0, 0.0, 1.0, 0.0, 1.3),
    "global": (0.0, 0.0, 0.0, 1.0, 0.5),
}


def with_variances() -> nn.Module:
    loss = VID(channels=4)
    loss.alpha.data = ALPHAS
    return loss


def fgd_cases() -> list[Case]:
    found = []
    for name, (*weights, tau) in FGD_WEIGHTS.items():
        parts = ("foreground_weight", "background_weight", "attention_weight", "global_weight")
        loss, state = filled(FGD(channels=4, temperature=tau, **dict(zip(parts, weights, strict=True))), seed=60)
        # `.1` has the LayerNorm's scale and shift
        formula = fgd(state, tuple(weights), tau)
        scale = 1e3 if max(weights) < 1 else 1.0  # so that no slope is too small to be told from 0
        found.append(Case(f"fgd, {name}", lambda loss=loss: loss, scale**0.5 * MAPS[0], scale**0.5 * MAPS[1], formula,
                          {"boxes": BOXES}))  # fmt: skip
    return found


@cases(
    [
        Case("fitnets", FitNets, *MAPS, lambda s, t: fitnets(s, t, relative=False)),
        Case("fitnets, relative", lambda: FitNets(relative=True), *MAPS, lambda s, t: fitnets(s, t, relative=True)),
        *(
            Case(f"at, power {p}, {name}", lambda p=p: AT(power=p), *sides, lambda s, t, p=p: at(s, t, power=p))
            for p in (2.0, 3.5)
            for name, sides in (("maps of one size", MAPS), ("a smaller teacher", SMALLER))
        ),
        *(
            Case(f"cwd, τ {tau}", lambda tau=tau: CWD(temperature=tau), *MAPS, lambda s, t, tau=tau: cwd(s, t, tau=tau))
            for tau in (4.0, 1.0, 0.7)
        ),
        Case("ickd", ICKD, *LARGER, ickd),
        *(
            Case(f"patch_kl, τ {tau}", lambda tau=tau: PatchKL(temperature=tau), *MAPS,
                 lambda s, t, tau=tau: patch_kl(s, t, tau=tau))
            for tau in (0.07, 0.5)
        ),
        Case("features", lambda: ProjectedFeatures(pooled_weight=0.7, patches_weight=3.0), *POOLED_AND_MAPS,
             lambda s, t: features(s, t, weights=(0.7, 3.0))),
        Case("features, mse", lambda: ProjectedFeatures(distance="mse"), *POOLED_AND_MAPS, features_mse),
        Case("spectralkd", SpectralKD, [MAPS[0], STAGES[0][2]], [numbers(3, 6, 5, 6, seed=21), STAGES[1][2]],
             spectralkd),
        Case("pkd", PKD, *MAPS, pkd),
        Case("simkd", SimKD, *MAPS, simkd),
        Case("simkd, a larger teacher", SimKD, *LARGER, simkd),
        Case("reviewkd", ReviewKD, *STAGES, reviewkd),
        Case("ofd", OFD, *STAGES, ofd),
        Case("vid", with_variances, *MAPS, lambda s, t: vid(s, t, variances=np.log1p(np.exp(ALPHAS.numpy())) + 1e-5)),
        Case("vid before training", lambda: VID(channels=4), *MAPS, lambda s, t: vid(s, t, variances=np.full(4, 5.0))),
        Case("mgd without a mask", lambda: UNMASKED, *MAPS, mgd(MGD_STATE)),
        Case("leap", lambda: LEAP(layers=5, start="first"), *MAPS, lambda s, t: fitnets(s, t, relative=False)),
        Case("leap, relative, a class token", lambda: LEAP(layers=5, start="first", relative=True, class_token=True),
             *MAPS_AND_TOKENS, lambda s, t: leap(s, t, weight=0.05)),
        *fgd_cases(),
    ]
)  # fmt: skip
def test_value_and_slope(case: Case) -> None:
    check(case)


def test_the_code_of_pkd_divides_by_one_less() -> None:
    """With the variance over n − 1 instead of n every z-score is smaller, and the value with it."""
    axes = {"axis": (0, 2, 3), "keepdims": True}
    scores = [(side - side.mean(**axes)) / side.std(ddof=1, **axes) for side in MAPS]
    theirs = ((scores[0] - scores[1]) ** 2).mean() / 2
    count = MAPS[0].size / MAPS[0].shape[1]
    ours = pkd_loss(*(torch.from_numpy(side) for side in MAPS)).item()
    assert ours * (count - 1) / count == pytest.approx(theirs, rel=1e-9)
    assert ours != pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize(("masked", "ratio"), [("positions", 0.5), ("positions", 0.65), ("channels", 0.15)])
def test_what_mgd_masks(masked: str, ratio: float) -> None:
    """The convolutions pass the map on, its squares are powers of 2: the value's binary digits say what was kept."""
    loss = MGD(channels=4, ratio=ratio, masked=masked).double()
    for layer in (loss.generation[0], loss.generation[2]):
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    shape = (2, 4, 2, 3)
    student = 2 ** (torch.arange(48, dtype=torch.float64).reshape(shape) / 2)
    kept = []
    torch.manual_seed(0)
    for _ in range(100):
        digits = round(2 * loss(student, torch.zeros_like(student)).item())
        kept.append(np.array([digits >> place & 1 for place in range(48)]).reshape(shape))
    everything = np.stack(kept)
    together, apart = ((2,), (3, 4)) if masked == "positions" else ((3, 4), (2,))
    assert (everything == everything.max(axis=together, keepdims=True)).all(), "one fate along these axes"
    assert (everything.min(axis=apart) != everything.max(axis=apart)).any()
    assert everything.mean() == pytest.approx(1 - ratio, abs=0.06)
    assert (everything[:, 0] != everything[:, 1]).any(), "images have masks of their own"


def test_leap_moves_on_by_linear_cka() -> None:
    """Kornblith et al. 2019, equation of linear CKA, on the patch tokens of the batch."""
    tokens = [side.transpose(0, 2, 3, 1).reshape(-1, 4) for side in (MAPS[0], MAPS[0] + 0.4 * MAPS[1])]
    centred = [one - one.mean(axis=0) for one in tokens]
    norms = [np.linalg.norm(one.T @ one) for one in centred]
    alike = np.linalg.norm(centred[0].T @ centred[1]) ** 2 / (norms[0] * norms[1])
    assert linear_cka(*(torch.from_numpy(one) for one in tokens)).item() == pytest.approx(alike, rel=1e-9)
    for threshold, block in ((alike - 1e-3, 1), (alike + 1e-3, 0)):
        loss = LEAP(layers=3, threshold=float(threshold), start="first")
        value = loss(torch.from_numpy(MAPS[0]), torch.from_numpy(MAPS[0] + 0.4 * MAPS[1]), progress=0.0)
        assert value.item() == pytest.approx(0.16 * (MAPS[1] ** 2).mean(), rel=1e-9)
        assert loss.chosen() == block
