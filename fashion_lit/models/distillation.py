"""Knowledge distillation: learn from the probabilities of trained classifiers beside the labels.

Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531. `ImageClassifier` adds the loss.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fashion_lit.data.batches import to_input
from fashion_lit.data.sources.fashion_mnist import PIXEL_MEAN, PIXEL_STD

Weight = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]


class Teacher:
    """A trained network, frozen and in evaluation mode: nothing is dropped, no statistics change.

    It is no nn.Module, so that it is in no state dict and no optimizer of its student.

    Args:
        network: maps images (B, C, H, W) float to logits (B, num_classes).
        image_size: height and width of its images, in pixels.
        normalize: whether its images are normalised; see `to_input`.
        mean: of each channel of the images that it was trained on.
        std: their standard deviations.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        image_size: int,
        normalize: bool,
        mean: Sequence[float] = (PIXEL_MEAN,),
        std: Sequence[float] = (PIXEL_STD,),
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.to_input = partial(
            to_input, image_size=image_size, normalize=normalize, mean=mean, std=std
        )
        self.dtype = torch.float32

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the network to a device and a floating-point type, those of the student's."""
        self.network.to(device, dtype)
        self.dtype = dtype

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, [3,] H, W) uint8."""
        return self.network(self.to_input(pixels).to(self.dtype))


class Distillation:
    """The loss of a student that learns from the mean of its teachers' probabilities.

    Args:
        teachers: at least one.
        weight: share of the teachers' part in the loss; the labels' part has the rest.
        temperature: divides the logits of teachers and student before their softmax. Above 1, the
            small probabilities, of classes that an image resembles, count more. A teacher trained
            with label smoothing has larger ones already.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        *,
        weight: Weight = 0.9,
        temperature: Temperature = 1.0,
    ) -> None:
        self.teachers = list(teachers)
        self.weight = weight
        self.temperature = temperature

    def __call__(self, labels_loss: Tensor, logits: Tensor, pixels: Tensor) -> Tensor:
        """Return the batch's mean loss () in float32, of labels and teachers.

        The teachers' part is the cross-entropy to their probabilities minus their entropy, which
        has no gradient: it is 0 if the probabilities agree. It counts temperature ** 2 times, so
        that the size of its gradients does not depend on the temperature. Label smoothing and class
        weights apply to the labels' part alone.

        Args:
            labels_loss: the loss of the labels ().
            logits: the student's (B, num_classes).
            pixels: the images that gave them, (B, [3,] H, W) uint8, augmented and mixed.
        """
        softened = (logits.float() / self.temperature).log_softmax(1)
        divergence = F.kl_div(softened, self.probabilities(pixels), reduction="batchmean")
        scale = self.weight * self.temperature**2
        return (1 - self.weight) * labels_loss + scale * divergence

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return the mean of the teachers' probabilities at the temperature.

        It is (B, num_classes) float32.
        """
        logits = torch.stack([teacher(pixels).float() for teacher in self.teachers])
        return (logits / self.temperature).softmax(2).mean(0)
