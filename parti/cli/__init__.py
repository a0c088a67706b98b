"""The commands: `parti train`, `parti sample`, ..., and the same behind tools/*.py."""
