"""bench/host_time.py measures what Python takes for a step on a GPU."""

import re

import host_time
import pytest

from gpucnn.devices import KernelError


@pytest.mark.parametrize(("network", "batch", "launches"), [("lenet5", 8, 35), ("resnet18", 1, 55)])
def test_the_command_tells_a_step_its_launches_and_what_each_takes(network, batch, launches, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["host_time.py", network, "--batch", str(batch), "--steps", "2"])
    host_time.main()
    shown = rf"{network}, batch {batch}: [\d.]+ ms a step, {launches} launches, \d+ µs to check and prepare each\n"
    assert re.fullmatch(shown, capsys.readouterr().out)


def test_a_launch_is_checked_as_on_a_gpu():
    device = host_time.NoDevice()
    with pytest.raises(KernelError, match="dy must be a numpy array"):
        device.launch("sums.cu", "bias_backward", {"SCALAR": "float"}, (1, 1, 1), (1, 1, 1), 0, 0, 1, 1, 1, 1)
