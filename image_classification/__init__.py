"""ResNet-50 on ImageNet: the image classification benchmark."""

import harness  # noqa: F401  sets how OpenMP's threads wait, before a framework is loaded
