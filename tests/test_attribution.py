"""Saliency, occlusion and Grad-CAM against their definitions in scalar loops."""

import numpy as np
import pytest

import gpucnn
from gpucnn import attribution, nn
from gpucnn.nn import models


@pytest.fixture(autouse=True)
def _same_weights():
    gpucnn.manual_seed(4)


def small(channels=2):
    """A network in float64 with batch norm and dropout, on images of 7×9."""
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2),
        nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(5 * 2 * 3, 3),
    ).to("float64")  # fmt: skip
    model[1].running_mean.copy_(np.array([0.1, -0.2, 0.3, 0.0]))
    model[1].running_var.copy_(np.array([0.5, 1.5, 1.0, 2.0]))
    return model


def images(count=2, channels=2, seed=1):
    return np.random.default_rng(seed).standard_normal((count, channels, 7, 9))


def scores(model, x):
    """[N, classes] in evaluation mode."""
    modes = [(m, m.training) for m in model.modules()]
    values = model.eval()(gpucnn.tensor(x)).numpy()
    for module, training in modes:
        module.training = training
    return values


def test_saliency_is_the_largest_finite_difference_over_the_channels():
    model, x = small(), images()
    found = attribution.saliency(model, x, target=[2, 0])
    step = 1e-5
    for n, k in enumerate((2, 0)):
        for h in range(7):
            for w in range(9):
                slopes = []
                for c in range(2):
                    up, down = x[n : n + 1].copy(), x[n : n + 1].copy()
                    up[0, c, h, w] += step
                    down[0, c, h, w] -= step
                    slopes.append(abs(scores(model, up)[0, k] - scores(model, down)[0, k]) / (2 * step))
                assert found.maps[n, h, w] == pytest.approx(max(slopes), rel=1e-5, abs=1e-8)
    np.testing.assert_array_equal(found.classes, [2, 0])
    np.testing.assert_allclose(found.scores, scores(model, x)[[0, 1], [2, 0]])
    assert found.outputs == 3


def test_smoothed_saliency_is_the_mean_gradient_of_noisy_copies():
    model, x = small(1), images(1, 1)
    found = attribution.saliency(model, x, samples=3, noise=0.2, seed=7)
    k = int(scores(model, x)[0].argmax())
    drawn, total = np.random.default_rng(7), np.zeros((7, 9))
    for _ in range(3):
        noisy = x + 0.2 * (x.max() - x.min()) * drawn.standard_normal(x.shape)
        leaf = gpucnn.tensor(noisy, requires_grad=True)
        model.eval()(leaf)[0, k].backward()
        total += leaf.grad.numpy()[0, 0]
    np.testing.assert_allclose(found.maps[0], np.abs(total / 3), rtol=1e-9, atol=1e-12)
    again = attribution.saliency(model, x, samples=3, noise=0.2, seed=7)
    np.testing.assert_array_equal(found.maps, again.maps)


@pytest.mark.parametrize(("window", "stride"), [((2, 3), (1, 2)), (3, 2), (1, 1), ((7, 9), 4), (2, 3)])
def test_occlusion_is_the_mean_loss_of_the_windows_that_cover_a_pixel(window, stride):
    model, x = small(), images()
    found = attribution.occlusion(model, x, target=[1, 2], window=window, stride=stride, fill=0.25)
    (r, s), (a, b) = ((v, v) if isinstance(v, int) else v for v in (window, stride))
    tops = [t for t in range(7) if t + r <= 7 and (t % a == 0 or t + r == 7)]
    lefts = [t for t in range(9) if t + s <= 9 and (t % b == 0 or t + s == 9)]
    for n, k in enumerate((1, 2)):
        total, covers = np.zeros((7, 9)), np.zeros((7, 9))
        for top in tops:
            for left in lefts:
                covered = x[n : n + 1].copy()
                covered[:, :, top : top + r, left : left + s] = 0.25
                lost = scores(model, x[n : n + 1])[0, k] - scores(model, covered)[0, k]
                for h in range(top, top + r):
                    for w in range(left, left + s):
                        total[h, w] += lost
                        covers[h, w] += 1
        expected = np.where(covers > 0, total / np.maximum(covers, 1), 0)
        np.testing.assert_allclose(found.maps[n], expected, rtol=1e-9, atol=1e-12)


def test_occlusion_of_more_places_than_a_batch_holds_is_whole():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12 * 11, 2, bias=False)).to("float64")
    x = np.random.default_rng(2).standard_normal((1, 1, 12, 11))
    found = attribution.occlusion(model, x, target=1, window=1)
    np.testing.assert_allclose(found.maps[0], (x[0, 0].ravel() * model[1].weight.numpy()[1]).reshape(12, 11))


def grad_cam_by_loops(model, layer, x, k):
    """Selvaraju et al. 2017, equations 1 and 2, with ∂score/∂A from finite differences of the layers behind."""
    before, after = model[: layer + 1].eval(), model[layer + 1 :].eval()
    maps = before(gpucnn.tensor(x[None])).numpy()[0]
    count, p, q = maps.shape
    step, total = 1e-5, np.zeros((p, q))
    for i in range(count):
        slope = 0.0
        for u in range(p):
            for v in range(q):
                up, down = maps.copy(), maps.copy()
                up[i, u, v] += step
                down[i, u, v] -= step
                a, b = (after(gpucnn.tensor(m[None])).numpy()[0, k] for m in (up, down))
                slope += (a - b) / (2 * step)
        for u in range(p):
            for v in range(q):
                total[u, v] += slope / (p * q) * maps[i, u, v]
    return np.maximum(total, 0)


@pytest.mark.parametrize(("name", "place"), [(None, 5), ("4", 4), ("0", 0), ("2", 2)])
def test_grad_cam_is_its_formula(name, place):
    model, x = small(), images(3)
    for target in (0, 1, 2):
        found = attribution.grad_cam(model, x, name, target)
        for n in range(3):
            expected = grad_cam_by_loops(model, place, x[n], target)
            np.testing.assert_allclose(found.maps[n], expected, rtol=1e-6, atol=1e-9)
    assert found.maps.any(), "a map that is 0 everywhere would show nothing"


def test_grad_cam_looks_behind_the_norm_and_activation_of_the_last_convolution():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(3 * 2 * 3, 2),
    ).to("float64")  # fmt: skip
    x = images(2, 1)
    np.testing.assert_array_equal(attribution.grad_cam(model, x).maps, attribution.grad_cam(model, x, "4").maps)
    assert not np.array_equal(attribution.grad_cam(model, x).maps, attribution.grad_cam(model, x, "2").maps)


def test_grad_cam_takes_the_output_of_a_block():
    model = models.resnet20().to("float64")
    x = np.random.default_rng(3).standard_normal((1, 3, 8, 12))
    assert attribution.grad_cam(model, x, "layer2").maps.shape == (1, 4, 6)
    assert attribution.grad_cam(model, x).maps.shape == (1, 2, 3)


@pytest.mark.parametrize("function", [attribution.saliency, attribution.occlusion, attribution.grad_cam])
def test_one_image_is_a_batch_of_one_and_the_prediction_is_asked_about(function):
    model, x = small(), images(1)
    k = int(scores(model, x)[0].argmax())
    alone, batch = function(model, x[0]), function(model, gpucnn.tensor(x), target=k)
    np.testing.assert_array_equal(alone.maps, batch.maps)
    assert alone.classes.tolist() == [k]


@pytest.mark.parametrize("function", [attribution.saliency, attribution.occlusion, attribution.grad_cam])
def test_the_model_is_left_as_it_was(function):
    model = small()
    model[6].eval()
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    function(model, images())
    assert [m.training for m in model.modules()] == [m is not model[6] for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(vars(m).get("_hooks") for m in model.modules())
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name])


def test_a_single_output_is_its_own_class(backend):
    model = models.x_or_not_x().to(backend)
    found = attribution.saliency(model, np.eye(5, dtype=np.float32)[None])
    assert (found.classes.tolist(), found.outputs, found.maps.shape) == ([0], 1, (1, 5, 5))


def test_mistakes_are_named_with_what_there_is():
    model, x = small(), images()
    with pytest.raises(IndexError, match="no class 3 among the model's 3 outputs: 0 to 2"):
        attribution.saliency(model, x, target=3)
    with pytest.raises(ValueError, match="one for each of the 2 images"):
        attribution.saliency(model, x, target=[0, 1, 2])
    with pytest.raises(ValueError, match=r"one image \[C, H, W\], got shape \(1, 5\)"):
        attribution.occlusion(model, np.ones(5))
    with pytest.raises(ValueError, match="nothing to look at in images of shape"):
        attribution.grad_cam(model, np.ones((0, 2, 7, 9)))
    with pytest.raises(ValueError, match="a window of 8×2 is larger than the image of 7×9"):
        attribution.occlusion(model, x, window=(8, 2))
    with pytest.raises(ValueError, match="stride must be an int >= 1"):
        attribution.occlusion(model, x, stride=0)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        attribution.saliency(model, x, samples=0)
    with pytest.raises(ValueError, match=r"Sequential has no layer 'conv'; it has '0'"):
        attribution.grad_cam(model, x, "conv")
    with pytest.raises(ValueError, match=r"layer '8' makes \(3,\), no maps \[K, P, Q\]; name a convolution"):
        attribution.grad_cam(model, x, "8")
    with pytest.raises(ValueError, match="Linear has no Conv2d; name the layer"):
        attribution.grad_cam(nn.Linear(9, 2), x)
