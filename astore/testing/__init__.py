"""Conformance suites and fault injection for authors of backends and stores."""
