"""Waist 2: what runs a kernel. A device knows no op by name."""

from gpucnn.devices.base import Device, KernelError, Signature, Specialisation

__all__ = ["Device", "KernelError", "Signature", "Specialisation"]
