"""The Verilated accelerator as a device in this process."""
