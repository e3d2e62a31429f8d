"""Pieces of programs as people write them for PyTorch, run with gpucnn in its place."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numerics import Array

import gpucnn

Program = Callable[..., Any]


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


LABELS = np.array([1, 0, 3, 2, 3, 1])


def test_functions_have_the_module_that_they_have_in_pytorch() -> None:
    import gpucnn.nn.functional as F

    assert F.conv2d is gpucnn.functional.conv2d
    assert set(F.__all__) == set(gpucnn.functional.__all__)
    assert gpucnn.nn.functional is F


def accuracy(torch: Any, output: Any, target: Any) -> Any:
    """The ImageNet example's."""
    maxk = 2
    batch_size = target.size(0)
    _, pred = output.topk(maxk, 1, True, True)
    pred = pred.t()
    correct = pred.eq(target.view(1, -1).expand_as(pred))
    return [correct[:k].reshape(-1).float().sum(0, keepdim=True).mul_(100.0 / batch_size) for k in (1, maxk)]


def right_answers(torch: Any, output: Any, target: Any) -> Any:
    """The MNIST example's, the quick start's and the CIFAR tutorial's."""
    pred = output.argmax(dim=1, keepdim=True)
    first = pred.eq(target.view_as(pred)).sum()
    second = (output.argmax(1) == target).float().sum()
    _, predicted = torch.max(output.data, 1)
    return [first, second, (predicted == target).sum()]


def log_likelihood(torch: Any, output: Any, target: Any) -> Any:
    F = torch.nn.functional
    return [F.nll_loss(F.log_softmax(output, dim=1), target, reduction="sum"), torch.logsumexp(output, 1)]


def focal(torch: Any, output: Any, target: Any) -> Any:
    ce = torch.nn.functional.cross_entropy(output, target, reduction="none")
    return [((1 - torch.exp(-ce)) ** 2 * ce).mean()]


def smooth_labels(torch: Any, output: Any, target: Any) -> Any:
    classes = output.size(1)
    soft = torch.nn.functional.one_hot(target, classes).double() * 0.9 + 0.1 / classes
    picked = output.gather(1, target.unsqueeze(1)).squeeze(1)
    return [-(soft * torch.log_softmax(output, dim=-1)).sum(dim=-1).mean(), picked]


def distillation(torch: Any, output: Any, target: Any) -> Any:
    T, teacher = 3.0, output.detach().flip(1)
    soft_targets = torch.nn.functional.softmax(teacher / T, dim=-1)
    soft_prob = torch.nn.functional.log_softmax(output / T, dim=-1)
    return [torch.sum(soft_targets * (soft_targets.log() - soft_prob)) / soft_prob.size()[0] * T**2]


def mixup(torch: Any, images: Any) -> Any:
    index = torch.arange(images.size(0)).flip(0)
    return [0.3 * images + 0.7 * images[index, :]]


def style(torch: Any, images: Any) -> Any:
    a, b, c, d = images.size()
    features = images.view(a * b, c * d)
    gram = torch.mm(features, features.t())
    return [gram.div(a * b * c * d), images.norm(p=2, dim=1), images.std(), torch.var(images, (2, 3))]


def attention_of_channels(torch: Any, images: Any) -> Any:
    """CBAM's two kinds."""
    average, largest = torch.mean(images, 1, keepdim=True), torch.max(images, 1, keepdim=True)[0]
    plane = torch.sigmoid(torch.cat([average, largest], dim=1).sum(1, keepdim=True))
    squeezed = torch.relu(images.mean((2, 3), keepdim=True)).clamp(max=1)
    return [images * plane, images * squeezed]


def attention_of_pixels(torch: Any, images: Any) -> Any:
    """Non-local blocks."""
    n, c, h, w = images.shape
    flat = images.flatten(2)
    weights = torch.softmax(torch.bmm(flat.transpose(1, 2), flat) / c**0.5, dim=-1)
    return [torch.bmm(flat, weights.transpose(1, 2)).reshape(n, c, h, w) + images]


def channel_shuffle(torch: Any, images: Any) -> Any:
    n, c, h, w = images.size()
    x = images.view(n, 2, c // 2, h, w)
    x = torch.transpose(x, 1, 2).contiguous()
    first, second = torch.flatten(x, 1, 2).chunk(2, dim=1)
    return [first, second, torch.stack(torch.unbind(images, 1), 1)]


def dice_and_overlap(torch: Any, images: Any) -> Any:
    scores, target = torch.sigmoid(images), (images.detach().abs() > 0.5).double()
    both = (scores * target).sum(dim=(1, 2, 3))
    dice = 1 - (2 * both + 1) / (scores.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)
    seen, wanted = scores > 0.5, target.bool()
    overlap = (seen & wanted).sum((1, 2, 3)).float() / (seen | wanted).sum((1, 2, 3)).float()
    return [dice.mean(), overlap, (~seen).double().mean(), torch.all(seen == wanted), torch.any(seen ^ wanted, 1)]


def reparameterised(torch: Any, images: Any) -> Any:
    """A variational autoencoder's code and its divergence."""
    mu, logvar = images.flatten(1).chunk(2, 1)
    eps = torch.linspace(-1, 1, mu.size(1), dtype=torch.float64)
    divergence = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return [mu + eps * torch.exp(0.5 * logvar), divergence]


def contrastive(torch: Any, images: Any) -> Any:
    """SimCLR's loss over pairs."""
    F = torch.nn.functional
    z = F.normalize(images.flatten(1), dim=1)
    similar = torch.mm(z, z.t()) / 0.5
    similar = similar.masked_fill(torch.eye(z.size(0)).bool(), -9e15)
    partner = torch.arange(z.size(0)).view(-1, 2).flip(1).flatten()
    return [F.cross_entropy(similar, partner), F.cosine_similarity(z[:2], z[2:4])]


def adversarial(torch: Any, images: Any) -> Any:
    """The fast gradient sign attack on a sum of squares."""
    x = images.detach().clone().requires_grad_()
    torch.square(x).sum().backward()
    return [torch.clamp(x + 0.1 * x.grad.sign(), -1, 1).detach(), torch.where(torch.isnan(x), 0.0, x).sum()]


def averaged_weights(torch: Any, images: Any) -> Any:
    """An exponential moving average, and a step by hand."""
    p, average = images.detach().clone(), torch.zeros_like(images)
    average.mul_(0.9).add_(p, alpha=0.1)
    p.sub_(0.5 * p).clamp_(min=-0.2)
    return [average, p, torch.maximum(average, p), torch.allclose(p, average), torch.equal(p, p.clone())]


OF_SCORES: list[Program] = [accuracy, right_answers, log_likelihood, focal, smooth_labels, distillation]
OF_IMAGES: list[Program] = [
    mixup, style, attention_of_channels, attention_of_pixels, channel_shuffle, dice_and_overlap, reparameterised,
    contrastive, adversarial, averaged_weights,
]  # fmt: skip


def run(library: Any, program: Program) -> list[Array]:
    """What the program computes, and the gradient of all of it that has one."""
    if program in OF_SCORES:
        leaf = library.tensor(drawn(6, 4), requires_grad=True)
        results = program(library, leaf, library.tensor(LABELS))
    else:
        leaf = library.tensor(drawn(4, 6, 5, 3, seed=1), requires_grad=True)
        results = program(library, leaf)
    weighted = [(y * y).sum() for y in results if getattr(y, "requires_grad", False)]
    if weighted:
        sum(weighted).backward()
    found = results if leaf.grad is None else [*results, leaf.grad]
    return [np.asarray(y.detach().numpy() if hasattr(y, "detach") else y) for y in found]


@pytest.mark.parametrize("program", OF_SCORES + OF_IMAGES, ids=lambda program: program.__name__)
def test_a_program_for_pytorch_runs_as_it_is(program: Program) -> None:
    for result in run(gpucnn, program):
        assert np.isfinite(result.astype(float)).all()


@pytest.mark.parametrize("program", OF_SCORES + OF_IMAGES, ids=lambda program: program.__name__)
def test_a_program_for_pytorch_computes_what_it_does_there(program: Program, torch: Any) -> None:
    ours = run(gpucnn, program)
    for mine, theirs in zip(ours, run(torch, program), strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine.astype(float), theirs.astype(float), rtol=1e-10, atol=1e-12)
