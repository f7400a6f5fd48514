"""More golden cases than the folder holds: MONAI itself on single slices, flips, exchanged axes, oblique and sheared grids, every padding, and the options of
the intensity transforms. Needs monai, nibabel and safetensors. Writes `manifest.json` and one safetensors file a case:

    python tests/golden/odd_shapes.py FOLDER [SEED [TIMES]]
    VOXMILL_GOLDEN=FOLDER cargo test --release --test golden geometry -- --skip metrics
"""

import json
import pathlib
import sys

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    AdjustContrast,
    Affine,
    CropForeground,
    DivisiblePad,
    GaussianSmooth,
    NormalizeIntensity,
    Orientation,
    ResizeWithPadOrCrop,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    SpatialPad,
    Spacing,
)
from safetensors.numpy import save_file

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 5)
times = int(sys.argv[3]) if len(sys.argv) > 3 else 1
torch.set_num_threads(1)
cases = []

SHAPES = [(9, 7, 11), (1, 6, 5), (8, 8, 1), (5, 1, 4), (12, 10, 3), (7, 16, 4), (1, 1, 6), (16, 9, 2), (23, 17, 31), (40, 33, 6)]
KINDS = ["plain", "oblique", "flip", "perm", "shear", "obshear"]


def rotation(*angles):
    m = np.eye(3)
    for (i, j), t in zip([(1, 2), (0, 2), (0, 1)], angles):
        r = np.eye(3)
        r[i, i] = r[j, j] = np.cos(t)
        r[i, j], r[j, i] = -np.sin(t), np.sin(t)
        m = m @ r
    return m


def affine(spacing, kind):
    turn = rotation(*rng.uniform(-0.6, 0.6, 3))
    axes = {
        "plain": np.eye(3),
        "oblique": turn,
        "flip": np.diag(rng.choice([-1.0, 1.0], 3)),
        "perm": np.eye(3)[:, rng.permutation(3)] * rng.choice([-1.0, 1.0], 3),
        "shear": np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1.0]]),
        "obshear": turn @ np.array([[1, 0.1, -0.2], [0, 1, 0.3], [0, 0, 1.0]]),
    }
    a = np.eye(4)
    a[:3, :3] = axes[kind] @ np.diag(spacing)
    a[:3, 3] = rng.uniform(-100, 100, 3)
    return a


def image(shape, label=False, channels=1):
    if label:
        return rng.integers(0, 4, (channels, *shape)).astype(np.float32)
    return rng.normal(0, 300, (channels, *shape)).astype(np.float32)


def put(name, parameters, before, after, affine_in=None, affine_out=None):
    tensors = {"in": np.ascontiguousarray(before, np.float32), "out": np.ascontiguousarray(np.asarray(after), np.float32)}
    if affine_in is not None:
        tensors |= {"affine_in": np.asarray(affine_in, np.float64), "affine_out": np.asarray(affine_out, np.float64)}
    save_file(tensors, folder / f"{name}.safetensors")
    cases.append({"case": name, **parameters})


def placed(x, a):
    return MetaTensor(torch.from_numpy(x), affine=torch.from_numpy(a))


n = 0
for mode in ["bilinear", "nearest", 3] * times:
    for kind in KINDS:
        for shape in SHAPES:
            spacing = rng.choice([0.5, 0.7, 0.8, 1.0, 1.25, 2.0, 3.0, 5.0], 3)
            pixdim = [float(v) for v in rng.choice([0.6, 1.0, 1.5, 2.0, 2.5, 4.0, 0.0, rng.uniform(0.4, 6)], 3)]
            if rng.random() < 0.3:
                spacing = rng.uniform(0.4, 6, 3)
            padding = {"bilinear": str(rng.choice(["border", "zeros", "reflection"])), "nearest": "border", 3: "nearest"}[mode]
            a, x = affine(spacing, kind), image(shape, mode == "nearest")
            y = Spacing(pixdim=pixdim, mode=mode, padding_mode=padding)(placed(x, a))
            oblique = kind in ("oblique", "shear", "obshear")
            put(f"spacing_{n}", {"pixdim": pixdim, "mode": mode, "padding": padding, "oblique": oblique, "kind": kind}, x, y, a, y.affine)
            n += 1

for k in range(48 * times):
    shape, kind = SHAPES[k % len(SHAPES)], KINDS[k % 6]
    a = affine(rng.uniform(0.5, 3, 3), kind)
    x = image(shape, channels=1 + k % 2)
    codes = "".join(["LR", "PA", "IS"][i][rng.integers(2)] for i in rng.permutation(3))
    y = Orientation(axcodes=codes)(placed(x, a))
    put(f"orientation_{k}", {"axcodes": codes}, x, y, a, y.affine)
    size = [int(v) for v in rng.integers(1, 15, 3)]
    y = ResizeWithPadOrCrop(size, value=-1.0)(placed(x, a))
    put(f"pad_or_crop_{k}", {"size": size, "value": -1.0}, x, y, a, y.affine)
    mode = ["constant", "edge", "reflect"][k % 3]
    pads = [int(v) + (mode != "reflect") * 2 for v in rng.integers(0, 1 + np.array(shape))]
    size = [int(n + min(p, n - 1)) if mode == "reflect" else int(n + p) for n, p in zip(shape, pads)]
    value = {"value": -3.0} if mode == "constant" else {}
    y = SpatialPad(size, mode=mode, **value)(placed(x, a))
    put(f"pad_spatial_{k}", {"size": size, "mode": mode, "value": -3.0}, x, y, a, y.affine)
    k_pad = [int(v) for v in rng.integers(1, 9, 3)]
    y = DivisiblePad(k_pad, mode="constant", value=-3.0)(placed(x, a))
    put(f"pad_divisible_{k}", {"k": k_pad, "value": -3.0}, x, y, a, y.affine)
    box = {"margin": int(rng.integers(0, 4)), "allow_smaller": k % 3 == 0, "k_divisible": [1, 4, 3, 16][k % 4]}
    above = float(np.sort(x.ravel())[-int(rng.integers(1, min(x.size, 12)))] - 1e-3)
    y = CropForeground(select_fn=lambda v: v > above, **box)(placed(x, a))
    put(f"crop_foreground_{k}", {"above": above, **box}, x, y, a, y.affine)

for k in range(24 * times):
    x = image(SHAPES[[0, 4, 5, 8][k % 4]])
    how = {"rotate": rng.uniform(-0.5, 0.5, 3).tolist(), "scale": rng.uniform(0.7, 1.3, 3).tolist()}
    move, padding = rng.uniform(-3, 3, 3).tolist(), ["border", "zeros", "reflection"][k // 3 % 3]
    size = {"spatial_size": (10, 6, 9)} if k % 2 else {}
    y = Affine(
        rotate_params=how["rotate"], scale_params=how["scale"], translate_params=move, padding_mode=padding, image_only=True, **size
    )(torch.from_numpy(x))
    put(f"affine_transform_{k}", {**how, "translate_voxels": move, "padding": padding}, x, y)

for k in range(24 * times):
    x = image(SHAPES[k % len(SHAPES)], channels=1 + k % 2)
    if k % 11 == 7:
        x[:] = 37.5
    p = {"a_min": -500.0, "a_max": -500.0 if k == 5 else 500.0, "b_min": -1.0, "b_max": 2.0, "clip": k % 4 > 1}
    put(f"scale_intensity_range_{k}", p, x, ScaleIntensityRange(**p)(x))
    p = {"lower": [0, 1, 10, 0.5][k % 4], "upper": [100, 99, 75.5, 99.5][k % 4], "b_min": -1.0, "b_max": 255.0}
    p |= {"clip": k % 4 > 1, "relative": k % 3 == 1, "channel_wise": k > 11}
    put(f"scale_percentiles_{k}", p, x, ScaleIntensityRangePercentiles(**p)(x))
    gamma = {"gamma": float(rng.uniform(0.5, 3)), "invert_image": k % 2 == 1, "retain_stats": k % 3 == 0}
    put(f"adjust_contrast_{k}", gamma, x, AdjustContrast(**gamma)(torch.from_numpy(x)))
    sigma = [float(v) for v in rng.choice([0.3, 0.5, 1.0, 1.5, 3.0, rng.uniform(0.1, 4)], 3)]
    put(f"gaussian_smooth_{k}", {"sigma": sigma}, x, GaussianSmooth(sigma)(torch.from_numpy(x)))
    x = np.where(x < -200, 0, x).astype(np.float32) if k % 11 != 7 else x
    if k % 13 == 5:
        x[:] = 0
    p = {"nonzero": k % 4 > 1, "channel_wise": k % 8 > 3}
    given = lambda v: [v] * x.shape[0] if p["channel_wise"] else v
    p |= ({"subtrahend": given(12.5)} if k >= 8 else {}) | ({"divisor": given(40.0)} if k >= 16 else {})
    put(f"normalize_{k}", p, x, NormalizeIntensity(**p)(x.copy()))

(folder / "manifest.json").write_text(json.dumps({"cases": cases}))
print(len(cases), "cases")
