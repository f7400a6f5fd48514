# Times what others take for the recipe of `preprocess`: one JSON line each that is installed. Arguments: size z y x, threads, names of the peers (none: all).
import json, os, sys, time

z, y, x, threads = map(int, sys.argv[1:5])
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
import numpy as np

ct = np.random.default_rng(7).integers(-1000, 1000, (z, y, x), dtype=np.int16)
# z, y, x in mm, and the voxels at 1 mm that begin on the first one.
own = (1.25, 0.7, 0.7)
to = [round((n - 1) * s + 1) for n, s in zip(ct.shape, own)]


def best(peer, path, run, times=3):
    took = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    print(json.dumps({"peer": peer, "path": path, "ms": round(min(took) * 1e3, 1), "threads": threads}), flush=True)


def window(v):
    return np.clip((v + 1000) / 2000, 0, 1)


def simpleitk():
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    image = sitk.GetImageFromArray(ct)
    image.SetSpacing(own[::-1])

    def run():
        moved = sitk.Resample(image, to[::-1], sitk.Transform(), sitk.sitkLinear, (0, 0, 0), (1, 1, 1), (1, 0, 0, 0, 1, 0, 0, 0, 1), -1000, sitk.sitkFloat32)
        return sitk.IntensityWindowing(moved, -1000, 1000, 0, 1)

    best("simpleitk", "linear", run)


def torch():
    import torch

    torch.set_num_threads(threads)

    def run():
        v = torch.from_numpy(ct).float()[None, None]
        return torch.nn.functional.interpolate(v, size=to, mode="trilinear", align_corners=True).add_(1000).div_(2000).clamp_(0, 1)

    best("torch interpolate", "linear", run)


def monai():
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose, ScaleIntensityRange, Spacing, SpatialResample

    torch.set_num_threads(threads)
    affine = torch.diag(torch.tensor([*own, 1.0], dtype=torch.float64))
    image = lambda: MetaTensor(torch.from_numpy(ct)[None], affine=affine)
    scale = ScaleIntensityRange(-1000, 1000, 0, 1, clip=True)
    best("monai", "linear", lambda: Compose([Spacing((1, 1, 1)), scale])(image()))
    askew = torch.eye(4, dtype=torch.float64)
    askew[1, 0] = 0.2
    turn = SpatialResample(padding_mode="border")
    best("monai", "oblique", lambda: scale(turn(image(), dst_affine=askew, spatial_size=to)))


def monai_augment():
    import torch
    from monai.transforms import AdjustContrast, Rand3DElastic

    torch.set_num_threads(threads)
    box = torch.rand((1, 160, 160, 160))
    turn = dict(rotate_range=(0.3, 0.3, 0.3), scale_range=(0.1, 0.1, 0.1), padding_mode="border", device=torch.device("cpu"))
    bend = Rand3DElastic(sigma_range=(6, 6), magnitude_range=(150, 150), prob=1, spatial_size=(128, 128, 128), **turn)
    best("monai", "augmented", lambda: AdjustContrast(1.3)(bend(box)))


def nnunet():
    from skimage.transform import resize

    best("nnunet order 3", "cubic", lambda: resize(ct.astype(np.float32), to, 3, mode="edge", anti_aliasing=False), 1)


for peer in (simpleitk, torch, monai, monai_augment, nnunet):
    if sys.argv[5:] and peer.__name__ not in sys.argv[5:]:
        continue
    try:
        peer()
    except ImportError as e:
        print(json.dumps({"peer": peer.__name__, "missing": e.name}), flush=True)
