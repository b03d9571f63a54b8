"""Architectures that nobody here wrote, through four recipes: what is right, how much goes, how long it takes.

    python bench/zoo.py --setup                 # once: timm and pytorchcv, without what they would bring along
    python bench/zoo.py                         # every architecture, each in a process of its own
    python bench/zoo.py resnest swin --recipes int8 channels

Weights are random and batch norms settled on real images, which is enough to tell a right file from a wrong one: what
is measured is the relative difference of outputs, ``|ours - original| / |original|``, not accuracy. For channels the
original is the one with the removed channels silenced, which the step itself compares with; here their share of the
multiply-accumulates is what counts, beside Torch-Pruning's on the same network.
"""

from __future__ import annotations

import argparse
import copy
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import nutlet as nl
import torchvision_standin
from nutlet.graph.macs import macs
from nutlet.graph.trace import trace
from nutlet.measurement import Runtime
from rows import DATA, WORK, Rows

CLASSES = 10
IMAGES = 16
LIMIT = 900
"""Seconds that one architecture may take."""
PEER_LIMIT = 60
"""Seconds that Torch-Pruning may take."""

PYTORCHCV = {
    "NIN": ("nin_cifar10", 32),
    "DenseNet-40": ("densenet40_k12_cifar10", 32),
    "SE-PreResNet-20": ("sepreresnet20_cifar10", 32),
    "Shake-Shake": ("shakeshakeresnet20_2x16d_cifar10", 32),
    "DIA-ResNet": ("diaresnet20_cifar10", 32),
    "RiR": ("rir_cifar10", 32),
    "WRN-16": ("wrn16_10_cifar10", 32),
    "MobileNetV2": ("mobilenetv2_w1", 224),
    "MobileNetV3": ("mobilenetv3_small_w1", 224),
    "ShuffleNet-v1": ("shufflenet_g3_w1", 224),
    "ShuffleNet-v2": ("shufflenetv2_wd2", 224),
    "SqueezeNet": ("squeezenet_v1_1", 224),
    "GhostNet": ("ghostnet", 224),
    "EfficientNet-B0": ("efficientnet_b0", 224),
    "HRNet-W18-small": ("hrnet_w18_small_v1", 224),
    "CBAM-ResNet-18": ("cbam_resnet18", 224),
    "AirNet": ("airnet50_1x64d_r2", 224),
    "BN-Inception": ("bninception", 224),
    "DiracNet": ("diracnet18v2", 224),
    "CondenseNet": ("condensenet74_c4_g4", 224),
    "IGCV3": ("igcv3_wd2", 224),
    "DARTS": ("darts", 224),
    "Oct-ResNet": ("octresnet10_ad2", 224),
    "DiCENet": ("dicenet_w1", 224),
    "ResNeSt": ("resnesta18", 224),
}
TIMM = {
    "ViT-Tiny": ("vit_tiny_patch16_224", 64),
    "Swin-T": ("swin_tiny_patch4_window7_224", 64),
    "ConvNeXt-Atto": ("convnext_atto", 64),
    "Mixer-S32": ("mixer_s32_224", 64),
    "gMLP": ("gmlp_ti16_224", 64),
    "LeViT-128s": ("levit_128s", 224),
    "PiT": ("pit_ti_224", 224),
    "PoolFormer": ("poolformer_s12", 64),
    "MobileViT": ("mobilevit_xxs", 64),
    "EdgeNeXt": ("edgenext_xx_small", 64),
    "EfficientViT": ("efficientvit_b0", 64),
    "FastViT": ("fastvit_t8", 64),
    "RepVGG": ("repvgg_a0", 64),
    "LCNet": ("lcnet_050", 64),
    "CaiT": ("cait_xxs24_224", 64),
    "CoaT": ("coat_lite_tiny", 64),
    "XCiT": ("xcit_nano_12_p16_224", 64),
    "ECA-NFNet": ("eca_nfnet_l0", 64),
    "BoTNet": ("botnet26t_256", 256),
    "HaloNet": ("halonet26t", 256),
    "StarNet": ("starnet_s1", 64),
    "MobileNetV4": ("mobilenetv4_conv_small", 64),
    "FocalNet": ("focalnet_tiny_srf", 64),
    "MambaOut": ("mambaout_femto", 64),
    "HGNetV2": ("hgnetv2_b0", 64),
    "ConvMixer": ("convmixer_768_32", 64),
}

RECIPES: dict[str, list[nl.Method]] = {
    "int8": [nl.Quantize()],
    "weights": [nl.Quantize(activations=False)],
    "channels": [nl.PruneChannels(ratio=0.3)],
    "chain": [nl.PruneChannels(ratio=0.3), nl.Factorize(energy=0.9), nl.Quantize()],
}
BARS = {"int8": 0.12, "weights": 0.02}


def build(name: str) -> tuple[nn.Module, int]:
    """Return an architecture with random weights, and the height of the images it takes."""
    torchvision_standin.install()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in PYTORCHCV:
            from pytorchcv.model_provider import get_model

            model, size = PYTORCHCV[name]
            options = {} if "cifar" in model else {"in_size": (size, size)}
            return get_model(model, num_classes=CLASSES, **options), size
        import timm

        model, size = TIMM[name]
        try:
            return timm.create_model(model, num_classes=CLASSES, img_size=size), size
        except TypeError:  # a convolutional one takes any size
            return timm.create_model(model, num_classes=CLASSES), size


def images(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Return CIFAR-10 test images of a height, normalized, and their labels."""
    file = np.load(DATA / "cifar10" / "test.npz")
    x = torch.from_numpy(file["x"][:count]).permute(0, 3, 1, 2).float() / 255
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    if size != x.shape[2]:
        x = functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x, torch.from_numpy(file["y"][:count].astype("int64"))


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Return ``model`` in evaluation mode with the statistics of its batch norms taken from ``x``."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for part in x.split(8):
            model(part)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return model.eval()


def awake(model: nn.Module) -> nn.Module:
    """Fill what trained weights would fill: layers that begin at zero, and indices that all name one channel."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        for buffer in model.buffers():
            if buffer.dtype == torch.long and buffer.ndim == 1 and len(buffer) > 1 and not buffer.any():
                buffer.copy_(torch.randperm(len(buffer)))
    return model


def prepared(name: str) -> tuple[nn.Module, nl.Data]:
    """Return an architecture ready to be compressed, and data for it."""
    model, size = build(name)
    x, y = images(size, 3 * IMAGES)
    model = settled(awake(model), x[:IMAGES])
    first, second, third = (nl.Examples(a, b) for a, b in zip(x.split(IMAGES), y.split(IMAGES), strict=True))
    return model, nl.Data(train=first, validation=second, calibration=first, test=third)


def peer_macs_left(model: nn.Module, example: Tensor) -> float | None:
    """Return the share of the multiply-accumulates that Torch-Pruning leaves at the same ratio; None where it fails."""
    import torch_pruning

    model = copy.deepcopy(model)
    before = macs(trace(model, example))
    heads = [module for module in model.modules() if getattr(module, "out_features", 0) == CLASSES]
    heads += [module for module in model.modules() if getattr(module, "out_channels", 0) == CLASSES]

    def give_up(*_: object) -> None:
        raise TimeoutError(f"no end within {PEER_LIMIT} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PEER_LIMIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.BasePruner(
                model, example, torch_pruning.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.3,
                ignored_layers=heads,
            )  # fmt: skip
            pruner.step()
            return macs(trace(model, example)) / before
    except Exception as error:  # it may raise anything on a network it cannot follow
        print(f"  Torch-Pruning: {type(error).__name__}: {str(error)[:100]}")
        return None
    finally:
        signal.alarm(0)


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


def run(name: str, recipe: str) -> None:
    """Measure one recipe on one architecture and write its rows."""
    model, data = prepared(name)
    x = data.test.x  # type: ignore[union-attr]
    rows = Rows("zoo", f"{name}/{recipe}", [0])
    with torch.no_grad():
        reference = model(x)
    work = macs(trace(model, x[:2]))
    start = time.process_time()
    try:
        small = nl.compress(model, RECIPES[recipe], data)
        seconds = time.process_time() - start
        with torch.no_grad():
            ours = small.model(x)
        file = small.export(WORK / "zoo" / f"{name}-{recipe}.onnx")
    except nl.NutletError as error:
        print(f"{name}/{recipe}: refused: {error}")
        rows.add("refused", 1, "count")
        if recipe == "channels" and (peer := peer_macs_left(model, x[:2])) is not None:
            rows.add("peer_macs_left", peer, "ratio")
            print(f"    Torch-Pruning leaves {peer}")
        rows.write()
        return
    shipped = torch.from_numpy(Runtime(file, threads=1).predict(data.test))  # type: ignore[arg-type]
    error = relative(ours, reference)
    left = macs(trace(small.model, x[:2])) / work
    rows.add("relative_error", error, "ratio", BARS.get(recipe))
    rows.add("file_module_error", relative(shipped, ours), "ratio")
    rows.add("macs_left", left, "ratio", 0.62 if recipe == "channels" else None)
    rows.add("seconds", seconds, "s")
    said = f"{name}/{recipe}: error {error:.4f}, file against module {relative(shipped, ours):.5f}"
    said += f", {left:.3f} of the MACs, {seconds:.0f} s"
    if recipe == "channels":
        peer = peer_macs_left(model, x[:2])
        if peer is not None:
            rows.add("peer_macs_left", peer, "ratio")
        said += f"; Torch-Pruning leaves {peer}"
    print(said)
    for step in small.steps[1:]:
        for note in step.notes[:6]:
            print(f"    {step.name}: {note[:200]}")
    rows.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names of architectures; all by default")
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--here", action="store_true", help="in this process, as the other form calls it")
    parser.add_argument("--setup", action="store_true", help="install timm and pytorchcv and end")
    asked = parser.parse_args()
    if asked.setup:
        packages = ["timm==1.0.31", "pytorchcv==0.0.74", "torch-pruning==1.6.1"]
        subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", *packages], check=True)
        return
    torch.set_num_threads(1)
    every = [*PYTORCHCV, *TIMM]
    chosen = [name for name in every if not asked.names or any(part.lower() in name.lower() for part in asked.names)]
    for name in chosen:
        for recipe in asked.recipes:
            if asked.here:
                run(name, recipe)
                continue
            command = [sys.executable, __file__, name, "--recipes", recipe, "--here"]
            try:
                done = subprocess.run(command, timeout=LIMIT).returncode
            except subprocess.TimeoutExpired:
                done = -1
            if done:
                print(f"{name}/{recipe}: ended with {done}")


if __name__ == "__main__":
    main()
