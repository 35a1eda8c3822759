"""One run of torchvision in comparisons.image_classification: its resnet50 and its image pipeline.

As torchvision's documentation says: ImageFolder with transforms, a DataLoader with a worker process
for each core, and a plain loop. Of the ways that it offers, the faster ones: decode_image instead
of PIL's decoder, and channels_last instead of channels first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image
from torchvision.models import resnet50
from torchvision.transforms import v2

from comparisons.image_classification_work import (
    CHANNEL_MEANS,
    CROP_AREA,
    CROP_ASPECT,
    LEARNING_RATE,
    MOMENTUM,
    Work,
    link_photos,
    measure_input,
    measure_steps,
    num_cores,
    print_result,
)


def main() -> None:
    """Measure and print the result."""
    work = tyro.cli(Work)
    torch.manual_seed(work.seed)
    crop = v2.RandomResizedCrop(work.image_size, scale=CROP_AREA, ratio=CROP_ASPECT)
    normalize = v2.Normalize(CHANNEL_MEANS, [1.0] * 3)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32), normalize])
    with tempfile.TemporaryDirectory() as folder:
        photos = link_photos(work, Path(folder))
        dataset = ImageFolder(photos, transform, loader=lambda path: decode_image(path, "RGB"))
        loader = DataLoader(dataset, work.input_batch_size, shuffle=True, num_workers=num_cores())
        batches = iter(loader)
        input_images_per_s, last_images = measure_input(batches, work)
        del batches  # ends the worker processes

    model = resnet50(num_classes=work.num_classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    shape = (work.batch_size, 3, work.image_size, work.image_size)
    images = torch.randn(shape).to(memory_format=torch.channels_last)
    labels = torch.randint(1, work.num_classes, shape[:1])

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    train_images_per_s, details = measure_steps(step, work)
    print_result(
        train_images_per_s,
        input_images_per_s,
        None,
        facts={
            "precision": str(images.dtype).removeprefix("torch."),
            "batch_size": len(images),
            "image_size": images.shape[-1],
            "num_classes": model.fc.out_features,
            "num_parameters": sum(weights.numel() for weights in model.parameters()),
            "momentum": optimizer.param_groups[0]["momentum"],
            "num_threads": torch.get_num_threads(),
            "input_batch_size": len(last_images),
            "input_image_size": last_images.shape[-1],
            "num_input_batches": work.num_input_batches,
            "num_images": len(dataset),
            "crop_area": crop.scale,
            "crop_aspect": crop.ratio,
            "channel_means": normalize.mean,
        },
        details={
            **details,
            "pixel_mean": last_images.mean().item(),
            "pixel_deviation": last_images.std().item(),
        },
    )


if __name__ == "__main__":
    main()
