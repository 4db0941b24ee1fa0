"""The networks of torchvision and timm that packing is promised for."""

import timm
import torchvision
from torch import nn

PUBLISHED = [
    *(("torchvision", name) for name in ("resnet18", "resnet34", "mobilenet_v3_small")),
    *(("torchvision", name) for name in ("regnet_y_400mf", "shufflenet_v2_x1_0", "densenet121")),
    *(("timm", name) for name in ("resnet18", "convnext_atto", "mobilenetv3_small_050")),
    ("timm", "vit_tiny_patch16_224"),
]
LARGE = [
    *(("torchvision", name) for name in ("resnet50", "wide_resnet50_2", "resnext50_32x4d")),
    *(("torchvision", name) for name in ("vgg11_bn", "mobilenet_v2", "efficientnet_b0")),
    *(("torchvision", name) for name in ("convnext_tiny", "vit_b_16")),
]


def published(library: str, name: str, size: int = 64, classes: int = 7) -> nn.Module:
    if library == "timm":
        options = {"img_size": size} if name.startswith("vit") else {}
        return timm.create_model(name, num_classes=classes, **options)
    options = {"image_size": size} if name.startswith("vit") else {}
    return torchvision.models.get_model(name, num_classes=classes, **options)
