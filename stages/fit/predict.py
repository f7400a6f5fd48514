"""Labels of a preprocessed volume from a bundle: python predict.py IMAGE.nii.gz LABELS.nii.gz (needs numpy, nibabel, onnxruntime).
The image is what the last node before the network gives: the steps named in bundle.json under "preprocessing" were done to it."""

import itertools, json, pathlib, sys

import nibabel, numpy as np, onnxruntime

here = pathlib.Path(__file__).parent
bundle = json.loads((here / "bundle.json").read_text())
net = onnxruntime.InferenceSession(here / "model.onnx", providers=onnxruntime.get_available_providers())
window, channels = bundle["window"], len(bundle["card"]["channels"])
nii = nibabel.load(sys.argv[1])
# NIfTI counts x fastest and channels last; the network takes [channel, z, y, x].
image = np.asarray(nii.dataobj, np.float32).reshape(*nii.shape[:3], channels).transpose(3, 2, 1, 0)
roi = [window["size"][a] for a in "zyx"]
lack = [max(r - n, 0) for r, n in zip(roi, image.shape[1:])]
image = np.pad(image, [(0, 0)] + [(k // 2, k - k // 2) for k in lack])

def starts(n, r):
    step = max(int(r * (1 - window["overlap"])), 1)
    return sorted({min(i * step, n - r) for i in range(-(-(n - r) // step) + 1)})

def bell(n):
    return np.exp((np.arange(n, dtype=np.float32) - (n - 1) / 2) ** 2 / (-2 * (window["sigma_scale"] * n) ** 2))

weight = np.einsum("z,y,x->zyx", *map(bell, roi)) if window["blend"] == "gaussian" else np.ones(roi)
weight = np.maximum(weight, max(weight.min(), 1e-3)).astype(np.float32)
seen = np.zeros(image.shape[1:], np.float32)
total = np.zeros((len(bundle["card"]["classes"]) + 1, *seen.shape), np.float32)
for at in itertools.product(*map(starts, image.shape[1:], roi)):
    box = tuple(slice(a, a + r) for a, r in zip(at, roi))
    total[(slice(None), *box)] += net.run(None, {"image": image[(slice(None), *box)][None]})[0][0] * weight
    seen[box] += weight
inside = tuple(slice(k // 2, n - (k - k // 2)) for k, n in zip(lack, image.shape[1:]))
labels = np.argmax(total / seen, 0)[inside].astype(np.uint8)
nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), nii.affine), sys.argv[2])
