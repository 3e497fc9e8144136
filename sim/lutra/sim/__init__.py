"""The specification, its benches and the simulated device."""
