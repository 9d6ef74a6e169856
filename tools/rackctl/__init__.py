"""The command line for a rack, and the emulated rack itself."""
