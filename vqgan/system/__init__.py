"""The machine: devices, memory, atomic files, collectives, processes."""
