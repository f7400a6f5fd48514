"""Losses with their arguments, MONAI's and PyTorch's own: values and gradients. Needs monai and safetensors.

    python tests/golden/losses.py FOLDER [SEED] [LARGE]     # LARGE: more and odder shapes, for `VOXMILL_GOLDEN=FOLDER cargo test --release --test golden losses`

The cases in this folder are those of `losses.py . 3`; their entries stand at the end of `manifest.json`.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from monai.losses import BoundaryLoss, DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, GeneralizedDiceLoss, HausdorffDTLoss, TverskyLoss
from safetensors.numpy import save_file

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 3)
large = len(sys.argv) > 3
torch.set_num_threads(1)

SHAPES = [(2, 3, 2, 4, 3)] if not large else [(2, 3, 5, 7, 6), (1, 2, 8, 8, 8), (3, 4, 1, 9, 5), (2, 5, 6, 1, 7), (1, 3, 4, 4, 11), (4, 2, 3, 3, 3)]
CASES = [
    ("Dice", {"squared_pred": True}),
    ("Dice", {"squared_pred": True, "jaccard": True, "batch": True, "include_background": True}),
    ("Dice", {"smooth_nr": 0.0, "smooth_dr": 1e-6}),
    ("Dice", {"weight": True, "include_background": True}),
    ("Dice", {"weight": True, "batch": True, "reduction": "sum"}),
    ("Dice", {"ignore_index": True, "include_background": True}),
    ("Dice", {"ignore_index": True, "squared_pred": True, "batch": True}),
    ("Focal(sigmoid)", {"alpha": 0.25, "gamma": 2.0}),
    ("Focal(sigmoid)", {"alpha": True, "gamma": 1.5, "include_background": True}),
    ("Focal(sigmoid)", {"weight": True, "gamma": 3.0}),
    ("Focal(sigmoid)", {"gamma": 2.0, "reduction": "sum"}),
    ("Focal(softmax)", {"alpha": 0.3, "include_background": True}),
    ("Focal(softmax)", {"alpha": True, "weight": True, "gamma": 0.5, "include_background": True}),
    ("Focal(softmax)", {"gamma": 0.0, "include_background": True, "reduction": "sum"}),
    ("DiceFocal", {"alpha": 0.75, "weight": True, "lambda_dice": 0.6, "lambda_focal": 1.4, "gamma": 2.0, "squared_pred": True}),
    ("DiceCE", {"weight": True, "lambda_dice": 0.4, "lambda_ce": 2.0}),
    ("DiceCE", {"weight": True, "include_background": True, "label_smoothing": 0.2, "batch": True}),
    ("DiceCE", {"label_smoothing": 0.1, "reduction": "sum"}),
    ("CrossEntropy", {"ignore_index": True}),
    ("CrossEntropy", {"ignore_index": True, "weight": True, "label_smoothing": 0.3}),
    ("Boundary", {"include_background": True}),
    ("Boundary", {"include_background": False, "reduction": "sum"}),
    ("HausdorffDT", {}),
    ("HausdorffDT", {"alpha": 1.3, "include_background": True}),
    ("HausdorffDT", {"batch": True, "reduction": "sum"}),
    ("GeneralizedDice", {"w_type": "simple", "smooth_nr": 1e-4, "smooth_dr": 1e-4}),
    ("GeneralizedDice", {"w_type": "uniform", "include_background": True, "reduction": "sum"}),
    ("Tversky", {"alpha": 0.2, "beta": 0.9, "include_background": True, "ignore_index": True}),
    ("Tversky", {"alpha": 0.7, "beta": 0.3, "batch": True, "reduction": "sum"}),
]


def build(kind, p):
    p = dict(p)
    if kind == "CrossEntropy":
        weight = torch.tensor(p.pop("weight")) if "weight" in p else None
        return torch.nn.CrossEntropyLoss(weight=weight, **p)
    makers = {
        "Dice": DiceLoss,
        "DiceFocal": DiceFocalLoss,
        "DiceCE": DiceCELoss,
        "Boundary": BoundaryLoss,
        "HausdorffDT": HausdorffDTLoss,
        "GeneralizedDice": GeneralizedDiceLoss,
        "Tversky": TverskyLoss,
    }
    if kind.startswith("Focal"):
        return FocalLoss(to_onehot_y=True, use_softmax="softmax" in kind, **p)
    if kind == "DiceCE" and "weight" in p:
        p["weight"] = torch.tensor(p["weight"])
    return makers[kind](to_onehot_y=True, softmax=True, **p)


cases = []
for shape in SHAPES:
    for kind, how in CASES:
        n, classes, *space = shape
        p = {"include_background": False, **how} if kind != "CrossEntropy" else dict(how)
        kept = classes if p.get("include_background") or kind in ("DiceCE", "CrossEntropy") else classes - 1
        if kept == 1 and (p.get("weight") or "softmax" in kind):
            continue
        for key in ("weight", "alpha"):
            if p.get(key) is True:
                p[key] = [float(v) for v in rng.uniform(0.2, 3, kept).round(2)]
        if p.get("ignore_index"):
            p["ignore_index"] = 7
        # Smooth fields with structures, so that masks have insides; here and there a class fills or lacks a sample.
        logits = rng.normal(0, 2.5, shape).astype(np.float32)
        target = rng.integers(0, classes, (n, 1, *space))
        target[0, 0, : max(space[0] // 2, 1)] = classes - 1
        if n > 1 and not p.get("ignore_index"):
            target[-1][target[-1] == 1] = 0
        if p.get("ignore_index"):
            target[rng.random(target.shape) < 0.25] = 7
        x = torch.tensor(logits, requires_grad=True)
        t = torch.tensor(target)
        loss = build(kind, p)
        value = loss(x, t[:, 0] if kind == "CrossEntropy" else t)
        value.backward()
        name = f"loss_{kind.lower().replace('(', '_').replace(')', '')}_more_{len(cases):02}"
        tensors = {"logits": logits, "target": target.astype(np.uint8), "loss": np.float32([value.item()]), "grad": x.grad.numpy()}
        save_file(tensors, folder / f"{name}.safetensors")
        cases.append({"case": name, "loss": kind, **p})

path = folder / "manifest.json"
before = json.loads(path.read_text()) if path.exists() else {"cases": []}
before["cases"] = [c for c in before["cases"] if "_more_" not in c["case"]] + cases
path.write_text(json.dumps(before, indent=1))
print(len(cases), "cases")
