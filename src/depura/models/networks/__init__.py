"""Network architectures, torch only. A leaf: nothing in the library's core imports it."""
