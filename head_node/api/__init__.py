"""The authority's REST interface for operators and heads."""
