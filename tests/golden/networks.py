"""Golden cases of networks: outputs, gradients and `.pt` files from MONAI's DynUNet (3-D, 2-D, with squeeze-and-excitation, factorised) and SegResNet and from
nnU-Net's PlainConvUNet and ResidualEncoderUNet. Needs monai, safetensors and dynamic-network-architectures. Writes `manifest.json`, and one safetensors and one
PyTorch file a case:

    python tests/golden/networks.py FOLDER [SEED]

Arrays are [batch, channel, z, y, x]. `out` is the output in eval mode, `heads` [head, batch, class, …] those of training, each at its own resolution,
`loss` the mean over heads, weighted 1, 1/2, 1/4, …, of the cross-entropy at full size, `grad.NAME` its gradient.
"""

import json
import pathlib
import sys
import types

import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from monai.networks.blocks import ChannelSELayer, ResidualSELayer
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from monai.networks.nets import DynUNet, SegResNet
from safetensors.torch import save_file
from torch import nn

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 11
torch.manual_seed(seed)
torch.set_num_threads(1)
cases = []
AFFINE = ("INSTANCE", {"affine": True})


def lively(net):
    """Norms that scale and shift, biases that are not 0."""
    for name, p in net.named_parameters():
        if p.dim() == 1:
            p.data = torch.randn_like(p) * 0.3 + (1.0 if name.endswith("weight") else 0.0)
    return net


def put(name, config, net, channels, classes, size, heads=lambda net, x: [net(x)], batch=2, answers=None, wrap=lambda s: s, pt="pt"):
    """`heads` gives the logits of training, full resolution first, at whatever size; `answers` is the size that has labels."""
    lively(net)
    x = torch.randn(batch, channels, *size)
    answers = answers or size
    target = torch.randint(0, classes, (batch, *answers))
    net.eval()
    with torch.no_grad():
        out = heads(net, x)[0]
    net.train()
    all_heads = heads(net, x)
    weights = [0.5**i for i in range(len(all_heads))]
    losses = [F.cross_entropy(F.interpolate(h, size=answers, mode="nearest"), target) for h in all_heads]
    loss = sum(w * l for w, l in zip(weights, losses)) / sum(weights)
    loss.backward()
    tensors = {"in": x, "target": target.to(torch.uint8), "out": out, "loss": loss.detach().reshape(1)}
    tensors |= {f"head.{i}": h.detach().contiguous() for i, h in enumerate(all_heads)}
    tensors |= {f"grad.{n}": p.grad.contiguous() for n, p in net.named_parameters() if p.grad is not None}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    torch.save(wrap(net.state_dict()), folder / f"{name}.{pt}")
    cases.append({"case": name, "network": config, "channels": channels, "classes": classes, "weights": f"{name}.{pt}"})


def stacked(net, x):
    """MONAI stacks the heads of training on axis 1, all at full size; ours keep their own: every so many voxels of them are the same."""
    y = net(x)
    return list(torch.unbind(y, 1)) if y.dim() == x.dim() + 1 else [y]


def dynunet(config, channels, classes, dims=3):
    strides, kernels = config["strides"], config["kernel_size"]
    n = config.get("deep_supervision", 0)
    return DynUNet(
        dims, channels, classes, kernels, strides, strides[1:], filters=config["filters"],
        norm_name="INSTANCE" if config.get("norm") == "instance" else AFFINE, deep_supervision=n > 0, deep_supr_num=max(n, 1),
        res_block=config.get("res_block", False), trans_bias=config.get("trans_bias", False),
    )


# DynUNet with other shapes and arguments.
deep = {"filters": [2, 3, 4, 5, 6], "kernel_size": [[1, 3, 3], 3, [3, 5, 3], 3, [3, 1, 3]], "strides": [1, [1, 2, 2], 2, [2, 1, 3], 2],
        "deep_supervision": 3, "trans_bias": True}
put("dynunet_deep", {"kind": "dynunet", **deep}, dynunet(deep, 2, 4), 2, 4, (8, 8, 48), stacked, batch=1)
small = {"filters": [4, 4, 8], "kernel_size": [3, 3, 3], "strides": [[2, 1, 1], 2, [1, 2, 2]], "res_block": True, "norm": "instance"}
put("dynunet_shrinks", {"kind": "dynunet", **small}, dynunet(small, 1, 3), 1, 3, (8, 12, 8), stacked, answers=(4, 12, 8))

# Squeeze-and-excitation behind the last norm of every block, where MONAI's SEBlock has it.


def basic_forward(self, x):
    y = self.lrelu(self.norm1(self.conv1(x)))
    return self.lrelu(self.se_layer(self.norm2(self.conv2(y))))


def residual_forward(self, x):
    y = self.lrelu(self.norm1(self.conv1(x)))
    y = self.se_layer(self.norm2(self.conv2(y)))
    shortcut = self.norm3(self.conv3(x)) if hasattr(self, "conv3") else x
    return self.lrelu(y + shortcut)


def excited(net, layer, reduction):
    for m in net.modules():
        if isinstance(m, (UnetBasicBlock, UnetResBlock)):
            m.se_layer = layer(3, m.conv2.conv.out_channels, r=reduction)
            m.forward = types.MethodType(residual_forward if isinstance(m, UnetResBlock) else basic_forward, m)
    return net


se = {"filters": [4, 6, 8], "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "deep_supervision": 1}
put("dynunet_se_channel", {"kind": "dynunet", **se, "squeeze_excitation": {"reduction": 2}},
    excited(dynunet(se, 1, 3), ChannelSELayer, 2), 1, 3, (8, 12, 8), stacked)
se = {"filters": [4, 8, 8], "kernel_size": [3, [1, 3, 3], 3], "strides": [1, [1, 2, 2], 2], "res_block": True}
put("dynunet_se_residual", {"kind": "dynunet", **se, "squeeze_excitation": {"reduction": 4, "form": "residual"}},
    excited(dynunet(se, 2, 2), ResidualSELayer, 4), 2, 2, (4, 12, 8), stacked)

# 2.5-D: every slice with its neighbours through a 2-D DynUNet.


def by_slices(k):
    def run(net, x):
        n, c, z, h, w = x.shape
        samples = torch.stack([x[:, :, i : i + k] for i in range(z - k + 1)], 1).reshape(-1, c * k, h, w)
        heads = stacked(net, samples)
        return [y.reshape(n, z - k + 1, *y.shape[1:]).transpose(1, 2) for y in heads]
    return run


plane = {"filters": [4, 6, 8], "kernel_size": [3, [1, 3], 3], "strides": [1, 2, [1, 2]], "deep_supervision": 1}
put("slices_three", {"kind": "slices", "slices": 3, **plane}, dynunet(plane, 6, 3, dims=2), 2, 3, (6, 8, 12), by_slices(3), answers=(4, 8, 12))
plane = {"filters": [3, 4, 4], "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "res_block": True, "trans_bias": True}
put("slices_one_answer", {"kind": "slices", "slices": 5, **plane}, dynunet(plane, 5, 2, dims=2), 1, 2, (5, 8, 8), by_slices(5), answers=(1, 8, 8))

# Space and time: each convolution first over the frame, then along time (R(2+1)D).


class Factorised(nn.Module):
    def __init__(self, conv, affine):
        super().__init__()
        (kz, ky, kx), (sz, sy, sx), to = conv.kernel_size, conv.stride, conv.out_channels
        plane, before = ky * kx, conv.in_channels
        between = max(kz * plane * before * to // (plane * before + kz * to), 1)
        pad = lambda k, s: (k - s + 1) // 2
        self.space = nn.Conv3d(before, between, (1, ky, kx), (1, sy, sx), (0, pad(ky, sy), pad(kx, sx)), bias=False)
        self.norm = nn.InstanceNorm3d(between, affine=affine)
        self.time = nn.Conv3d(between, to, (kz, 1, 1), (sz, 1, 1), (pad(kz, sz), 0, 0), bias=False)

    def forward(self, x):
        return self.time(F.leaky_relu(self.norm(self.space(x)), 0.01))


def factorised(net, affine):
    for m in list(net.modules()):
        if isinstance(m, (UnetBasicBlock, UnetResBlock)):
            for name in ("conv1", "conv2"):
                conv = getattr(m, name).conv
                if conv.kernel_size[0] > 1 and conv.kernel_size[1] * conv.kernel_size[2] > 1:
                    setattr(m, name, Factorised(conv, affine))
    return net


st = {"filters": [4, 6, 8], "kernel_size": [3, [5, 3, 3], [1, 3, 3]], "strides": [1, 2, [1, 2, 2]], "deep_supervision": 1}
put("spacetime_basic", {"kind": "spacetime", **st}, factorised(dynunet(st, 1, 2), True), 1, 2, (8, 8, 12), stacked)
st = {"filters": [4, 4, 8], "kernel_size": [3, 3, 3], "strides": [1, [1, 2, 2], 2], "res_block": True, "norm": "instance"}
put("spacetime_residual", {"kind": "spacetime", **st}, factorised(dynunet(st, 2, 3), False), 2, 3, (6, 8, 8), stacked)

# SegResNet.
put("segresnet_group", {"kind": "segresnet", "init_filters": 8, "blocks_down": [1, 2], "blocks_up": [1]},
    SegResNet(3, 8, 1, 3, blocks_down=(1, 2), blocks_up=(1,)), 1, 3, (8, 6, 4))
put("segresnet_deconv",
    {"kind": "segresnet", "init_filters": 4, "blocks_down": [2, 1], "blocks_up": [0], "num_groups": 2, "upsample_mode": "deconv"},
    SegResNet(3, 4, 2, 2, norm=("GROUP", {"num_groups": 2}), blocks_down=(2, 1), blocks_up=(0,), upsample_mode="deconv"), 2, 2, (6, 10, 8))
put("segresnet_features",
    {"kind": "segresnet", "init_filters": 4, "blocks_down": [1, 1, 0], "blocks_up": [0, 1], "norm": "instance_affine", "use_conv_final": False,
     "negative_slope": 0.1},
    SegResNet(3, 4, 1, 7, norm=AFFINE, act=("LEAKYRELU", {"negative_slope": 0.1}), blocks_down=(1, 1, 0), blocks_up=(0, 1), use_conv_final=False),
    1, 4, (4, 12, 8))

# nnU-Net v2, as its trainer saves a checkpoint.


def nnunet(kind, config, channels, classes, dims=3):
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    net = kind(
        input_channels=channels, num_classes=classes, n_stages=len(config["features_per_stage"]), conv_op=conv, conv_bias=True, norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        **{"deep_supervision": True, **config},
    )
    return net


def several(net, x):
    y = net(x)
    return y if isinstance(y, (list, tuple)) else [y]


def checkpoint(state):
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(2))], 1e-2, momentum=0.99)
    return {
        "network_weights": state, "optimizer_state": optimiser.state_dict(), "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [0.5], "lrs": [0.01]}, "_best_ema": 0.5, "current_epoch": 1000,
        "init_args": {"plans": {"dataset_name": "Dataset000_Made"}, "configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": (0, 1, 2),
    }


plain = {"features_per_stage": [4, 6, 8], "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
         "n_conv_per_stage": [2, 2, 1], "n_conv_per_stage_decoder": [2, 1]}
put("nnunet_plain", {"kind": "nnunet", **plain}, nnunet(PlainConvUNet, plain, 2, 3), 2, 3, (4, 8, 12), several, wrap=checkpoint, pt="pth")
residual = {"features_per_stage": [4, 6, 6], "kernel_sizes": [[3, 3, 3]] * 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 1, 2]],
            "n_blocks_per_stage": [1, 2, 1], "n_conv_per_stage_decoder": [1, 1]}
put("nnunet_residual", {"kind": "nnunet", **residual}, nnunet(ResidualEncoderUNet, residual, 1, 2), 1, 2, (8, 8, 8), several, wrap=checkpoint, pt="pth")
flat = {"features_per_stage": [4, 6, 8], "kernel_sizes": [[3, 3]] * 3, "strides": [[1, 1], [2, 2], [2, 1]], "n_conv_per_stage": [1, 2, 1],
        "n_conv_per_stage_decoder": [1, 1], "deep_supervision": False}


def planes(net, x):
    return [y.unsqueeze(2) for y in several(net, x.squeeze(2))]


put("nnunet_flat", {"kind": "nnunet", **flat, "kernel_sizes": [[1, 3, 3]] * 3, "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 1]]},
    nnunet(PlainConvUNet, flat, 1, 3, dims=2), 1, 3, (1, 8, 12), planes, wrap=checkpoint, pt="pth")

(folder / "manifest.json").write_text(json.dumps({"cases": cases}, indent=1))
print(len(cases), "cases")
