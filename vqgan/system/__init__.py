"""The machine: devices, memory, files that change whole or not at all, collectives, processes."""
